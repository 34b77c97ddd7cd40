// The run itself: restore or initialise, train, evaluate, save.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <numbers>

#include "src/core/interrupt.h"
#include "src/core/progress.h"
#include "src/io/synthetic.h"
#include "src/train/finetune_run.h"

namespace irq {
namespace {

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

std::string Finetune::identity() const {
  return strf("%s bits %d rank %ld alpha %g dropout %g targets %s expand %s lr %g clip %g batch %ld seed %lu examples %zu lengths %ld/%ld/%ld schedule %s/%ld",
              o_.method.c_str(), o_.bits, o_.rank, o_.alpha, *o_.dropout, targets_text(parse_targets(o_.targets)).c_str(),
              o_.iec_expand.c_str(), *o_.lr, *o_.clip, o_.batch, o_.seed, train_.examples.size(), o_.source_len, o_.target_len,
              o_.window, o_.schedule.c_str(), o_.warmup);
}

void Finetune::restore_or_init() {
  Llama& model = trainer_->model();
  ProgressBar bar("load", 100, "%", o_.quiet);
  const ByteProgress progress = [&](int64_t done, int64_t all) { bar.update(done * 100 / std::max<int64_t>(all, 1)); };
  model.init_rope();
  if (quantized_) load_quantized(backend_, *arena_, model, *quantized_, progress);
  else if (!(method_.full && dynamic_cast<SyntheticBase*>(base_.get()))) load_base(backend_, *arena_, model, *base_, progress);
  bar.finish();
  base_hash_ = quantized_ ? quantized_->hash() : base_->hash();
  if (method_.full) {
    if (dynamic_cast<SyntheticBase*>(base_.get())) model.init_full(o_.seed);
  } else {
    model.init_adapters(o_.seed);
  }
  state_.seed = o_.seed, state_.base_hash = base_hash_, state_.identity = identity();
  if (o_.resume) {
    const TrainState saved = load_state(backend_, model.params(), out("train.state"));
    if (saved.identity != identity() || saved.base_hash != base_hash_)
      throw Error(out("train.state") + ": that run had other options")
          .line("then", saved.identity).line("now", identity()).line("base", strf("%016lx then, %016lx now", saved.base_hash, base_hash_))
          .line("try", "the options of the first run (its log.jsonl begins with them), or --overwrite");
    state_ = saved;
    loader_->seek(saved.cursor);
    note(strf("resuming after step %ld", saved.step));
  }
  model.refresh();
  log_ = std::make_unique<RunLog>(out("log.jsonl"), o_.resume, state_.step);
  log_->write("{\"command\": " + json_text(o_.command) + ", \"resolved\": " + json_text(identity()) +
              strf(", \"base\": \"%016lx\", \"device\": %s, \"steps\": %ld, \"planned_bytes\": %ld, \"trained_parameters\": %ld}", base_hash_,
                   json_text(backend_.describe()).c_str(), steps_, plan_.peak_bytes, model.params().size()));
}

double Finetune::held_out_loss(const char* label) {
  if (eval_batches_.empty()) return -1;
  ProgressBar bar(label, static_cast<int64_t>(eval_batches_.size()), "batches", o_.quiet);
  double nll = 0;
  int64_t labels = 0, done = 0;
  for (const Batch& b : eval_batches_) {
    const auto [batch_nll, batch_labels] = trainer_->evaluate(b);
    nll += batch_nll, labels += batch_labels;
    bar.update(++done);
    throw_if_interrupted();
  }
  const double loss = nll / static_cast<double>(std::max<int64_t>(labels, 1));
  bar.finish();
  log_->write(strf("{\"step\": %ld, \"held_out_loss\": %s, \"held_out_tokens\": %ld}", state_.step, json_number(loss).c_str(), labels));
  return loss;
}

double Finetune::learning_rate(int64_t step) const {
  if (step <= o_.warmup) return *o_.lr * static_cast<double>(step) / static_cast<double>(o_.warmup);
  if (o_.schedule == "constant") return *o_.lr;
  const double done = static_cast<double>(step - o_.warmup) / static_cast<double>(std::max<int64_t>(steps_ - o_.warmup, 1));
  return *o_.lr * (0.05 + 0.95 * 0.5 * (1 + std::cos(std::numbers::pi * done)));  // cosine down to 5 %
}

void Finetune::checkpoint(bool finished) {
  state_.finished = finished;
  state_.cursor = loader_->cursor();
  save_state(backend_, trainer_->model().params(), state_, out("train.state"));
}

void Finetune::train() {
  ProgressBar bar("train", steps_, "steps", o_.quiet);
  bar.restart_clock(state_.step);
  const double start = seconds_now();
  double window_start = start;
  int64_t window_tokens = 0, window_steps = 0;
  double tokens_per_second = 0;
  while (state_.step < steps_) {
    const int64_t step = state_.step + 1;
    std::vector<Batch> window;
    for (const MicroBatch& m : loader_->next()) window.push_back(m.packed());
    optimizer_.lr = learning_rate(step);
    if (o_.print_tape && step == 1) trainer_->print_next_tape();
    const StepResult r = trainer_->step(window, step, optimizer_);
    if (!std::isfinite(r.loss) || !std::isfinite(r.grad_norm))
      throw Error(strf("step %ld: the loss or the gradient is not a number", step))
          .line("found", strf("loss %g, gradient norm %g", r.loss, r.grad_norm))
          .line("likely", "NaN in the base, or a learning rate that is too high")
          .line("try", "./irq_inspect " + o_.base + "    or    --lr " + strf("%g", optimizer_.lr / 4));
    state_.step = step;
    if (o_.print_tape && step == 1) std::printf("%s", trainer_->tape_table().c_str());
    window_tokens += r.tokens, ++window_steps;
    const double now = seconds_now();
    if (now - window_start > 0.5 || step == steps_ || step == 1) {
      tokens_per_second = static_cast<double>(window_tokens) / (now - window_start);
      window_start = now, window_tokens = 0, window_steps = 0;
    }
    StepLine line{step, steps_, r.loss, r.grad_norm, optimizer_.lr, tokens_per_second, -1,
                  static_cast<double>(arena_->peak()), static_cast<double>(steps_ - step) * (now - start) / static_cast<double>(step)};
    line.eta_seconds = bar.eta_s();
    bar.update_text(step, format_step(line), step == 1 || step == steps_);
    log_->write(strf("{\"step\": %ld, \"loss\": %s, \"grad_norm\": %s, \"lr\": %s, \"tokens\": %ld, \"labels\": %ld, \"tokens_per_s\": %.1f}", step,
                     json_number(r.loss).c_str(), json_number(r.grad_norm).c_str(), json_number(optimizer_.lr).c_str(), r.tokens, r.labels,
                     tokens_per_second));
    const bool last = step == steps_;
    if (o_.eval_every > 0 && step % o_.eval_every == 0 && !last) {
      const double loss = held_out_loss("evaluate");
      bar.message(strf("step %ld: held-out loss %.4f", step, loss));
    }
    if (o_.save_every > 0 && step % o_.save_every == 0 && !last) checkpoint(false);
    if (interrupted() && !last) {
      checkpoint(false);
      bar.finish(strf("interrupted after step %ld; --resume goes on from here", step));
      throw Error("interrupted", Exit::interrupted);
    }
  }
  bar.finish(strf("%ld steps in %.1f s", steps_, seconds_now() - start));
}

void Finetune::save_result() {
  Llama& model = trainer_->model();
  if (method_.full) {
    write_model(backend_, model, out("model.bin"), o_.dtype == "f32" ? DType::F32 : o_.dtype == "f16" ? DType::F16 : DType::BF16);
  } else {
    AdapterFile a;
    a.method = o_.method, a.rank = o_.rank, a.alpha = o_.alpha, a.dropout = *o_.dropout;
    a.targets = parse_targets(o_.targets), a.tile = o_.iec_expand == "tile", a.base_hash = base_hash_;
    a.tensors = download_params(backend_, model.params());
    write_adapter(out("adapter.lora"), a);
  }
  checkpoint(true);
}

int Finetune::run() {
  install_interrupt_handler();
  open_base_file();
  resolve();
  claim_folder();
  load_examples();
  quantize();
  build();
  restore_or_init();
  if (state_.step == 0) state_.loss_before = held_out_loss("evaluate");
  if (state_.loss_before >= 0) note(strf("held-out loss before: %.4f", state_.loss_before));
  train();
  const double after = held_out_loss("evaluate");
  save_result();
  if (arena_->peak() != plan_.peak_bytes) note(strf("memory: planned %s bytes, used %s", with_commas(plan_.peak_bytes).c_str(), with_commas(arena_->peak()).c_str()));
  else note(strf("memory: the planned %s bytes were the peak", with_commas(plan_.peak_bytes).c_str()));
  if (after >= 0) std::printf("held-out loss %.4f -> %.4f (%zu examples)\n", state_.loss_before, after, held_out_.examples.size());
  std::printf("%s\n", out(method_.full ? "model.bin" : "adapter.lora").c_str());
  log_->write(strf("{\"step\": %ld, \"finished\": true, \"held_out_loss\": %s, \"peak_bytes\": %ld}", state_.step, json_number(after).c_str(), arena_->peak()));
  return 0;
}

int finetune(CheckedBackend& backend, TrainOptions options) { return Finetune(backend, std::move(options)).run(); }

}  // namespace irq
