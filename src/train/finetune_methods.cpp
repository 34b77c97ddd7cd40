// What a method asks of its base, and what it trains there.
#include "src/train/finetune_run.h"

namespace irq {

// Of a base that is quantized already.
void Finetune::require_base_of_method() const {
  if (method_.requantize)
    throw Error(o_.base + ": --method " + o_.method + " needs a base that is not quantized")
        .line("likely", "the adapter is merged into the 16-bit weights, and those are quantized again")
        .line("try", "the .bin it was made from");
  const auto foreign = [&](const std::string& expected, const std::string& found) {
    return Error(o_.base + ": this base does not belong to --method " + o_.method)
        .line("expected", expected)
        .line("found", found);
  };
  const QuantFormat& f = quantized_->format();
  const bool integers = f.kind == QuantKind::integer;
  if (method_.needs_integers() && !integers)
    throw foreign("an integer base: its groups are what this method works on", strf("NF%d codes", f.bits))
        .line("try", "the .bin it was made from: --format and --group say what becomes of it");
  if (method_.loftq && integers)
    throw foreign("NF codes", strf("INT%d codes", f.bits)).line("try", "the .bin it was made from");
  const bool searched = integers ? quantized_->info().integers.search != IntSearch::none : f.shift == ShiftKind::tau;
  if (searched == method_.icq) return;
  std::string other;
  for (const Method& m : methods())
    if (m.quantized() && m.icq == searched && m.needs_integers() == method_.needs_integers() && !m.requantize &&
        !m.loftq)
      other += other.empty() ? m.name : std::string(" or ") + m.name;
  throw foreign(method_.icq ? "quantized with ICQ" : "quantized without ICQ",
                searched ? "quantized with ICQ" : "quantized without ICQ")
      .line("try", "--method " + other + ", or quantize the .bin with " + (searched ? "--no-icq" : "--icq"));
}

// What A sees: QA-LoRA takes the mean (its paper and code), IR-QLoRA's code the sum (fidelity 5.5, 5.6).
void Finetune::resolve_pooling() {
  if (!o_.pool) o_.pool = method_.u1 || method_.u2 ? "sum" : "mean";
  if (!o_.iec_align) o_.iec_align = "raw";
}

// The conventions of the adapter to start from; flags that are given must say the same.
void Finetune::take_pooling(const AdapterFile& initial) {
  if (initial.pool.on() != method_.pooled) {
    Error error(o_.init_adapter + ": this adapter does not belong to --method " + o_.method);
    if (method_.pooled)
      throw error.line("expected", "A on the input pooled over the base's groups")
          .line("found", "A on the input itself")
          .line("try", "an adapter of qa-lora or ir-qa-lora, or another --method");
    throw error.line("expected", "A on the input itself")
        .line("found", "A on the input pooled over groups")
        .line("try", "./irq_export MODEL --adapter A --peft DIR    then    --init-adapter DIR: it expands A");
  }
  if (!method_.pooled) return;
  const auto agree = [&](const char* flag, std::optional<std::string>& ours, const std::string& theirs) {
    if (ours && *ours != theirs)
      throw Error(std::string(flag) + " " + *ours + ": " + o_.init_adapter + " has " + theirs, Exit::usage)
          .line("try", "without this flag, or without --init-adapter");
    ours = theirs;
  };
  agree("--pool", o_.pool, name_of(initial.pool.kind));
  if (initial_->uses_beta1) agree("--iec-align", o_.iec_align, initial.pool.aligned ? "group" : "raw");
}

ModelPlan Finetune::model_plan() const {
  ModelPlan p;
  p.config = config_;
  p.quantized = method_.quantized();
  if (quantized_) p.format = quantized_->format();
  p.full = method_.full, p.lora = method_.lora, p.scales = method_.scales, p.training = true;
  p.pad_row = !method_.full && o_.recipe == "official-script";
  p.lora_config = {*o_.rank,
                   *o_.alpha,
                   *o_.dropout,
                   method_.lora ? parse_targets(*o_.targets) : 0,
                   method_.u1,
                   method_.u2,
                   *o_.iec_expand == "tile"};
  if (method_.pooled) p.lora_config.pool = {parse_pool(*o_.pool), p.format.group, *o_.iec_align == "group"};
  for (const LoadedData* d : {&train_, &held_out_})
    for (const Example& e : d->examples) p.positions = std::max(p.positions, static_cast<int64_t>(e.ids.size()));
  return p;
}

// Everything of the adapter's file but its tensors.
AdapterFile Finetune::result_header() const {
  AdapterFile a;
  a.method = o_.method, a.base_hash = base_hash_;
  a.targets = kAllTargets;
  if (method_.scales) return a;
  a.rank = *o_.rank, a.alpha = *o_.alpha, a.dropout = *o_.dropout;
  a.targets = parse_targets(*o_.targets), a.tile = *o_.iec_expand == "tile";
  a.pool = plan_.model.lora_config.pool;
  return a;
}

}  // namespace irq
