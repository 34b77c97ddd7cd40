// Before the first step: open the base, fill the options from the recipe, read the data, quantize, plan memory, build.
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "src/core/file.h"
#include "src/core/progress.h"
#include "src/io/synthetic.h"
#include "src/train/finetune_run.h"
#include "src/train/quantize_base.h"

namespace irq {
namespace {

namespace fs = std::filesystem;

// LLaMA-30B and larger get the paper's second column (fidelity 6.1).
bool is_large(const ModelConfig& c) { return total_parameters(c) > 20'000'000'000; }

}  // namespace

void Finetune::open_base_file() {
  const FileKind kind = sniff(o_.base);
  if (kind == FileKind::quantized) {
    quantized_ = std::make_unique<IrqReader>(o_.base);
    config_ = quantized_->config();
    if (!method_.quantized)
      throw Error(o_.base + ": --method " + o_.method + " needs a base that is not quantized")
          .line("try", "the .bin it was made from");
    const bool has_tau = quantized_->format().shift == ShiftKind::tau;
    if (has_tau != method_.icq)
      throw Error(o_.base + ": this base does not belong to --method " + o_.method)
          .line("expected", method_.icq ? "quantized with ICQ" : "quantized without ICQ")
          .line("found", has_tau ? "quantized with ICQ" : "quantized without ICQ")
          .line("try", has_tau ? "--method ir-qlora or icq, or quantize the .bin with --no-icq"
                               : "--method iec or qlora, or quantize the .bin with --icq");
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
    throw Error(strf("--rank %ld does not fit", o_.rank), Exit::usage)
        .line("expected", "a multiple of 8: the adapters extend 16-byte aligned rows");
  const int64_t narrowest = std::min({config_.dim, config_.kv_width(), config_.ffn});
  if (method_.lora && o_.rank > narrowest)
    throw Error(strf("--rank %ld does not fit", o_.rank), Exit::usage)
        .line("expected", strf("at most %ld, the narrowest linear of this model", narrowest));
}

// A finished run is never overwritten by accident, an unfinished one neither.
void Finetune::claim_folder() {
  std::error_code failed;
  fs::create_directories(o_.out, failed);
  if (failed)
    throw Error(o_.out + ": the folder cannot be made").line("found", failed.message()).line("try", "another --out");
  const std::string state = out("train.state");
  if (o_.resume && !file_exists(state))
    throw Error(o_.out + ": nothing to resume").line("expected", state).line("try", "without --resume");
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
  const QuantizeSummary s = quantize_base(
      backend_, *base_, path, options, [&](int64_t done, int64_t, const std::string& name) { bar.update(done, name); });
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
  p.lora_config = {
      o_.rank, o_.alpha, *o_.dropout, parse_targets(o_.targets), method_.u1, method_.u2, o_.iec_expand == "tile"};
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
  if (o_.residency != "auto")
    freedom.residency = false, model.residency = o_.residency == "cached" ? Residency::cached : Residency::packed;
  if (o_.recompute != "auto") {
    freedom.recompute = false;
    model.recompute = o_.recompute == "none"      ? Recompute::none
                      : o_.recompute == "gate_up" ? Recompute::gate_up
                                                  : Recompute::block;
  }
  plan_ = choose_plan(backend_.device(), backend_.precision(), model, train_shapes, eval_shapes, budget, freedom);
  note(describe(plan_));
  memory_ = backend_.allocate(plan_.peak_bytes);
  arena_ = std::make_unique<Arena>(memory_, plan_.peak_bytes, backend_.device());
  trainer_ = std::make_unique<Trainer>(backend_, *arena_, plan_.model, plan_.max_labels);
}

}  // namespace irq
