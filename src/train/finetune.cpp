#include "src/train/finetune.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>

#include "src/core/file.h"
#include "src/core/interrupt.h"
#include "src/core/progress.h"
#include "src/io/load_model.h"
#include "src/io/synthetic.h"
#include "src/text/instruct.h"
#include "src/text/loader.h"
#include "src/train/memory_plan.h"
#include "src/train/quantize_base.h"
#include "src/train/run_record.h"

namespace irq {
namespace {

namespace fs = std::filesystem;

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// LLaMA-30B and larger get the paper's second column (fidelity 6.1).
bool is_large(const ModelConfig& c) { return total_parameters(c) > 20'000'000'000; }

class Finetune {
 public:
  Finetune(CheckedBackend& backend, TrainOptions options)
      : backend_(backend), o_(std::move(options)), method_(find_method(o_.method)) {}
  int run();

 private:
  void note(const std::string& text) const {
    if (!o_.quiet) std::fprintf(stderr, "%s\n", text.c_str());
  }
  void open_base_file();
  void resolve();
  void claim_folder();
  std::string find_data() const;
  void load_examples();
  void quantize();
  ModelPlan model_plan() const;
  void build();
  void restore_or_init();
  double held_out_loss(const char* label);
  double learning_rate(int64_t step) const;
  void train();
  void checkpoint(bool finished);
  void save_result();
  std::string identity() const;
  std::string out(const char* name) const { return o_.out + "/" + name; }

  CheckedBackend& backend_;
  TrainOptions o_;
  const Method& method_;
  ModelConfig config_;
  std::unique_ptr<BaseSource> base_;       // a plain base ...
  std::unique_ptr<IrqReader> quantized_;   // ... or a quantized one
  uint64_t base_hash_ = 0;
  int64_t steps_ = 0;
  LoadedData train_, held_out_;
  std::vector<Batch> eval_batches_;
  std::unique_ptr<DataLoader> loader_;
  MemoryPlan plan_;
  void* memory_ = nullptr;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<Trainer> trainer_;
  std::unique_ptr<RunLog> log_;
  OptimizerConfig optimizer_;
  TrainState state_;

 public:
  ~Finetune() {
    trainer_.reset();
    if (memory_) backend_.release(memory_);
  }
};

void Finetune::open_base_file() {
  const FileKind kind = sniff(o_.base);
  if (kind == FileKind::quantized) {
    quantized_ = std::make_unique<IrqReader>(o_.base);
    config_ = quantized_->config();
    if (!method_.quantized)
      throw Error(o_.base + ": --method " + o_.method + " needs a base that is not quantized").line("try", "the .bin it was made from");
    const bool has_tau = quantized_->format().shift == ShiftKind::tau;
    if (has_tau != method_.icq)
      throw Error(o_.base + ": this base does not belong to --method " + o_.method)
          .line("expected", method_.icq ? "quantized with ICQ" : "quantized without ICQ")
          .line("found", has_tau ? "quantized with ICQ" : "quantized without ICQ")
          .line("try", has_tau ? "--method ir-qlora or icq, or quantize the .bin with --no-icq" : "--method iec or qlora, or quantize the .bin with --icq");
    o_.bits = quantized_->format().bits;
  } else {
    base_ = open_base(o_.base, o_.seed);
    config_ = base_->config();
  }
}

void Finetune::resolve() {
  const bool official = o_.recipe == "official-script";
  if (!o_.lr) o_.lr = method_.full ? 1e-3 : is_large(config_) && !official ? 1e-4 : 2e-4;
  if (!o_.dropout) o_.dropout = method_.full || official ? 0.0 : is_large(config_) ? 0.05 : 0.1;
  if (!o_.clip) o_.clip = method_.full ? 1.0 : 0.3;
  if (o_.micro_batch == 0) o_.micro_batch = o_.batch;
  optimizer_.clip = *o_.clip;
  optimizer_.seed = o_.seed;
  if (o_.out.empty()) {
    const std::string stem = fs::path(o_.base).stem().string();
    o_.out = "runs/" + stem + "-" + o_.method + (method_.quantized ? strf("-%dbit", o_.bits) : "");
  }
  if (method_.lora && o_.rank % 8 != 0)
    throw Error(strf("--rank %ld does not fit", o_.rank), Exit::usage).line("expected", "a multiple of 8: the adapters extend 16-byte aligned rows");
  const int64_t narrowest = std::min({config_.dim, config_.kv_width(), config_.ffn});
  if (method_.lora && o_.rank > narrowest)
    throw Error(strf("--rank %ld does not fit", o_.rank), Exit::usage)
        .line("expected", strf("at most %ld, the narrowest linear of this model", narrowest));
}

// A finished run is never overwritten by accident, an unfinished one neither.
void Finetune::claim_folder() {
  std::error_code failed;
  fs::create_directories(o_.out, failed);
  if (failed) throw Error(o_.out + ": the folder cannot be made").line("found", failed.message()).line("try", "another --out");
  const std::string state = out("train.state");
  if (o_.resume && !file_exists(state)) throw Error(o_.out + ": nothing to resume").line("expected", state).line("try", "without --resume");
  if (o_.resume || o_.overwrite) return;
  const bool finished = file_exists(out("adapter.lora")) || file_exists(out("model.bin"));
  if (finished || file_exists(state))
    throw Error(o_.out + (finished ? ": a finished run is there" : ": an unfinished run is there"), Exit::run_time)
        .line("try", "--resume (go on, with more --steps), --overwrite (start again), or another --out");
}

std::string Finetune::find_data() const {
  if (!o_.data.empty()) return o_.data;
  const fs::path folder = fs::path(o_.base).parent_path();
  for (const char* name : {"train.json", "train.jsonl", "alpaca_data.json", "data.json", "data.jsonl"})
    if (fs::exists(folder / name)) return (folder / name).string();
  throw Error("no training data", Exit::usage)
      .line("expected", "--data FILE, or train.json beside " + o_.base)
      .line("forms", "Alpaca JSON or JSONL, input/output JSONL, chat messages, plain text, llm.c token files");
}

void Finetune::load_examples() {
  std::unique_ptr<Tokenizer> tokenizer;
  const std::string tokenizer_path = find_tokenizer(o_.base);
  if (!tokenizer_path.empty()) tokenizer = open_tokenizer(tokenizer_path);
  DataOptions options{o_.source_len, o_.target_len, o_.window, 0, config_.vocab};
  train_ = load_data(find_data(), tokenizer.get(), options);
  note(train_.describe());
  if (!o_.eval_data.empty()) {
    held_out_ = load_data(o_.eval_data, tokenizer.get(), options);
    note(held_out_.describe());
  } else {
    const auto count = static_cast<int64_t>(train_.examples.size());
    const int64_t wanted = o_.holdout ? *o_.holdout : std::min<int64_t>(1024, count / 50);
    if (wanted >= count) throw Error(strf("--holdout %ld takes all of the %ld examples", wanted, count), Exit::usage);
    if (wanted > 0) std::tie(train_, held_out_) = split_holdout(train_, wanted, o_.seed);
  }
  for (const std::string& w : train_.warnings) note("note: " + w);

  LoaderOptions loading{o_.batch, o_.micro_batch, o_.seed, o_.recipe == "official-script"};
  loader_ = std::make_unique<DataLoader>(train_.examples, loading, train_.chars);
  const bool flan = train_.form == DataForm::input_output;
  steps_ = o_.steps ? *o_.steps : o_.epochs ? loader_->steps_for_epochs(*o_.epochs) : flan ? 20000 : 10000;

  constexpr int64_t kEvalRows = 2048;
  std::vector<const Example*> chosen;
  int64_t rows = 0;
  const auto flush = [&] {
    if (!chosen.empty()) eval_batches_.push_back(pack(chosen, std::vector<int32_t>(chosen.size(), 0)));
    chosen.clear(), rows = 0;
  };
  for (const Example& e : held_out_.examples) {
    const auto length = static_cast<int64_t>(e.ids.size());
    if (rows + length > kEvalRows) flush();
    chosen.push_back(&e), rows += length;
  }
  flush();
}

// The quantized base is made once and kept beside BASE (or in --out where that folder cannot be written).
void Finetune::quantize() {
  if (!method_.quantized || quantized_) return;
  QuantizeOptions options;
  options.bits = o_.bits, options.icq = method_.icq;
  options.spec.lambda = o_.lambda, options.spec.n = o_.n, options.spec.fp32_entropy = o_.entropy == "fp32";
  const IrqInfo info = quantized_info(*base_, options);
  const std::string beside = cached_name(o_.base, info);
  const std::string folder = parent_path(beside);
  const bool writable = ::access(folder.c_str(), W_OK) == 0;
  const std::string path = writable ? beside : o_.out + "/" + base_name(beside);
  const FileLock lock(path + ".lock", [&] { note("waiting: another process is quantizing " + o_.base); });
  if (file_exists(path)) {
    quantized_ = std::make_unique<IrqReader>(path);
    if (same_quantization(quantized_->info(), info)) {
      const auto entropy = quantized_->mean_entropy();
      note(strf("quantized base: %s (cached), mean code entropy %.4f bits", path.c_str(), entropy[1]));
      return;
    }
    quantized_.reset();
  }
  ProgressBar bar("quantize", config_.layers * 7, "matrices", o_.quiet);
  const QuantizeSummary s = quantize_base(backend_, *base_, path, options, [&](int64_t done, int64_t, const std::string& name) { bar.update(done, name); });
  bar.finish(strf("quantized base: %s, %d bits%s, mean code entropy %.4f -> %.4f bits, %.1f s", path.c_str(), o_.bits,
                  method_.icq ? " with ICQ" : "", s.entropy_plain, s.entropy, s.seconds));
  quantized_ = std::make_unique<IrqReader>(path);
}

ModelPlan Finetune::model_plan() const {
  ModelPlan p;
  p.config = config_;
  p.quantized = method_.quantized;
  if (quantized_) p.format = quantized_->format();
  p.full = method_.full, p.lora = method_.lora, p.training = true;
  p.lora_config = {o_.rank, o_.alpha, *o_.dropout, parse_targets(o_.targets), method_.u1, method_.u2, o_.iec_expand == "tile"};
  int64_t longest = 0;
  for (const LoadedData* d : {&train_, &held_out_})
    for (const Example& e : d->examples) longest = std::max(longest, static_cast<int64_t>(e.ids.size()));
  p.positions = longest;
  if (longest > config_.max_seq)
    note(strf("note: examples have up to %ld tokens, the model was made for %ld", longest, config_.max_seq));
  return p;
}

void Finetune::build() {
  std::vector<StepShape> train_shapes, eval_shapes;
  for (const BatchSize& s : loader_->sizes(std::min<int64_t>(steps_, 20000)))
    train_shapes.push_back({s.rows, s.label_rows, o_.micro_batch});
  for (const Batch& b : eval_batches_) eval_shapes.push_back(shape_of(b));
  const int64_t free = backend_.free_bytes();
  const int64_t spare = backend_.device() == Device::CUDA ? int64_t{256} << 20 : free / 10;
  const int64_t budget = o_.memory_limit > 0 ? std::min(o_.memory_limit, free - spare) : free - spare;
  ModelPlan model = model_plan();
  PlanFreedom freedom;
  if (o_.residency != "auto") freedom.residency = false, model.residency = o_.residency == "cached" ? Residency::cached : Residency::packed;
  if (o_.recompute != "auto") {
    freedom.recompute = false;
    model.recompute = o_.recompute == "none" ? Recompute::none : o_.recompute == "gate_up" ? Recompute::gate_up : Recompute::block;
  }
  plan_ = choose_plan(backend_.device(), backend_.precision(), model, train_shapes, eval_shapes, budget, freedom);
  note(describe(plan_));
  memory_ = backend_.allocate(plan_.peak_bytes);
  arena_ = std::make_unique<Arena>(memory_, plan_.peak_bytes, backend_.device());
  trainer_ = std::make_unique<Trainer>(backend_, *arena_, plan_.model, plan_.max_labels);
}

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
    else for (const Tensor& t : {model.params().adam_m(), model.params().adam_v()}) backend_.fill(t, 0);
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
  return *o_.lr * (0.05 + 0.95 * 0.5 * (1 + std::cos(3.14159265358979323846 * done)));  // cosine down to 5 %
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

}  // namespace

int finetune(CheckedBackend& backend, TrainOptions options) { return Finetune(backend, std::move(options)).run(); }

}  // namespace irq
