// What is asked for: the recipe's defaults, the resolved configuration as a command, and whether a resumed run is the same.
#include <algorithm>
#include <filesystem>
#include <sstream>

#include "src/core/ignored_flags.h"
#include "src/train/finetune_run.h"
#include "src/train/loftq_base.h"

namespace irq {
namespace {

// LLaMA-30B and larger get the paper's second column (fidelity 6.1).
bool is_large(const ModelConfig& c) { return total_parameters(c) > 20'000'000'000; }

// What a method's own authors have instead (fidelity 5.5, 5.7): QA-LoRA trains without dropout. PEQA's rate is this project's
// own: Adam moves a scale by about the rate in each step, and scales of 4 bits are near 0.01.
RecipeDefaults of_method(RecipeDefaults d, const Method& method) {
  if (method.pooled) d.dropout = 0;
  if (method.scales) d.lr = 2e-5, d.dropout = 0;
  return d;
}

bool has_records(DataForm form) { return form != DataForm::text && form != DataForm::tokens; }

}  // namespace

RecipeDefaults recipe_defaults(const std::string& recipe, const ModelConfig& config, bool full) {
  const bool official = recipe == "official-script";
  RecipeDefaults d{2e-4, 0.1, 0.3, 16, 64};
  if (full) return {1e-3, 0, 1, d.alpha, d.rank};
  if (is_large(config) && !official) d.lr = 1e-4, d.dropout = 0.05;
  if (official) d.dropout = 0;
  return d;
}

int64_t default_steps(DataForm form) { return form == DataForm::input_output ? 20'000 : 10'000; }

// --method's own format and group, unless the flags say otherwise. Of qlora-gptq both describe the model that is left at the
// end; its base is NF.
void Finetune::resolve_format() {
  if (!method_.quantized()) return;
  const std::string method = "--method " + o_.method;
  const bool given = o_.format.has_value();
  if (!given) o_.format = method_.requantize ? "gptq" : method_.format;
  const auto refuse = [&](const char* why, const char* instead) {
    throw Error(method + " with --format " + *o_.format, Exit::usage).line("likely", why).line("try", instead);
  };
  const bool nf = *o_.format == "nf";
  if (method_.loftq && !nf) refuse("LoftQ is defined on NF codes here", "--format nf");
  if (method_.requantize && nf) refuse("the model that it leaves at the end has integers", "--format gptq, or int");
  if (method_.needs_integers() && nf)
    refuse("it trains into the integers' zero points or scales", "--format int or gptq");
  if (nf) return;
  if (!o_.group) o_.group = method_.pooled ? "32" : method_.scales ? "channel" : "128";
  parse_group(*o_.group);
}

// The one place that says which flag means nothing to which method, base and data.
void Finetune::refuse_ignored_flags() const {
  const bool iec = method_.u1 || method_.u2, data_known = !train_.examples.empty();
  const bool records = has_records(train_.form) || has_records(held_out_.form);
  const bool streams = !has_records(train_.form) || !has_records(held_out_.form);
  const std::string method = "--method " + o_.method;
  refuse_ignored(
      o_.given,
      {{!method_.quantized(), {"--bits", "--residency", "--format", "--group"}, method + " leaves the base as it is"},
       {o_.format == "nf", {"--group"}, "--format nf has blocks of 64"},
       {!method_.icq, kIcqFlags, method + " has no ICQ"},
       {o_.entropy == "fp32" && o_.bits.value_or(4) != 4, {"--entropy"}, kReleasedBits},
       {!method_.loftq, {"--loftq-iters", "--loftq-scaling"}, method + " does not initialize by LoftQ"},
       {base_ == nullptr, kIcqFlags, o_.base + " is quantized already"},
       {base_ == nullptr, {"--loftq-iters", "--format", "--group"}, o_.base + " is quantized already"},
       {o_.format.value_or("nf") != "nf", kIcqNfFlags, "integers are searched with exact entropies"},
       {!method_.lora, {"--rank", "--alpha", "--dropout", "--target-modules"}, method + " has no adapters"},
       {!iec, {"--iec-expand"}, method + " has no IEC"},
       {!method_.pooled, {"--pool"}, method + " does not pool its input"},
       {!method_.pooled || !method_.u1, {"--iec-align"}, method + " does not pool IEC's input over groups"},
       {!method_.full, {"--dtype"}, method + " writes no model.bin"},
       {data_known && !records, {"--source-len", "--target-len"}, "the data has no prompts and answers"},
       {data_known && !streams, {"--window"}, "the data is neither plain text nor tokens"},
       {data_known && held_out_.examples.empty() && o_.eval_every > 0, {"--eval-every"}, "there is no held-out data"}});
  refuse_ignored(o_.given, ignored_icq_flags(icq_spec(o_.lambda, o_.n, o_.entropy, o_.icq)));
}

void Finetune::resolve() {
  const RecipeDefaults defaults = of_method(recipe_defaults(o_.recipe, config_, method_.full), method_);
  if (!o_.lr) o_.lr = defaults.lr;
  if (!o_.dropout) o_.dropout = defaults.dropout;
  if (!o_.clip) o_.clip = defaults.clip;
  if (!o_.bits) o_.bits = quantized_ ? quantized_->format().bits : 4;
  if (base_) resolve_format();
  if (o_.micro_batch == 0 || o_.micro_batch > o_.batch) o_.micro_batch = o_.batch;
  const bool masks = method_.lora && *o_.dropout > 0, shared = o_.share_prefixes == "on";
  prefixes_ = shared || (o_.share_prefixes == "auto" && !masks) ? Prefixes::shared : Prefixes::own;
  optimizer_.clip = *o_.clip;
  optimizer_.seed = o_.seed;
  if (o_.out.empty()) {
    const std::string stem = std::filesystem::path(o_.base).stem().string();
    o_.out = "runs/" + stem + "-" + o_.method + (method_.quantized() ? strf("-%dbit", *o_.bits) : "");
  }
  if (!o_.rank) o_.rank = defaults.rank;
  if (!o_.alpha) o_.alpha = defaults.alpha;
  if (!o_.targets) o_.targets = "all";
  if (!o_.iec_expand) o_.iec_expand = "interleave";
  resolve_pooling();
  const std::string rank = initial_ ? o_.init_adapter + strf(": its rank %ld does not fit", *o_.rank)
                                    : strf("--rank %ld does not fit", *o_.rank);
  if (method_.lora && *o_.rank % 8 != 0)
    throw Error(rank, Exit::usage).line("expected", "a multiple of 8: the adapters extend 16-byte aligned rows");
  const int64_t narrowest = narrowest_linear(config_);
  if (method_.lora && *o_.rank > narrowest)
    throw Error(rank, Exit::usage).line("expected", strf("at most %ld, the narrowest linear of this model", narrowest));
  if (method_.lora) parse_targets(*o_.targets);  // complains about a name that is no linear
}

std::vector<Finetune::Setting> Finetune::settings() const {
  std::vector<Setting> list;
  constexpr bool kFixed = true, kFree = false;
  const auto add = [&](const char* flag, const std::string& value, bool fixed) {
    list.push_back({flag, value, fixed});
  };
  const auto number = [](int64_t n) { return std::to_string(n); };
  add("--data", train_.path, kFree);  // its examples are compared instead
  if (!o_.eval_data.empty()) add("--eval-data", o_.eval_data, kFree);
  else add("--holdout", number(static_cast<int64_t>(held_out_.examples.size())), kFree);
  add("--method", o_.method, kFixed);
  if (method_.quantized()) {
    add("--bits", number(*o_.bits), kFixed);
    if (base_ && o_.format) {
      if (*o_.format != method_.format || method_.requantize) add("--format", *o_.format, kFixed);
      if (o_.group) add("--group", *o_.group, kFixed);
    }
    if (method_.icq && base_) {
      add("--lambda", json_number(o_.lambda), kFree);  // the quantized base is compared instead
      if (o_.icq.search == "grid") add("--n", number(o_.n), kFree);
      add("--entropy", o_.entropy, kFree);
      const IcqWords paper;
      if (o_.icq.ties != paper.ties) add("--icq-ties", o_.icq.ties, kFree);
      if (o_.icq.search != paper.search) add("--icq-search", o_.icq.search, kFree);
      if (o_.icq.width != paper.width) add("--icq-width", o_.icq.width, kFree);
      if (o_.icq.candidates != paper.candidates) add("--icq-candidates", o_.icq.candidates, kFree);
      if (o_.icq.consistent) add("--icq-consistent", "", kFree);
    }
  }
  if (method_.loftq && base_) add("--loftq-iters", number(o_.loftq_iters), kFixed);
  if (method_.loftq) add("--loftq-scaling", o_.loftq_scaling, kFixed);
  add("--recipe", o_.recipe, kFixed);
  add("--steps", number(steps_), kFree);
  add("--batch", number(o_.batch), kFixed);
  // The same sums in another order; but what prompts share a dropout mask depends on both.
  const bool shared_masks = prefixes_ == Prefixes::shared && method_.lora && *o_.dropout > 0;
  add("--micro-batch", number(o_.micro_batch), shared_masks);
  add("--share-prefixes", o_.share_prefixes, shared_masks);
  add("--lr", json_number(*o_.lr), kFixed);
  add("--warmup", number(o_.warmup), kFixed);
  add("--schedule", o_.schedule, kFixed);
  add("--clip", json_number(*o_.clip), kFixed);
  if (method_.lora) {
    if (initial_) add("--init-adapter", o_.init_adapter, kFree);  // its content is compared instead
    add("--rank", number(*o_.rank), kFixed);
    add("--alpha", json_number(*o_.alpha), kFixed);
    add("--dropout", json_number(*o_.dropout), kFixed);
    const uint32_t targets = parse_targets(*o_.targets);
    add("--target-modules", targets == kAllTargets ? "all" : targets_text(targets), kFixed);
    if (method_.u1 || method_.u2) add("--iec-expand", *o_.iec_expand, kFixed);
    if (method_.pooled) add("--pool", *o_.pool, kFixed);
    if (method_.pooled && method_.u1) add("--iec-align", *o_.iec_align, kFixed);
  }
  if (has_records(train_.form) || has_records(held_out_.form)) {
    add("--source-len", number(o_.source_len), kFree);  // the examples say what was cut
    add("--target-len", number(o_.target_len), kFree);
  }
  if (!has_records(train_.form) || !has_records(held_out_.form)) add("--window", number(o_.window), kFree);
  if (o_.legacy) add("--legacy", *o_.legacy ? "on" : "off", kFree);  // the examples' ids are compared
  add("--seed", std::to_string(o_.seed), kFixed);
  if (o_.memory_limit > 0) add("--memory-limit", number(o_.memory_limit), kFree);
  add("--recompute", o_.recompute, kFree);
  if (method_.quantized()) add("--residency", o_.residency, kFree);
  add("--tune-matmul", o_.tune_matmul, kFree);
  add("--graphs", o_.graphs, kFree);
  if (method_.full) add("--dtype", o_.dtype, kFree);
  add("--eval-every", number(o_.eval_every), kFree);
  add("--save-every", number(o_.save_every), kFree);
  add("--out", o_.out, kFree);
  add("--device", backend_.device() == Device::CUDA ? "cuda" : "cpu", kFree);
  return list;
}

// One line per thing that must agree, "flag value".
std::string Finetune::identity() const {
  std::string text;
  for (const Setting& s : settings())
    if (s.fixed) text += s.flag + " " + s.value + "\n";
  if (initial_) text += strf("init-adapter %016lx\n", initial_->hash);
  return text + strf("data %016lx (%s examples)\n", data_hash_,
                     with_commas(static_cast<long long>(train_.examples.size())).c_str());
}

std::string Finetune::command_again() const {
  std::string text = "./irq_train " + shell_quoted(o_.base);
  for (const Setting& s : settings()) text += " " + s.flag + (s.value.empty() ? "" : " " + shell_quoted(s.value));
  return text;
}

void Finetune::require_same_options() const {
  if (!saved_) return;
  const auto lines = [](const std::string& text) {
    std::vector<std::string> all;
    std::istringstream in(text);
    for (std::string line; std::getline(in, line);) all.push_back(line);
    return all;
  };
  const std::vector<std::string> then = lines(saved_->identity), now = lines(identity());
  Error error(out("train.state") + ": that run had other options");
  bool differs = false;
  const auto missing = [&](const char* label, const std::vector<std::string>& from,
                           const std::vector<std::string>& in) {
    for (const std::string& line : from) {
      if (std::find(in.begin(), in.end(), line) != in.end()) continue;
      error.line(label, line);
      differs = true;
    }
  };
  missing("then", then, now);
  missing("now", now, then);
  if (differs)
    throw error.line("try", "the options of the first run (" + out("log.jsonl") + " begins with them), or --overwrite");
  if (steps_ < saved_->step)
    throw Error(strf("--steps %ld: the run has done %ld steps already", steps_, saved_->step), Exit::usage)
        .line("try", strf("--steps with more than %ld, or --overwrite", saved_->step));
}

void Finetune::require_same_base() const {
  if (!saved_ || saved_->base_hash == base_hash_) return;
  std::error_code ignored;
  if (!made_base_.empty()) std::filesystem::remove(made_base_, ignored);  // made to compare it: nobody asked for it
  if (!made_base_.empty() && method_.loftq) std::filesystem::remove(loftq_adapter_path(made_base_), ignored);
  throw Error(out("train.state") + ": that run had another base")
      .line("then", strf("%016lx", saved_->base_hash))
      .line("now", strf("%016lx (%s)", base_hash_, o_.base.c_str()))
      .line("try", "the base of the first run (" + out("log.jsonl") + " begins with it), or --overwrite");
}

}  // namespace irq
