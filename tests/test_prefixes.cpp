// Examples that begin alike share rows: the same loss and the same gradients, of fewer rows.
#include <gtest/gtest.h>

#include "src/model/flops.h"
#include "src/ops/prefix_groups.h"
#include "tests/sm80_kernels.h"
#include "tests/tiny_model.h"

namespace irq {
namespace {

using Ints = std::vector<int32_t>;

// A prompt without loss, then an answer with it.
Example example(const Ints& prompt, const Ints& answer) {
  Example e{prompt, std::vector<uint8_t>(prompt.size(), 0)};
  e.ids.insert(e.ids.end(), answer.begin(), answer.end());
  e.trainable.resize(e.ids.size(), 1);
  return e;
}
std::vector<const Example*> pointers(const std::vector<Example>& examples) {
  std::vector<const Example*> all;
  for (const Example& e : examples) all.push_back(&e);
  return all;
}
std::vector<int32_t> numbers(size_t n) {
  std::vector<int32_t> all(n);
  for (size_t i = 0; i < n; ++i) all[i] = static_cast<int32_t>(i);
  return all;
}
Batch packed(const std::vector<Example>& examples, Prefixes prefixes) {
  return pack(pointers(examples), numbers(examples.size()), prefixes);
}

// Two templates and one example without either, as Alpaca's two prompts: instructions of several lengths behind them.
std::vector<Example> two_templates(int count, int64_t vocab, int first_template = 9, int second_template = 13) {
  std::vector<Example> examples;
  for (int i = 0; i < count; ++i) {
    Rng rng(11, static_cast<uint64_t>(i));
    const auto token = [&] { return static_cast<int32_t>(rng.below(static_cast<uint64_t>(vocab))); };
    Ints prompt, answer;
    const int fixed = i % 3 == 1 ? second_template : first_template;
    for (int t = 0; t < fixed; ++t)
      prompt.push_back((t < 4 ? t : 3 * t + fixed) % 31);  // four tokens are common to all
    if (i == 5) prompt.clear();
    for (uint64_t t = 1 + rng.below(7); t > 0; --t) prompt.push_back(token());
    for (uint64_t t = 1 + rng.below(5); t > 0; --t) answer.push_back(token());
    examples.push_back(example(prompt, answer));
  }
  return examples;
}

// 1, 2, ... n, then the rest.
Ints counting(int n, const Ints& rest = {}) {
  Ints ids(static_cast<size_t>(n));
  for (int i = 0; i < n; ++i) ids[static_cast<size_t>(i)] = i + 1;
  ids.insert(ids.end(), rest.begin(), rest.end());
  return ids;
}

TEST(Prefixes, PackedContents) {
  const std::vector<Example> examples = {example(counting(9, {30}), {20, 21}), example({17, 18}, {22}),
                                         example(counting(9), {23, 24})};
  const Batch b = packed(examples, Prefixes::shared);
  EXPECT_EQ(b.tokens_read, 11 + 2 + 10);
  // The third example's last row without loss is its eighth: the row of 9 predicts 23.
  ASSERT_EQ(b.real_rows, 8 + 3 + 2 + 2);
  const auto part = [](const Ints& v, int64_t from, int64_t to) { return Ints(v.begin() + from, v.begin() + to); };
  EXPECT_EQ(part(b.tokens, 0, 8), counting(8));
  EXPECT_EQ(part(b.tokens, 8, 16), Ints({9, 30, 20, 17, 18, 9, 23, -1}));
  EXPECT_EQ(part(b.positions, 0, 16), Ints({0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 1, 8, 9, -1}));
  EXPECT_EQ(part(b.samples, 0, 16), Ints({0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 2, -1}));
  EXPECT_EQ(part(b.label_rows, 0, 6), Ints({9, 10, 12, 13, 14, -1}));
  EXPECT_EQ(part(b.targets, 0, 6), Ints({20, 21, 22, 23, 24, -1}));
  EXPECT_EQ(part(b.row_label, 7, 16), Ints({-1, -1, 0, 1, -1, 2, 3, 4, -1}));
  ASSERT_EQ(b.seqs.size(), 4u);  // the prefix and three examples: a multiple of kSharingBucket
  const auto range = [&](size_t i) {
    const SeqRange& s = b.seqs[i];
    EXPECT_EQ(s.q_begin, s.k_begin);
    EXPECT_EQ(s.q_end, s.k_end);
    return Ints{s.q_begin, s.q_end, s.p_begin, s.p_end};
  };
  EXPECT_EQ(range(0), Ints({0, 8, 0, 0}));
  EXPECT_EQ(range(1), Ints({8, 11, 0, 8}));
  EXPECT_EQ(range(2), Ints({11, 13, 0, 0}));
  EXPECT_EQ(range(3), Ints({13, 15, 0, 8}));
}

// A common row or two cost more than they save.
TEST(Prefixes, ShortOnesAreNotShared) {
  for (const int64_t rows : {kFewestSharedRows - 1, kFewestSharedRows}) {
    std::vector<Example> examples;
    for (int i = 0; i < 4; ++i) examples.push_back(example(counting(static_cast<int>(rows), {20 + i, 30}), {31}));
    EXPECT_EQ(group_by_prefix(pointers(examples)).size(), rows < kFewestSharedRows ? 0u : 1u);
    EXPECT_EQ(group_by_prefix(pointers(examples), 1).size(), 1u);
  }
}

TEST(Prefixes, LabelledRowsAreNeverShared) {
  const std::vector<Example> same(
      3, example({}, {1, 2, 3, 4}));  // nothing predicts the first token, but its row is scored
  EXPECT_TRUE(group_by_prefix(pointers(same)).empty());
  const Batch b = packed(same, Prefixes::shared);
  EXPECT_EQ(b.real_rows, 9);
  EXPECT_EQ(b.real_labels, 9);
}

// Examples without a loss may be shared whole; one of a single token has no row at all.
TEST(Prefixes, ExamplesWithoutRowsOfTheirOwn) {
  std::vector<Example> examples(4, example(counting(10), {}));
  examples.push_back(example(counting(10), {28}));
  examples.push_back(example({5}, {}));
  examples.push_back(Example{});
  const Batch b = packed(examples, Prefixes::shared);
  EXPECT_EQ(b.real_rows, 10);
  EXPECT_EQ(b.real_labels, 1);
  EXPECT_EQ(b.tokens_read, 4 * 9 + 10);
  const BatchSize size = packed_size(pointers(examples), Prefixes::shared);
  EXPECT_EQ(size.real_rows, 10);
  EXPECT_EQ(size.sequences, static_cast<int64_t>(b.seqs.size()));
}

// Rows that a grouping saves.
int64_t saved(const std::vector<PrefixGroup>& groups) {
  int64_t rows = 0;
  for (const PrefixGroup& g : groups) rows += (static_cast<int64_t>(g.members.size()) - 1) * g.rows;
  return rows;
}
// The most that any partition into neighbours (in the order of their tokens) saves, by trying every one.
int64_t most_saved(std::vector<Ints> prompts) {
  std::sort(prompts.begin(), prompts.end());
  const size_t n = prompts.size();
  int64_t most = 0;
  for (uint32_t cuts = 0; cuts < 1u << (n - 1); ++cuts) {
    int64_t rows = 0;
    for (size_t begin = 0, end; begin < n; begin = end) {
      for (end = begin + 1; end < n && (cuts >> (end - 1) & 1) == 0;) ++end;
      const Ints &a = prompts[begin], &b = prompts[end - 1];
      const auto common =
          std::mismatch(a.begin(), a.begin() + static_cast<int64_t>(std::min(a.size(), b.size())), b.begin());
      if (end - begin > 1) rows += static_cast<int64_t>(end - begin - 1) * (common.first - a.begin());
    }
    most = std::max(most, rows);
  }
  return most;
}

TEST(Prefixes, GroupingSavesTheMostOfNeighbours) {
  Rng rng(5, 1);
  int grouped = 0;
  for (int round = 0; round < 200; ++round) {
    std::vector<Ints> prompts(1 + rng.below(9));
    std::vector<Example> examples;
    for (Ints& p : prompts) {
      for (uint64_t t = rng.below(9); t > 0; --t) p.push_back(static_cast<int32_t>(rng.below(2)));
      Ints ids =
          p;  // the prompt's last row predicts the answer's first token: one token more, and all of p is free of loss
      ids.push_back(9);
      examples.push_back(example(ids, {30}));
    }
    const auto groups = group_by_prefix(pointers(examples), 1);
    EXPECT_EQ(saved(groups), most_saved(prompts)) << "round " << round;
    std::vector<int> seen(examples.size(), 0);
    for (const PrefixGroup& g : groups) {
      ++grouped;
      EXPECT_GE(g.members.size(), 2u);
      EXPECT_GT(g.rows, 0);
      for (const size_t m : g.members) {
        EXPECT_EQ(seen[m]++, 0);
        EXPECT_TRUE(std::equal(prompts[m].begin(), prompts[m].begin() + g.rows, prompts[g.members[0]].begin()));
      }
    }
  }
  EXPECT_GT(grouped, 100);
}

TEST(Prefixes, SizesAreThoseOfThePackedBatch) {
  for (const int count : {0, 1, 2, 7, 40})
    for (const Prefixes prefixes : {Prefixes::own, Prefixes::shared}) {
      const std::vector<Example> examples = two_templates(count, 37);
      const Batch b = packed(examples, prefixes);
      const BatchSize s = packed_size(pointers(examples), prefixes);
      EXPECT_EQ(s.rows, b.rows());
      EXPECT_EQ(s.real_rows, b.real_rows);
      EXPECT_EQ(s.label_rows, static_cast<int64_t>(b.label_rows.size()));
      EXPECT_EQ(s.real_labels, b.real_labels);
      EXPECT_EQ(s.sequences, static_cast<int64_t>(b.seqs.size()));
      EXPECT_EQ(s.tokens_read, b.tokens_read);
      EXPECT_LE(s.sequences, most_sequences(count, prefixes));
      EXPECT_EQ(b.tokens_read, packed(examples, Prefixes::own).real_rows);
    }
}

// A row behind a prefix sees all of it and half of its own sequence; one that is not computed costs nothing.
TEST(Prefixes, FlopsAreOfComputedRows) {
  ModelConfig c = tiny_config();
  const std::vector<Example> examples = {example(counting(8, {16}), {7, 8}), example(counting(8, {19}), {7, 8})};
  const Batch own = packed(examples, Prefixes::own), shared = packed(examples, Prefixes::shared);
  ASSERT_EQ(shared.real_rows, 8 + 2 + 2);
  const double attention = 7.0 * static_cast<double>(c.layers * c.q_width());
  const double per_row = model_flops_per_token(c, 4, 0, 0);
  const double head = model_flops(c, 4, {own}) - 20 * per_row - attention * (100 + 100);
  EXPECT_NEAR(model_flops(c, 4, {shared}), 12 * per_row + head + attention * (64 + 2 * (4 + 2 * 8 * 2)), 1e-9 * head);
}

// ---- the model ------------------------------------------------------------------------------------------------------
struct Outcome {
  double loss = 0;
  std::vector<double> grads;
};
OptimizerConfig keeping() {
  OptimizerConfig config;
  config.lr = 0, config.clip = 0;
  return config;
}
Outcome step(Backend& backend, const ModelPlan& plan, const std::vector<Example>& examples, Prefixes prefixes,
             double deviation = 0.3) {
  TinyModel tiny(backend, plan, int64_t{64} << 20, deviation);
  const StepResult r = tiny.trainer->step({packed(examples, prefixes)}, 1, keeping());
  return {r.loss, tiny.grads()};
}
double difference(const std::vector<double>& a, const std::vector<double>& b) {
  double d = 0, n = 0;
  for (size_t i = 0; i < a.size(); ++i) d += (a[i] - b[i]) * (a[i] - b[i]), n += b[i] * b[i];
  return std::sqrt(d / n);
}

// In F64 the two differ by rounding alone: sums of some hundred terms in another order.
TEST(PrefixesCpu, LossAndGradientsAreTheSame) {
  const std::vector<Example> examples = two_templates(12, 37);
  ASSERT_LT(packed(examples, Prefixes::shared).real_rows, packed(examples, Prefixes::own).real_rows - 80);
  for (const bool lora : {true, false})
    for (const Recompute level : {Recompute::none, Recompute::norms, Recompute::gate_up, Recompute::block}) {
      ModelPlan plan = tiny_plan(lora);
      plan.recompute = level, plan.recompute_layers = 2;
      const Outcome own = step(cpu_backend(DType::F64), plan, examples, Prefixes::own);
      const Outcome shared = step(cpu_backend(DType::F64), plan, examples, Prefixes::shared);
      EXPECT_NEAR(shared.loss, own.loss, 1e-13 * own.loss);
      EXPECT_LT(difference(shared.grads, own.grads), 1e-12);
    }
}

TEST(PrefixesCpu, HeldOutLossIsTheSame) {
  const std::vector<Example> examples = two_templates(12, 37);
  TinyModel tiny(cpu_backend(DType::F64), tiny_plan(true));
  const auto [own, labels] = tiny.trainer->evaluate(packed(examples, Prefixes::own));
  const auto [shared, again] = tiny.trainer->evaluate(packed(examples, Prefixes::shared));
  EXPECT_EQ(labels, again);
  EXPECT_NEAR(shared, own, 1e-13 * own);
}

// Heads of 64 take attention's tensor-core kernels; prefixes longer than a tile of 64 keys, and one that crosses two.
ModelPlan wide_plan() {
  ModelPlan plan = tiny_plan(true);
  plan.config.heads = 4, plan.config.kv_heads = 2, plan.config.head_dim = 64, plan.config.dim = 64;
  plan.config.ffn = 96, plan.config.max_seq = 192, plan.positions = 192;
  plan.lora_config.rank = 8;
  return plan;
}

// Of weights: attention's scores stay near 1. With TinyModel's own they reach hundreds, where rounding picks another key.
constexpr double kCalm = 0.1;
// Both against the CPU in F64: in bf16 a shared row's gradient is rounded once instead of in each copy, so the two differ from
// each other as much as from the truth. F32: sums of some thousand terms at 2^-24; bf16: two layers whose activations,
// probabilities and gradients are rounded at 2^-9 a dozen times.
TEST(PrefixesCuda, LossAndGradientsAreTheSame) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  const std::vector<Example> examples = two_templates(24, 37, 75, 140);
  const ModelPlan plan = wide_plan();
  const Outcome truth = step(cpu_backend(DType::F64), plan, examples, Prefixes::own, kCalm);
  for (const auto& [storage, tolerance] : {std::pair{DType::F32, 1e-5}, std::pair{DType::BF16, 3e-2}}) {
    const auto compare = [&, storage = storage, tolerance = tolerance](const char* kernels) {
      const Outcome own = step(cuda_backend(storage), plan, examples, Prefixes::own, kCalm);
      const Outcome shared = step(cuda_backend(storage), plan, examples, Prefixes::shared, kCalm);
      EXPECT_NEAR(shared.loss, truth.loss, tolerance * truth.loss) << kernels;
      EXPECT_LT(difference(own.grads, truth.grads), tolerance) << kernels;
      EXPECT_LT(difference(shared.grads, truth.grads), tolerance) << kernels;
      EXPECT_EQ(step(cuda_backend(storage), plan, examples, Prefixes::shared, kCalm).grads, shared.grads) << kernels;
    };
    compare("all");
    const OnlySm80Kernels only;
    compare("sm80");
  }
}

}  // namespace
}  // namespace irq
