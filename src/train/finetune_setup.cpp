// Before the first step: open the base, claim the folder, read the data, quantize, plan memory, build.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>

#include "src/core/disk.h"
#include "src/core/hash.h"
#include "src/core/progress.h"
#include "src/train/finetune_run.h"
#include "src/train/gptq_base.h"
#include "src/train/loftq_base.h"

namespace irq {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kPlannedExamples = 16'000'000;  // of the run's first steps, whose batches are looked at one by one

uint64_t hash_of(const std::vector<Example>& examples) {
  Hasher hasher;
  for (const Example& e : examples) {
    hasher.update(e.ids.data(), e.ids.size() * sizeof(e.ids[0]));
    hasher.update(e.trainable.data(), e.trainable.size());
  }
  return hasher.digest();
}

int64_t planned_steps(int64_t steps, int64_t batch) {
  return std::min(steps, std::max<int64_t>(kPlannedExamples / batch, 1));
}

struct PlannedSteps {
  std::vector<StepShape> shapes;
  double tokens = 0, rows = 0;  // a step's mean: of the examples, and of them those that are computed
};
PlannedSteps plan_steps(const DataLoader& loader, int64_t steps) {
  std::set<StepShape> shapes;
  PlannedSteps plan;
  loader.for_each_size(steps, [&](const BatchSize& s) {
    shapes.insert({s.rows, s.label_rows, s.sequences});
    plan.tokens += static_cast<double>(s.tokens_read) / static_cast<double>(steps);
    plan.rows += static_cast<double>(s.real_rows) / static_cast<double>(steps);
  });
  plan.shapes.assign(shapes.begin(), shapes.end());
  return plan;
}

}  // namespace

void Finetune::open_base_file() {
  const FileKind kind = sniff(o_.base);
  if (kind == FileKind::adapter)
    throw Error(o_.base + ": not " + describe(FileKind::base))
        .line("found", describe(kind))
        .line("likely", "an adapter given in the model's place")
        .line("try", "give the base model first, then --init-adapter " + shell_quoted(o_.base) + " to start from it");
  if (kind == FileKind::quantized) {
    quantized_ = std::make_unique<IrqReader>(o_.base);
    config_ = quantized_->config();
    if (!method_.quantized())
      throw Error(o_.base + ": --method " + o_.method + " needs a base that is not quantized")
          .line("try", "the .bin it was made from");
    require_base_of_method();
    if (o_.bits && *o_.bits != quantized_->format().bits)
      throw Error(strf("--bits %d: %s has %d bits", *o_.bits, o_.base.c_str(), quantized_->format().bits), Exit::usage)
          .line("try", "without --bits, or the .bin it was made from");
  } else {
    base_ = open_base(o_.base, o_.seed);
    config_ = base_->config();
  }
}

// --overwrite takes nothing that the run itself reads.
void Finetune::refuse_own_inputs() const {
  std::vector<std::string> inputs = tokenizer_paths(o_.base);
  for (const std::string& path : {o_.base, find_data(), o_.eval_data, o_.init_adapter}) inputs.push_back(path);
  if (method_.loftq && quantized_) inputs.push_back(loftq_adapter_path(o_.base));
  for (const char* name : {result_name(), method_.full ? "model.bin" : "adapter.lora", "train.state", "log.jsonl"})
    refuse_overwriting(out(name), inputs);
}

// A finished run is never overwritten by accident, an unfinished one neither.
void Finetune::claim_folder() {
  refuse_own_inputs();
  std::error_code failed;
  for (fs::path p = o_.out; !p.empty() && !fs::exists(p, failed); p = p.parent_path()) made_folders_.push_back(p);
  fs::create_directories(o_.out, failed);
  if (failed)
    throw Error(o_.out + ": the folder cannot be made").line("found", failed.message()).line("try", "another --out");
  folder_lock_ = FileLock::try_lock(out("run.lock"));
  if (!folder_lock_)
    throw Error(o_.out + ": another process is training into this folder").line("try", "another --out");
  if (o_.overwrite) return;
  const std::string state = out("train.state");
  if (file_exists(state)) saved_ = peek_state(state);
  std::string result;
  for (const char* name : {"adapter.lora", "model.bin", "model.irq"})
    if (result.empty() && file_exists(out(name))) result = out(name);
  if (!saved_ && !result.empty())  // only a state can be gone on from
    throw Error(o_.out + (o_.resume ? ": nothing to resume" : ": a finished run is there"))
        .line("found", result + ", without the train.state that --resume goes on from")
        .line("try", "--overwrite (start again), or another --out");
  if (o_.resume && !saved_)
    throw Error(o_.out + ": nothing to resume").line("expected", state).line("try", "without --resume");
  if (o_.resume) return;
  const std::string choices = "--resume (go on%s), --overwrite (start again), or another --out";
  if (saved_ && !saved_->finished)
    throw Error(o_.out + ": an unfinished run is there")
        .line("found", strf("%s, after step %s", state.c_str(), with_commas(saved_->step).c_str()))
        .line("try", strf(choices.c_str(), ""));
  if (!result.empty())
    throw Error(o_.out + ": a finished run is there")
        .line("found", result)
        .line("try", strf(choices.c_str(), ", with more --steps"));
  if (saved_)
    throw Error(o_.out + ": a finished run is there").line("found", state).line("try", strf(choices.c_str(), ""));
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

LoaderOptions Finetune::loading(int64_t micro_batch) const {
  return {o_.batch, micro_batch, o_.seed, o_.recipe == "official-script", prefixes_};
}

void Finetune::load_examples() {
  std::unique_ptr<Tokenizer> tokenizer;
  const std::string tokenizer_path = find_tokenizer(o_.base);
  if (!tokenizer_path.empty()) tokenizer = open_tokenizer(tokenizer_path, o_.legacy);
  DataOptions options{o_.source_len, o_.target_len, o_.window, 0, config_.vocab};
  const auto load = [&](const std::string& path) {
    LoadedData data = load_data(path, tokenizer.get(), options);
    note(data.describe());
    for (const std::string& w : data.warnings) note("note: " + w);
    return data;
  };
  train_ = load(find_data());
  if (!o_.eval_data.empty()) {
    held_out_ = load(o_.eval_data);
  } else {
    const auto count = static_cast<int64_t>(train_.examples.size());
    const int64_t wanted = o_.holdout ? *o_.holdout : std::min<int64_t>(1024, count / 50);
    if (wanted >= count) throw Error(strf("--holdout %ld takes all of the %ld examples", wanted, count), Exit::usage);
    if (wanted > 0) std::tie(train_, held_out_) = split_holdout(train_, wanted, o_.seed);
    else held_out_.form = train_.form;
  }
  note_long_examples();
  data_hash_ = hash_of(train_.examples);

  loader_ = std::make_unique<DataLoader>(train_.examples, loading(o_.micro_batch), train_.chars);
  steps_ = o_.steps ? *o_.steps : o_.epochs ? loader_->steps_for_epochs(*o_.epochs) : default_steps(train_.form);
  if (steps_ > INT32_MAX / o_.batch)
    throw Error(strf("--steps %ld with --batch %ld is too long", steps_, o_.batch), Exit::usage)
        .line("expected",
              strf("at most %s examples in a run: they are numbered in 32 bits", with_commas(INT32_MAX).c_str()));
}

// RoPE has an angle for every position, but a model has only seen those it was made for.
void Finetune::note_long_examples() const {
  int64_t longest = 0;
  for (const LoadedData* d : {&train_, &held_out_})
    for (const Example& e : d->examples) longest = std::max(longest, static_cast<int64_t>(e.ids.size()));
  const bool records = train_.form != DataForm::text && train_.form != DataForm::tokens;
  const int64_t allowed = records ? o_.source_len + o_.target_len : o_.window;
  const std::string limits = records ? strf("--source-len %ld and --target-len %ld", o_.source_len, o_.target_len)
                                     : strf("--window %ld", o_.window);
  if (allowed > config_.max_seq)
    note(strf("note: %s allow examples longer than the %s tokens this model was made for; the longest has %s",
              limits.c_str(), with_commas(config_.max_seq).c_str(), with_commas(longest).c_str()));
}

// What prompts that begin alike save; under dropout, what they could.
void Finetune::note_shared_prompts(double tokens, double rows) const {
  const auto text = [](double x) { return with_commas(std::llround(x)); };
  if (rows < tokens)
    note("prompts that begin alike are computed once: " + text(rows) + " rows a step for " + text(tokens) + " tokens");
  if (prefixes_ == Prefixes::shared || o_.share_prefixes != "auto") return;
  constexpr int64_t kLookedAt = 64;  // steps
  constexpr double kWorthSaying = 0.9;
  LoaderOptions options = loading(o_.micro_batch);
  options.prefixes = Prefixes::shared;
  const PlannedSteps could =
      plan_steps(DataLoader(train_.examples, options, train_.chars), std::min(steps_, kLookedAt));
  if (could.rows < kWorthSaying * could.tokens)
    note("note: prompts begin alike; --share-prefixes on would compute " + text(could.rows) + " rows a step for " +
         text(could.tokens) + " tokens, under common dropout masks");
}

// The sizes of all micro-batches of the run; the held-out examples in batches that are no larger.
void Finetune::plan_batches() {
  const int64_t planned = planned_steps(std::max<int64_t>(steps_, 1), o_.batch);
  const PlannedSteps steps = plan_steps(*loader_, planned);
  train_shapes_ = steps.shapes;
  note_shared_prompts(steps.tokens, steps.rows);
  if (steps_ > planned) {  // behind the batches looked at: the longest examples may all meet in one
    std::vector<int64_t> lengths;
    for (const Example& e : train_.examples) lengths.push_back(static_cast<int64_t>(e.ids.size()));
    std::sort(lengths.rbegin(), lengths.rend());
    int64_t rows = 0;
    for (int64_t i = 0; i < o_.micro_batch; ++i) rows += lengths[static_cast<size_t>(i) % lengths.size()];
    rows = bucketed(rows);
    train_shapes_.push_back({rows, rows, most_sequences(o_.micro_batch, prefixes_)});
  }
  int64_t most_rows = kRowBucket;
  for (const StepShape& s : train_shapes_) most_rows = std::max(most_rows, s.rows);
  most_rows = std::min<int64_t>(most_rows, 2048);
  const Prefixes prefixes =
      o_.share_prefixes == "off" ? Prefixes::own : Prefixes::shared;  // nothing is dropped out here
  std::vector<const Example*> chosen;
  int64_t rows = 0;
  const auto flush = [&] {
    if (!chosen.empty()) eval_batches_.push_back(pack(chosen, std::vector<int32_t>(chosen.size(), 0), prefixes));
    chosen.clear(), rows = 0;
  };
  for (const Example& e : held_out_.examples) {
    const int64_t length = rows_of(e);
    if (rows + length > most_rows) flush();
    chosen.push_back(&e), rows += length;
  }
  flush();
}

// What --format and --group ask for; GPTQ calibrates on the run's own training examples.
void Finetune::choose_integers(QuantizeOptions& options) const {
  options.format = base_format(*o_.format);
  options.integers.group = parse_group(*o_.group);
  if (options.format == BaseFormat::gptq)
    options.calibration =
        choose_calibration(train_.examples, kCalibrationSamples, kCalibrationLength, o_.seed, train_.path);
}

QuantizeOptions Finetune::quantize_options() const {
  QuantizeOptions options;
  options.bits = *o_.bits, options.icq = method_.icq;
  options.spec = icq_spec(o_.lambda, o_.n, o_.entropy, o_.icq);
  if (method_.loftq) options.loftq = loftq_spec();
  if (method_.requantize || base_format(*o_.format) == BaseFormat::nf) return options;
  choose_integers(options);
  if (method_.icq) {
    options.integers.search = IntSearch::clip;
    options.integers.range = o_.lambda;
    const bool given = std::find(o_.given.begin(), o_.given.end(), "--n") != o_.given.end();
    if (given) options.integers.n = o_.n;
  }
  return options;
}

// The quantized base is made once and kept beside BASE (or in --out where that folder cannot be written).
void Finetune::quantize() {
  if (!method_.quantized() || quantized_) return;
  const QuantizeOptions options = quantize_options();
  const IrqInfo info = quantized_info(*base_, options);
  const auto use_cached = [&](const std::string& path) {
    if (!file_exists(path)) return false;
    try {
      quantized_ = std::make_unique<IrqReader>(path);
      if (same_quantization(quantized_->info(), info) && (!method_.loftq || take_loftq_adapter(path))) {
        note(strf("quantized base: %s (cached), mean code entropy %.4f bits", path.c_str(),
                  quantized_->mean_entropy()[1]));
        return true;
      }
    } catch (const Error& e) { note(strf("note: %s\nnote: quantizing again", e.what())); }
    quantized_.reset();
    return false;
  };
  const std::string beside = cached_name(o_.base, info, options.loftq);
  const bool writable = ::access(parent_path(beside).c_str(), W_OK) == 0;
  if (!writable && use_cached(beside)) return;
  const std::string path = writable ? beside : o_.out + "/" + base_name(beside);
  const FileLock lock(path + ".lock", [&] { note("waiting: another process is quantizing " + o_.base); });
  if (use_cached(path)) return;
  ProgressBar bar("quantize", config_.layers * 7, "matrices", o_.quiet);
  const auto make = method_.loftq ? make_loftq_base : quantize_as_asked;
  const QuantizeSummary s = make(backend_, *base_, path, options,
                                 [&](int64_t done, int64_t, const std::string& name) { bar.update(done, name); });
  bar.finish(strf("quantized base: %s, %d bits%s, mean code entropy %.4f -> %.4f bits, %.1f s", path.c_str(), *o_.bits,
                  method_.icq ? " with ICQ" : "", s.entropy_plain, s.entropy, s.seconds));
  quantized_ = std::make_unique<IrqReader>(path);
  made_base_ = path;
  quantize_seconds_ = s.seconds;
  if (!method_.loftq) return;
  note(describe_loftq(s));
  if (!take_loftq_adapter(path)) throw Error(path + ": its adapter cannot be read back");
}

void Finetune::build() {
  std::vector<StepShape> eval_shapes;
  for (const Batch& b : eval_batches_) eval_shapes.push_back(shape_of(b));
  const int64_t free = backend_.free_bytes();
  const int64_t spare = backend_.device() == Device::CUDA ? int64_t{256} << 20 : free / 10;
  const int64_t budget = o_.memory_limit > 0 ? std::min(o_.memory_limit, free - spare) : free - spare;
  ModelPlan model = model_plan();
  PlanFreedom freedom;
  if (o_.residency != "auto") {
    freedom.residency = false;
    model.residency = o_.residency == "cached" ? Residency::cached : Residency::packed;
  }
  if (o_.recompute != "auto") {
    freedom.recompute = false;
    model.recompute = recompute_named(o_.recompute);
  }
  try {
    plan_ = choose_plan(backend_.device(), backend_.precision(), model, train_shapes_, eval_shapes, budget, freedom);
  } catch (const Error& e) { throw with_advice(e, model, budget); }
  note(describe(plan_));
  claim_memory();
  trainer_->use_graphs(o_.graphs == "on");
  require_disk();
}

// The result and the states that this run writes, told before the first step and not at the first save. An old file stays
// until its successor is whole.
void Finetune::require_disk() const {
  const auto size_of_file = [&](const char* name) {
    std::error_code absent;
    const auto bytes = fs::file_size(out(name), absent);
    return absent ? int64_t{0} : static_cast<int64_t>(bytes);
  };
  constexpr int64_t kHeaders = 64 << 10;
  const int64_t trained = trainer_->model().params().size(), state = 3 * trained * size_of(DType::F32) + kHeaders;
  const int64_t width = !method_.full || o_.dtype == "f32" ? 4 : 2;
  const int64_t result = (method_.full ? total_parameters(config_) : trained) * width + kHeaders;
  const int64_t old_result = size_of_file(method_.full ? "model.bin" : "adapter.lora");
  const bool saves_before_the_end = o_.save_every > 0 && steps_ > o_.save_every;
  const int64_t old_state = saved_ || saves_before_the_end ? 0 : size_of_file("train.state");  // removed: overwritten
  const int64_t first = saved_ || !saves_before_the_end ? 0 : state;
  const int64_t needed = first + std::max(result, state + result - old_result) - old_state;
  require_free_bytes(o_.out + ": " + (method_.full ? "model.bin" : "adapter.lora") + " and train.state", o_.out,
                     needed);
}

// The largest micro-batch that fits with everything else given up already.
Error Finetune::with_advice(Error error, const ModelPlan& model, int64_t budget) const {
  if (o_.recompute != "auto") error.line("try", "--recompute auto");
  if (method_.quantized() && o_.residency == "cached") error.line("try", "--residency auto");
  ModelPlan smallest = model;
  smallest.residency = Residency::packed;
  smallest.recompute = Recompute::block, smallest.recompute_layers = config_.layers;
  const bool masks =
      prefixes_ == Prefixes::shared && model.lora_config.dropout > 0;  // prompts of a micro-batch share them
  int64_t needed = 0;
  for (int64_t micro = (o_.micro_batch + 1) / 2; o_.micro_batch > 1; micro = (micro + 1) / 2) {
    const DataLoader loader(train_.examples, loading(micro), train_.chars);
    const auto shapes = plan_steps(loader, planned_steps(steps_, o_.batch)).shapes;
    needed = plan_memory(backend_.device(), backend_.precision(), smallest, shapes, {}).peak_bytes;
    if (needed <= budget)
      return error.line("try", strf(masks ? "--micro-batch %ld: %s" : "--micro-batch %ld: the same result, %s", micro,
                                    memory_text(needed).c_str()));
    if (micro == 1) break;
  }
  if (needed > 0) error.line("found", strf("even --micro-batch 1 needs %s", memory_text(needed).c_str()));
  std::string shrink = o_.memory_limit > 0 ? "a larger --memory-limit" : "another device";
  if (method_.lora) shrink += ", a lower --rank";
  if (method_.quantized() && *o_.bits > 2) shrink += ", fewer --bits";
  return error.line("try", shrink + ", shorter examples (--source-len, --target-len, --window)");
}

}  // namespace irq
