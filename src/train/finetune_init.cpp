// --init-adapter: the adapter that training starts from.
#include "src/io/adapter_base.h"
#include "src/train/finetune_run.h"

namespace irq {

// Before resolve(): rank, alpha and target modules come from the adapter; flags that are given must say the same.
void Finetune::open_init_adapter() {
  if (o_.init_adapter.empty()) return;
  if (!method_.lora && !method_.scales)
    throw Error("--init-adapter: --method " + o_.method + " has no adapter", Exit::usage)
        .line("try", "another --method, such as ir-qlora");
  initial_ = read_initial_adapter(o_.init_adapter, config_);
  AdapterFile& a = initial_->adapter;
  if (method_.scales != a.trains_scales())
    throw Error(o_.init_adapter + ": this adapter does not belong to --method " + o_.method)
        .line("expected", method_.scales ? "the scales of an integer base (peqa)" : "A and B of linears")
        .line("found", initial_->description);
  take_pooling(a);
  if (method_.scales) return note("starts from " + o_.init_adapter + ": " + initial_->description);
  const auto contradiction = [&](const std::string& flag, const std::string& theirs) {
    return Error(flag + ": " + o_.init_adapter + " has " + theirs, Exit::usage)
        .line("try", "without this flag, or without --init-adapter");
  };
  if (o_.rank && *o_.rank != a.rank) throw contradiction(strf("--rank %ld", *o_.rank), strf("rank %ld", a.rank));
  if (o_.alpha && *o_.alpha != a.alpha) throw contradiction(strf("--alpha %g", *o_.alpha), strf("alpha %g", a.alpha));
  if (o_.targets && parse_targets(*o_.targets) != a.targets)
    throw contradiction("--target-modules " + *o_.targets, "adapters on " + targets_text(a.targets));
  o_.rank = a.rank, o_.alpha = a.alpha;
  o_.targets = a.targets == kAllTargets ? "all" : targets_text(a.targets);

  if ((initial_->uses_beta1 && !method_.u1) || (initial_->uses_beta2 && !method_.u2))
    throw Error(o_.init_adapter + ": this adapter has IEC's betas, which --method " + o_.method + " has no place for")
        .line("expected", "a method with IEC: ir-qlora, iec, iec-u1 (beta1), iec-u2 (beta2)")
        .line("try", "such a method, or fold them into A and B: ./irq_export MODEL --adapter A --peft DIR");
  std::erase_if(a.tensors, [&](const NamedArray& t) {
    return (!method_.u1 && t.name.ends_with(".beta1")) || (!method_.u2 && t.name.ends_with(".beta2"));
  });
  if (initial_->uses_beta1 || initial_->uses_beta2) {
    const std::string expand = a.tile ? "tile" : "interleave";
    if (o_.iec_expand && *o_.iec_expand != expand)
      throw contradiction("--iec-expand " + *o_.iec_expand, "betas trained with " + expand);
    o_.iec_expand = expand;
  }
  note("starts from " + o_.init_adapter + ": " + initial_->description);
}

void Finetune::require_init_base() const {
  if (!initial_) return;
  if (!initial_->knows_base)
    return note("note: " + o_.init_adapter + " does not say which base it was trained on; this is taken on trust");
  const std::string path = quantized_ ? quantized_->path() : o_.base;
  require_adapter_base({path, base_hash_, quantized_ != nullptr, quantized_ ? quantized_->source_hash() : 0},
                       initial_->adapter.base_hash, o_.init_adapter);
}

}  // namespace irq
