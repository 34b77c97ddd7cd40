#include "src/train/trainer.h"

#include <algorithm>
#include <cmath>

namespace irq {
namespace {

constexpr int64_t kMostGraphs = 32;

double read_scalar(Backend& backend, const Tensor& t) {
  double wide = 0;
  float narrow = 0;
  if (t.dtype == DType::F64) return backend.download(&wide, t), wide;
  return backend.download(&narrow, t), static_cast<double>(narrow);
}

}  // namespace

Trainer::Trainer(Backend& backend, Arena& arena, const ModelPlan& plan, int64_t max_labels)
    : backend_(backend), arena_(arena), model_(backend, arena, plan) {
  const DType master = backend.precision().master;
  params_ = arena.push("step state", DType::U8, 1, sizeof(StepParams));
  norm_ = arena.push("step state", master, 1, 1);
  nll_ = arena.push("step state", master, 1, max_labels);
  nll_sum_ = arena.push("step state", master, 1, 1);
}

void Trainer::write_params(const StepParams& params) { backend_.upload(params_, &params); }

// Forward and backward of a batch that is on the device; its summed loss goes to nll_sum_.
void Trainer::run_passes(const DeviceBatch& batch) {
  Tape tape(backend_, arena_, &model_.params(), true);
  tape.set_timing(print_tape_);
  const Tensor nll = nll_.slice_cols(0, batch.labels);
  model_.loss(tape, batch, nll);
  tape.backward();
  backend_.reduce_sum(nll_sum_, nll, 0);
  if (print_tape_) tape_table_ = tape.print();
  print_tape_ = false;
}

// The least recently used recordings go: each holds a few megabytes of the device's memory for its kernels' arguments.
void Trainer::make_room() {
  const auto older = [](const auto& a, const auto& b) { return a.second.last_use < b.second.last_use; };
  while (static_cast<int64_t>(graphs_.size()) >= kMostGraphs)
    graphs_.erase(std::min_element(graphs_.begin(), graphs_.end(), older));
}

void Trainer::replay_passes(const DeviceBatch& batch) {
  ParamStore& store = model_.params();
  GraphKey key{batch.rows, batch.labels, batch.seqs.rows, store.touched()};
  auto known = graphs_.find(key);
  if (known == graphs_.end()) {  // the first time kernels are loaded and products timed
    make_room();
    graphs_[std::move(key)].last_use = ++uses_;
    return run_passes(batch);
  }
  Graph& graph = known->second;
  graph.last_use = ++uses_;
  if (!graph.recorded) {
    const std::vector<uint8_t> before = store.touched();
    const int64_t mark = arena_.mark();
    try {
      graph.recorded = backend_.capture([&] { run_passes(batch); });
    } catch (const Error&) {  // the device has no memory left for it: everything goes on without recordings
      graphs_.clear();
      use_graphs_ = false;
      store.set_touched(before);
      arena_.pop_to(mark);
      return run_passes(batch);
    }
    graph.touched = store.touched();
  }
  graph.recorded->launch();
  store.set_touched(graph.touched);
}

void Trainer::accumulate(const Batch& batch) {
  const int64_t mark = arena_.mark();
  const DeviceBatch d = upload_batch(backend_, arena_, batch, params_);
  if (use_graphs_ && backend_.device() == Device::CUDA && !backend_.dry() && !print_tape_) replay_passes(d);
  else run_passes(d);
  arena_.pop_to(mark);
}

StepResult Trainer::step(const std::vector<Batch>& window, int64_t step, const OptimizerConfig& config) {
  StepResult result;
  for (const Batch& b : window) result.tokens += b.tokens_read, result.labels += b.real_labels;
  StepParams p;
  p.lr = config.lr;
  p.inv_tokens = 1.0 / static_cast<double>(std::max<int64_t>(result.labels, 1));
  p.bias1 = 1 - std::pow(kAdamBeta1, static_cast<double>(step));
  p.bias2 = 1 - std::pow(kAdamBeta2, static_cast<double>(step));
  p.clip = config.clip;
  p.seed[0] = static_cast<uint32_t>(config.seed), p.seed[1] = static_cast<uint32_t>(config.seed >> 32);
  write_params(p);

  ParamStore& store = model_.params();
  store.begin_step();
  double nll = 0;
  bool unread = false;  // reading waits for the device: the last sum is read when all of the step is on its way
  for (const Batch& b : window) {
    if (b.real_labels == 0) continue;
    if (unread) nll += read_scalar(backend_, nll_sum_);
    accumulate(b);
    unread = true;
  }
  model_.finish_gradients();
  backend_.global_norm(norm_, store.grads());
  backend_.adamw(store.values(), store.adam_m(), store.adam_v(), store.grads(), norm_, params_, config.weight_decay);
  model_.refresh();
  if (unread) nll += read_scalar(backend_, nll_sum_);
  result.loss = nll * p.inv_tokens;
  result.grad_norm = read_scalar(backend_, norm_);
  return result;
}

std::pair<double, int64_t> Trainer::evaluate(const Batch& batch) {
  if (batch.real_labels == 0) return {0, 0};
  const int64_t mark = arena_.mark();
  {
    const DeviceBatch d = upload_batch(backend_, arena_, batch, params_);
    Tape tape(backend_, arena_, &model_.params(), false);
    const Tensor nll = nll_.slice_cols(0, d.labels);
    model_.loss(tape, d, nll);
    backend_.reduce_sum(nll_sum_, nll, 0);
  }
  arena_.pop_to(mark);
  return {read_scalar(backend_, nll_sum_), batch.real_labels};
}

std::vector<double> Trainer::row_losses(const Batch& batch, const KvCache* cache) {
  const int64_t mark = arena_.mark();
  std::vector<double> out(static_cast<size_t>(batch.real_labels));
  if (out.empty()) return out;
  {
    const DeviceBatch d = upload_batch(backend_, arena_, batch, params_);
    Tape tape(backend_, arena_, &model_.params(), false);
    const Tensor nll = nll_.slice_cols(0, d.labels);
    model_.row_losses(tape, d, nll, cache);
    const Tensor real = nll.slice_cols(0, batch.real_labels);
    if (real.dtype == DType::F64) {
      backend_.download(out.data(), real);
    } else {
      std::vector<float> narrow(out.size());
      backend_.download(narrow.data(), real);
      out.assign(narrow.begin(), narrow.end());
    }
  }
  arena_.pop_to(mark);
  return out;
}

std::vector<float> Trainer::logits(const Batch& batch, const KvCache* cache) {
  const int64_t mark = arena_.mark(), vocab = model_.config().vocab;
  std::vector<float> out;
  {
    const DeviceBatch d = upload_batch(backend_, arena_, batch, params_);
    const Tensor rows = arena_.push("logits", backend_.precision().master, d.labels, vocab);
    Tape tape(backend_, arena_, &model_.params(), false);
    model_.logits(tape, d, rows, cache);
    const Tensor real = rows.slice_rows(0, batch.real_labels);
    out.resize(static_cast<size_t>(real.numel()));
    if (real.dtype == DType::F64) {
      std::vector<double> wide(out.size());
      backend_.download(wide.data(), real);
      out.assign(wide.begin(), wide.end());
    } else {
      backend_.download(out.data(), real);
    }
  }
  arena_.pop_to(mark);
  return out;
}

}  // namespace irq
