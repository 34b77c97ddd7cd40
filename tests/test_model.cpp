// Whole-model checks, on the CPU: the calculus by finite differences in F64, and everything that must not change a result.
#include <gtest/gtest.h>

#include "kernels/cpu.h"
#include "src/io/load_model.h"
#include "src/io/synthetic.h"
#include "tests/model_gradients.h"

namespace irq {
namespace {

TEST(ModelGradients, IrQlora) { check_gradients(tiny_plan(true)); }
TEST(ModelGradients, IrQloraWithDropout) { check_gradients(tiny_plan(true, 0.25)); }
TEST(ModelGradients, DropoutWithoutPooledBranch) {  // beta1 is not there, the rows it would fold into stay zero
  ModelPlan p = tiny_plan(true, 0.1);
  p.lora_config.u1 = false;
  check_gradients(p);
}
TEST(ModelGradients, OneConnectionOrNone) {  // iec-u1; and plain LoRA, as qlora, icq, loftq and lora16 train it
  for (const bool u1 : {true, false})
    for (const double dropout : {0.0, 0.25}) {
      ModelPlan p = tiny_plan(true, dropout);
      p.lora_config.u1 = u1, p.lora_config.u2 = false;
      check_gradients(p);
    }
}
TEST(ModelGradients, Full) { check_gradients(tiny_plan(false)); }
TEST(ModelGradients, FullTied) {
  ModelPlan p = tiny_plan(false);
  p.config.tied = true;
  check_gradients(p);
}
TEST(ModelGradients, TiledExpansionSomeTargets) {
  ModelPlan p = tiny_plan(true);
  p.lora_config.tile = true;
  p.lora_config.targets = parse_targets("q_proj,v_proj,up_proj,down_proj");
  check_gradients(p);
}
TEST(ModelGradients, RankThatDividesNothing) {
  ModelPlan p = tiny_plan(true, 0.1);
  p.lora_config.rank = 10;  // gcd(24, 10) = 2, gcd(40, 10) = 10, gcd(8, 10) = 2
  check_gradients(p);
}

std::vector<double> grads_with(const ModelPlan& plan, const std::vector<Batch>& window, double* loss = nullptr) {
  TinyModel tiny(cpu_backend(DType::F32), plan);
  const StepResult r = tiny.trainer->step(window, 1, frozen());
  if (loss) *loss = r.loss;
  return tiny.grads();
}

TEST(Model, RecomputeChangesNothing) {
  const std::vector<Example> examples = tiny_examples(5);
  const std::vector<Batch> window = {pack_range(examples, 0, 5)};
  for (const double dropout : {0.0, 0.2}) {
    ModelPlan plan = tiny_plan(true, dropout);
    const std::vector<double> plain = grads_with(plan, window);
    for (const Recompute level : {Recompute::norms, Recompute::gate_up, Recompute::block})
      for (const int64_t layers : {1, 2}) {
        plan.recompute = level, plan.recompute_layers = layers;
        EXPECT_EQ(plain, grads_with(plan, window)) << "bitwise, level " << static_cast<int>(level);
      }
  }
}

// A CPU that makes more columns of a product for nothing: du is made behind dx where that is worth it.
struct RoomyBackend final : CpuBackend {
  using CpuBackend::CpuBackend;
  int64_t free_columns(int64_t, int64_t) const override { return 1 << 20; }
};
TEST(Model, DuBehindDxIsTheSameGradient) {
  const std::vector<Example> examples = tiny_examples(5);
  const std::vector<Batch> window = {pack_range(examples, 0, 5)};
  CheckedBackend roomy(std::make_unique<RoomyBackend>(Precision{DType::F32, DType::F32}));
  for (const double dropout : {0.0, 0.2}) {
    const ModelPlan plan = tiny_plan(true, dropout);
    const std::vector<double> plain = grads_with(plan, window);
    TinyModel tiny(roomy, plan);
    tiny.trainer->step(window, 1, frozen());
    EXPECT_NE(tiny.grads(), plain);                     // it was taken: dx is summed in another order,
    EXPECT_LT(relative_l2(tiny.grads(), plain), 2e-6);  // which is F32 rounding of some hundred terms
  }
}

// Packing order changes which rows of a GEMM an example sits in, not its sums: forward and dX are row-wise; weight
// gradients sum over rows in another order, hence F32 rounding of a few hundred terms.
void check_packing(size_t count) {
  const std::vector<Example> examples = tiny_examples(static_cast<int>(count));
  std::vector<Batch> single;
  for (size_t i = 0; i < count; ++i) single.push_back(pack_range(examples, i, i + 1));
  const Batch packed_batch = pack_range(examples, 0, count);
  for (const double dropout : {0.0, 0.2}) {
    double packed_loss = 0, single_loss = 0;
    const auto packed = grads_with(tiny_plan(true, dropout), {packed_batch}, &packed_loss);
    const auto apart = grads_with(tiny_plan(true, dropout), single, &single_loss);
    EXPECT_NEAR(packed_loss, single_loss, 1e-6 * packed_loss);
    EXPECT_LT(relative_l2(packed, apart), 2e-6);
  }
}
TEST(Model, PackedEqualsOneByOne) { check_packing(6); }

// One by one an example has as many label rows as rows, bucket for bucket; packed, the last layer drops a third of them.
TEST(Model, UnlabelledRowsMayLeaveTheLastLayer) {
  const std::vector<Example> examples = tiny_examples(50);
  const Batch batch = pack_range(examples, 0, 50);
  ASSERT_LT(static_cast<int64_t>(batch.label_rows.size()), batch.rows());
  check_packing(50);
}

// All tokens differ: two equal tokens in front of different ones look the same to a model without absolute positions.
double loss_after_overfitting(const ModelPlan& plan) {
  TinyModel tiny(cpu_backend(DType::F32), plan);
  const std::vector<Example> examples = {{{3, 17, 5, 30, 8, 21, 12, 36, 1, 9}, std::vector<uint8_t>(10, 1)}};
  OptimizerConfig config;
  config.lr = 0.01;
  config.clip = 0;
  double first = 0, last = 0;
  for (int step = 1; step <= 400; ++step) {
    last = tiny.trainer->step({pack_range(examples, 0, 1)}, step, config).loss;
    if (step == 1) first = last;
  }
  EXPECT_GT(first, 2);
  return last;
}

// The frozen head (24 columns of 0.3 times a normalized row) bounds the logits, so adapters cannot reach 0.
TEST(Model, AdaptersOverfitOneExample) { EXPECT_LT(loss_after_overfitting(tiny_plan(true)), 0.1); }
TEST(Model, FullTrainingOverfitsOneExample) { EXPECT_LT(loss_after_overfitting(tiny_plan(false)), 0.005); }

TEST(Model, EvaluationIsTheTrainingLossWithoutDropout) {
  const std::vector<Example> examples = tiny_examples(3);
  const Batch batch = pack_range(examples, 0, 3);
  TinyModel tiny(cpu_backend(DType::F32), tiny_plan(true, 0));
  const auto [nll, labels] = tiny.trainer->evaluate(batch);
  const StepResult r = tiny.trainer->step({batch}, 1, frozen());
  EXPECT_EQ(labels, r.labels);
  EXPECT_DOUBLE_EQ(nll / static_cast<double>(labels), r.loss);
  TinyModel dropped(cpu_backend(DType::F32), tiny_plan(true, 0.2));
  const auto [nll_dropped, ignored] = dropped.trainer->evaluate(batch);
  EXPECT_EQ(labels, ignored);
  EXPECT_NEAR(nll_dropped, nll, 1e-5 * nll);  // folded and apart: the same sum in another order
}

// A model with one token more, whose row is the mean of the others, written out in full: the same losses, gradients and
// logits of the real tokens. F64, so that the other order of sums over 64 rows is all that differs.
TEST(Model, PadRowIsOneMoreTokenInTheSoftmax) {
  Backend& b = cpu_backend(DType::F64);
  const std::vector<Example> examples = tiny_examples(4);
  const Batch batch = pack_range(examples, 0, 4);
  for (const bool tied : {false, true}) {
    ModelPlan with = tiny_plan(true), without = with, wider = with;
    with.pad_row = true, wider.config.vocab = 38;
    for (ModelPlan* p : {&with, &without, &wider}) p->config.tied = tied;
    TinyModel padded(b, with), plain(b, without), written(b, wider);
    const int64_t cols = with.config.dim;
    std::vector<double> rows = normals(5, 0, 37 * cols, 0.3), mean(static_cast<size_t>(cols));
    for (size_t i = 0; i < rows.size(); ++i) mean[i % static_cast<size_t>(cols)] += rows[i] / 37;
    const auto set_head = [&](TinyModel& m, int64_t mean_rows) {
      put(b, m.model().head().value.slice_rows(0, 37), rows);
      if (mean_rows > 0) put(b, m.model().head().value.slice_rows(37, 1), mean);
    };
    set_head(padded, 1), set_head(plain, 0), set_head(written, 1);
    ASSERT_EQ(padded.model().head().value.rows, 64);
    put(b, padded.model().head().value.slice_rows(38, 26), std::vector<double>(static_cast<size_t>(26 * cols), 9.0));
    if (!tied)
      for (TinyModel* m : {&padded, &written})
        b.copy(m->model().embed().value.slice_rows(0, 37), plain.model().embed().value);
    const auto same_frozen = [&](const Tensor& to, const Tensor& from) { b.copy(to, from); };
    for (TinyModel* m : {&padded, &written}) {
      same_frozen(m->model().norm().value, plain.model().norm().value);
      for (size_t l = 0; l < 2; ++l) {
        Layer &to = m->model().layers()[l], &from = plain.model().layers()[l];
        same_frozen(to.attn_norm.value, from.attn_norm.value);
        same_frozen(to.ffn_norm.value, from.ffn_norm.value);
        for (size_t g = 0; g < 4; ++g) same_frozen(to.groups()[g]->resident, from.groups()[g]->resident);
      }
      m->model().refresh();
    }
    const double loss = padded.trainer->step({batch}, 1, frozen()).loss;
    EXPECT_NEAR(loss, written.trainer->step({batch}, 1, frozen()).loss, 1e-13 * loss);
    EXPECT_LT(relative_l2(padded.grads(), written.grads()), 1e-12);
    EXPECT_GT(loss, plain.trainer->step({batch}, 1, frozen()).loss);
    EXPECT_EQ(padded.trainer->evaluate(batch).first, written.trainer->evaluate(batch).first);
    EXPECT_EQ(padded.trainer->logits(batch), plain.trainer->logits(batch));
  }
}

TEST(Model, PadRowIsTheMeanOfTheHead) {
  Backend& b = cpu_backend(DType::F32);
  for (const bool tied : {false, true}) {
    ModelPlan plan = tiny_plan(true);
    plan.pad_row = true, plan.config.tied = tied;
    SyntheticBase base("tiny/config.json", plan.config, DType::BF16, 3);
    TinyModel tiny(b, plan);
    load_base(b, tiny.model(), base);
    const int64_t cols = plan.config.dim;
    const Tensor head = tiny.model().head().value;
    EXPECT_EQ(tiny.model().embed().value.rows, tied ? 64 : 37);
    for (int64_t col = 0; col < cols; ++col) {
      double sum = 0;
      for (int64_t row = 0; row < 37; ++row) sum += static_cast<double>(head.row<float>(row)[col]);
      ASSERT_NE(sum, 0.0);
      EXPECT_EQ(head.row<float>(37)[col], static_cast<float>(sum / 37)) << col;
      for (int64_t row = 38; row < 64; ++row) ASSERT_EQ(head.row<float>(row)[col], 0.0f);
    }
  }
}

TEST(Model, PlanIsThePeakToTheByte) {
  const std::vector<Example> examples = tiny_examples(40);
  const Batch batch = pack_range(examples, 0, 40);
  for (const Recompute level : {Recompute::none, Recompute::norms, Recompute::gate_up, Recompute::block}) {
    for (const double dropout : {0.0, 0.1}) {
      ModelPlan p = tiny_plan(true, dropout);
      p.recompute = level, p.recompute_layers = p.config.layers;
      p.pad_row = dropout > 0;
      expect_plan_is_the_peak(p, batch);
    }
  }
}

}  // namespace
}  // namespace irq
