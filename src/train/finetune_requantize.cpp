// --method qlora-gptq: the trained adapter merged into the 16-bit base, and that quantized to integers.
#include "src/core/hash.h"
#include "src/core/progress.h"
#include "src/io/adapter_fold.h"
#include "src/io/float_pieces.h"
#include "src/train/finetune_run.h"
#include "src/train/gptq_base.h"

namespace irq {
namespace {

// A base whose adapted linears are W + s B A in f32: one of them in memory at a time.
class MergedBase final : public BaseSource {
 public:
  MergedBase(BaseSource& base, const std::string& adapter) : base_(base), adapter_(adapter) {
    config_ = base.config(), dtype_ = base.dtype();
    const uint64_t parts[2] = {base.hash(), adapter_.file().hash()};
    Hasher hasher;
    hasher.update(parts, sizeof parts);
    hash_ = hasher.digest();
  }
  uint64_t hash() const override { return hash_; }
  const std::string& path() const override { return base_.path(); }
  const Layout& layout() const override { return base_.layout(); }
  void dont_need(const std::string& name) override { base_.dont_need(name); }
  Tensor tensor(const std::string& name) override {
    const Tensor w = base_.tensor(name);
    LinearShape shape{};
    const int64_t index = linear_index(config_, name, &shape);
    if (index < 0 || !(adapter_.info().targets >> (index % 7) & 1u)) return w;
    const FoldedAdapter f = fold_adapter(adapter_, name, shape);
    const float scale = static_cast<float>(adapter_.info().alpha / static_cast<double>(f.rank));
    merged_.resize(static_cast<size_t>(w.numel()));
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < w.rows; ++row) {
      float* to = merged_.data() + row * w.cols;
      product_row(f, row, w.cols, scale, to);
      for (int64_t i = 0; i < w.cols; ++i) to[i] += value_at(w.data, w.dtype, row * w.cols + i);
    }
    return make_view(merged_.data(), DType::F32, w.rows, w.cols, w.name);
  }

 private:
  BaseSource& base_;
  AdapterReader adapter_;
  uint64_t hash_ = 0;
  std::vector<float> merged_;
};

}  // namespace

double Finetune::requantize() {
  ModelPlan plan = model_plan();
  release_memory();
  QuantizeOptions options;
  options.bits = *o_.bits, options.icq = false;
  choose_integers(options);
  MergedBase merged(*base_, out("adapter.lora"));
  const std::string path = out("model.irq");
  ProgressBar bar("merge and quantize", config_.layers * 7, "matrices", o_.quiet);
  const QuantizeSummary s = quantize_as_asked(
      backend_, merged, path, options, [&](int64_t done, int64_t, const std::string& name) { bar.update(done, name); });
  requantize_seconds_ = s.seconds;
  bar.finish(strf("merged and quantized: %s, %d bits, %.1f s", path.c_str(), *o_.bits, s.seconds));
  if (const std::string carried = carry_tokenizer(o_.base, path); !carried.empty()) note(carried);
  if (eval_batches_.empty()) return -1;

  // Its held-out loss, on a model built for that alone.
  quantized_ = std::make_unique<IrqReader>(path);
  plan.format = quantized_->format(), plan.lora = plan.training = false;
  std::vector<StepShape> shapes;
  for (const Batch& b : eval_batches_) shapes.push_back(shape_of(b));
  const int64_t free = backend_.free_bytes();
  plan_ = choose_plan(backend_.device(), backend_.precision(), plan, {}, shapes, free - free / 10, {});
  claim_memory();
  trainer_->model().init_rope();
  load_quantized(backend_, *arena_, trainer_->model(), *quantized_, {});
  return held_out_loss();
}

}  // namespace irq
