// --method loftq: the quantized base and the adapter that LoftQ made together, or is about to make.
#include "src/train/finetune_run.h"
#include "src/train/loftq_base.h"

namespace irq {

// Before resolve(): with an .irq as BASE, rank and target modules are those of the adapter beside it.
void Finetune::open_loftq_pair() {
  if (!method_.loftq) return;
  if (!o_.init_adapter.empty())
    throw Error("--init-adapter: --method loftq starts from the adapter that LoftQ makes", Exit::usage)
        .line("try", "without --init-adapter; or --method qlora, which starts from " + o_.init_adapter);
  if (o_.alpha == 0.0 && o_.loftq_scaling == "fold")
    throw Error("--alpha 0: LoftQ's correction is divided by alpha / rank", Exit::usage)
        .line("try", "--alpha above 0, or --loftq-scaling peft");
  if (!quantized_) return;
  loftq_ = read_loftq_adapter(o_.base, quantized_->hash());
  const auto contradiction = [&](const std::string& flag, const std::string& theirs) {
    return Error(flag + ": LoftQ made " + o_.base + " with " + theirs, Exit::usage)
        .line("try", "without this flag, or the .bin as BASE");
  };
  if (o_.rank && *o_.rank != loftq_->rank)
    throw contradiction(strf("--rank %ld", *o_.rank), strf("rank %ld", loftq_->rank));
  if (o_.targets && parse_targets(*o_.targets) != loftq_->targets)
    throw contradiction("--target-modules " + *o_.targets, "adapters on " + targets_text(loftq_->targets));
  o_.rank = loftq_->rank;
  o_.targets = loftq_->targets == kAllTargets ? "all" : targets_text(loftq_->targets);
}

LoftqSpec Finetune::loftq_spec() const { return {*o_.rank, o_.loftq_iters, parse_targets(*o_.targets)}; }

bool Finetune::take_loftq_adapter(const std::string& irq_path) {
  try {
    AdapterFile a = read_loftq_adapter(irq_path, quantized_->hash());
    if (a.rank == *o_.rank && a.targets == parse_targets(*o_.targets)) {
      loftq_ = std::move(a);
      return true;
    }
    note("note: " + loftq_adapter_path(irq_path) + " is of another rank or other target modules");
  } catch (const Error& e) { note(strf("note: %s\nnote: quantizing again", e.what())); }
  return false;
}

void Finetune::upload_loftq() {
  set_loftq_scale(*loftq_, *o_.alpha, o_.loftq_scaling == "peft");
  upload_adapter(backend_, trainer_->model(), *loftq_, loftq_adapter_path(quantized_->path()));
  loftq_.reset();
}

}  // namespace irq
