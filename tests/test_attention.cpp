// Attention: the op ladder, and the CPU reference against the plain definition, finite differences and itself repacked.
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>

#include "tests/cases/attention.h"
#include "tests/sm80_kernels.h"

namespace irq {
namespace {

IRQ_OP_TESTS(Attention, attention_cases());

// A Hopper GPU takes kernels of its own for heads of 64 and 128; those for sm_80 must be right there too.
std::vector<OpCase> sm80_cases() {
  std::vector<OpCase> cases;
  for (const OpCase& c : attention_cases())
    if (c.name.find("D=64") != std::string::npos || c.name.find("D=128") != std::string::npos)
      cases.push_back(by_sm80_kernels(c));
  return cases;
}
IRQ_OP_TESTS(AttentionSm80, sm80_cases());

TEST(AttentionCuda, BothKernelsAgreeOnLongSequences) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  const OpCase c = attention_bwd_case(packed_attention("packed", 128, 4, 2, {2048, 512, 700}));
  const HostArgs args = make_inputs(c);
  const HostArgs first = run_case(c, cuda_backend(DType::BF16), args);
  use_only_sm80_kernels(true);
  const HostArgs second = run_case(c, cuda_backend(DType::BF16), args);
  use_only_sm80_kernels(false);
  for (size_t i = 0; i < 4; ++i)  // dq, dk, dv, delta: P and dS are rounded to bf16 at the same places
    EXPECT_LE(relative_l2(first[i], second[i]), 5e-3) << c.args[i].name;
}

// Heads that are taken in two parts, as keys and values of ten would not stay in L2, and several tiles of queries a block.
TEST(AttentionCuda, BothForwardKernelsAgreeOnManyHeads) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  const OpCase c = attention_fwd_case(packed_attention("packed", 128, 10, 10, {4500, 60, 700}, 3));
  const HostArgs args = make_inputs(c);
  const HostArgs first = run_case(c, cuda_backend(DType::BF16), args);
  use_only_sm80_kernels(true);
  const HostArgs second = run_case(c, cuda_backend(DType::BF16), args);
  use_only_sm80_kernels(false);
  EXPECT_LE(relative_l2(first[0], second[0]), 4e-3);  // P is rounded before it is divided by another running maximum
  EXPECT_LE(relative_l2(first[1], second[1]), 1e-5);
}

TEST(AttentionCuda, SameBitsEveryTime) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  for (const int head_dim : {64, 128}) {
    const OpCase c = attention_bwd_case(packed_attention("packed", head_dim, 4, 2, {300, 65, 512}));
    const HostArgs args = make_inputs(c);
    const HostArgs first = run_case(c, cuda_backend(DType::BF16), args);
    for (int i = 0; i < 3; ++i)
      EXPECT_EQ(first, run_case(c, cuda_backend(DType::BF16), args)) << "head_dim " << head_dim;
  }
}

constexpr int kHeads = 4, kKvHeads = 2, kDim = 8;

struct Inputs {
  std::vector<double> q, k, v, dout;
};
Inputs random_inputs(int64_t queries, int64_t keys) {
  Inputs in;
  Rng rng(7);
  for (auto* x : {&in.q, &in.dout}) x->resize(static_cast<size_t>(queries * kHeads * kDim));
  for (auto* x : {&in.k, &in.v}) x->resize(static_cast<size_t>(keys * kKvHeads * kDim));
  for (auto* x : {&in.q, &in.k, &in.v, &in.dout})
    for (double& value : *x) value = rng.normal();
  return in;
}

struct Results {
  std::vector<double> o, lse, dq, dk, dv, delta;
};

// The op on the CPU in F32 or F64. Outputs start as NaN.
Results run(const Inputs& in, const SeqRanges& seqs, int64_t queries, int64_t keys, DType type) {
  AttentionShape shape{"direct", kDim, kHeads, kKvHeads, queries, keys, seqs, 0};
  const OpCase c = attention_bwd_case(shape);
  HostArgs args = make_inputs(c);
  args[4] = in.dout, args[5] = in.q, args[6] = in.k, args[7] = in.v;
  HostArgs out = run_case(c, cpu_backend(type), args);
  return {out[8], out[9], out[0], out[1], out[2], out[3]};
}

bool attends(const std::array<int32_t, 6>& s, int64_t i, int64_t j) {
  const auto [qb, qe, kb, ke, pb, pe] = s;
  if (i < qb || i >= qe) return false;
  if (j >= pb && j < pe) return true;
  return j >= kb && j < ke && (j - ke) <= (i - qe);
}

// The definition, with the whole matrix. Rows in no sequence: o = 0, lse = 0.
Results dense(const Inputs& in, const SeqRanges& seqs, int64_t queries, int64_t keys) {
  Results r;
  r.o.assign(static_cast<size_t>(queries * kHeads * kDim), 0);
  r.lse.assign(static_cast<size_t>(kHeads * queries), 0);
  for (int h = 0; h < kHeads; ++h)
    for (int64_t i = 0; i < queries; ++i)
      for (const auto& s : seqs) {
        if (i < s[0] || i >= s[1]) continue;
        std::vector<double> weight(static_cast<size_t>(keys), 0);
        double total = 0;
        const double* q = &in.q[static_cast<size_t>((i * kHeads + h) * kDim)];
        for (int64_t j = 0; j < keys; ++j) {
          if (!attends(s, i, j)) continue;
          const double* k = &in.k[static_cast<size_t>((j * kKvHeads + h / (kHeads / kKvHeads)) * kDim)];
          double dot = 0;
          for (int d = 0; d < kDim; ++d) dot += q[d] * k[d];
          total += weight[static_cast<size_t>(j)] = std::exp(dot / std::sqrt(double{kDim}));
        }
        for (int64_t j = 0; j < keys; ++j)
          for (int d = 0; d < kDim; ++d)
            r.o[static_cast<size_t>((i * kHeads + h) * kDim + d)] +=
                weight[static_cast<size_t>(j)] / total *
                in.v[static_cast<size_t>((j * kKvHeads + h / (kHeads / kKvHeads)) * kDim + d)];
        r.lse[static_cast<size_t>(h * queries + i)] = std::log(total);
      }
  return r;
}

// A prefix of 6 rows (itself a sequence), two sequences on it, one alone, a decode row, dead rows, spans over one slab of 64.
const SeqRanges kMixed = {{0, 6, 0, 6, 0, 0},     {6, 10, 6, 10, 0, 6},    {12, 15, 12, 15, 0, 6},
                          {16, 90, 16, 90, 0, 0}, {91, 92, 95, 170, 0, 0}, {93, 93, 0, 0, 0, 0}};
constexpr int64_t kMixedQueries = 94, kMixedKeys = 172;

TEST(AttentionReference, IsTheDenseSoftmax) {
  const Inputs in = random_inputs(kMixedQueries, kMixedKeys);
  const Results out = run(in, kMixed, kMixedQueries, kMixedKeys, DType::F64),
                ref = dense(in, kMixed, kMixedQueries, kMixedKeys);
  // F64 against F64: only the order of sums of at most 75 terms differs.
  EXPECT_LE(relative_l2(out.o, ref.o), 1e-14);
  EXPECT_LE(relative_l2(out.lse, ref.lse), 1e-14);
}

TEST(AttentionReference, RowsInNoSequenceAreZero) {
  const Results out = run(random_inputs(kMixedQueries, kMixedKeys), kMixed, kMixedQueries, kMixedKeys, DType::F32);
  for (const int64_t i : {10, 11, 15, 90, 92, 93})
    for (int c = 0; c < kHeads * kDim; ++c) {
      EXPECT_EQ(out.o[static_cast<size_t>(i * kHeads * kDim + c)], 0) << "row " << i;
      EXPECT_EQ(out.dq[static_cast<size_t>(i * kHeads * kDim + c)], 0) << "row " << i;
    }
  for (const int64_t j : {10, 11, 15, 90, 94, 170, 171})
    for (int c = 0; c < kKvHeads * kDim; ++c) {
      EXPECT_EQ(out.dk[static_cast<size_t>(j * kKvHeads * kDim + c)], 0) << "row " << j;
      EXPECT_EQ(out.dv[static_cast<size_t>(j * kKvHeads * kDim + c)], 0) << "row " << j;
    }
}

// d<o, dout>/dx by central differences. Step 1e-4: truncation and rounding are both near 1e-8 of the gradient.
TEST(AttentionReference, BackwardIsTheDerivative) {
  const SeqRanges seqs = {{0, 3, 0, 3, 0, 0}, {3, 7, 3, 7, 0, 3}, {8, 9, 8, 9, 0, 3}, {9, 11, 9, 14, 0, 0}};
  const int64_t queries = 12, keys = 14;
  const Inputs in = random_inputs(queries, keys);
  const Results r = run(in, seqs, queries, keys, DType::F64);
  const auto check = [&](std::vector<double> Inputs::*member, const std::vector<double>& analytic) {
    std::vector<double> numeric(analytic.size());
    for (size_t i = 0; i < numeric.size(); ++i) {
      const double step = 1e-4;
      double loss[2];
      for (const int side : {0, 1}) {
        Inputs moved = in;
        (moved.*member)[i] += side ? step : -step;
        const Results out = dense(moved, seqs, queries, keys);
        loss[side] = 0;
        for (size_t j = 0; j < out.o.size(); ++j) loss[side] += out.o[j] * in.dout[j];
      }
      numeric[i] = (loss[1] - loss[0]) / (2 * step);
    }
    EXPECT_LE(relative_l2(analytic, numeric), 1e-7);
  };
  check(&Inputs::q, r.dq);
  check(&Inputs::k, r.dk);
  check(&Inputs::v, r.dv);
}

// The same sequences alone, and packed in the opposite order with dead rows between: the same bits.
TEST(AttentionReference, PackingChangesNoBit) {
  const std::vector<int> lengths = {1, 130, 64, 7};
  const int64_t rows = 230;
  const Inputs in = random_inputs(rows, rows);
  SeqRanges forwards, backwards;
  std::vector<int> begin_forwards, begin_backwards(lengths.size());
  int at = 0;
  for (const int n : lengths)
    begin_forwards.push_back(at), forwards.push_back({at, at + n, at, at + n, 0, 0}), at += n + 1;
  at = 5;
  for (size_t i = lengths.size(); i-- > 0;) {
    backwards.push_back({at, at + lengths[i], at, at + lengths[i], 0, 0});
    begin_backwards[i] = at, at += lengths[i];
  }
  const auto move_rows = [&](const std::vector<double>& x, int64_t width) {
    std::vector<double> y(x.size(), 0);
    for (size_t i = 0; i < lengths.size(); ++i)
      std::copy_n(x.begin() + begin_forwards[i] * width, lengths[i] * width, y.begin() + begin_backwards[i] * width);
    return y;
  };
  const int64_t q_width = kHeads * kDim, k_width = kKvHeads * kDim;
  const Inputs moved = {move_rows(in.q, q_width), move_rows(in.k, k_width), move_rows(in.v, k_width),
                        move_rows(in.dout, q_width)};
  const Results a = run(in, forwards, rows, rows, DType::F32), b = run(moved, backwards, rows, rows, DType::F32);
  EXPECT_EQ(move_rows(a.o, q_width), b.o);
  EXPECT_EQ(move_rows(a.dq, q_width), b.dq);
  EXPECT_EQ(move_rows(a.dk, k_width), b.dk);
  EXPECT_EQ(move_rows(a.dv, k_width), b.dv);
  for (const auto& s : forwards) {  // alone: every other row is dead
    const Results alone = run(in, {s}, rows, rows, DType::F32);
    const auto same = [&](const std::vector<double>& x, const std::vector<double>& y, int64_t width) {
      return std::equal(x.begin() + s[0] * width, x.begin() + s[1] * width, y.begin() + s[0] * width);
    };
    EXPECT_TRUE(same(alone.o, a.o, q_width) && same(alone.dq, a.dq, q_width));
    EXPECT_TRUE(same(alone.dk, a.dk, k_width) && same(alone.dv, a.dv, k_width));
  }
}

// A key that is no number spoils exactly the rows that see it: it must not end as a plausible zero.
TEST(AttentionReference, NotANumberIsSeen) {
  Inputs in = random_inputs(12, 12);
  in.k[static_cast<size_t>(4 * kKvHeads * kDim)] = std::numeric_limits<double>::quiet_NaN();  // row 4, first head
  const Results out = run(in, {{0, 8, 0, 8, 0, 0}, {8, 12, 8, 12, 0, 0}}, 12, 12, DType::F32);
  for (int64_t i = 0; i < 12; ++i) {
    EXPECT_EQ(std::isnan(out.o[static_cast<size_t>(i * kHeads * kDim)]), i >= 4 && i < 8) << "row " << i;
    EXPECT_EQ(std::isnan(out.lse[static_cast<size_t>(i)]), i >= 4 && i < 8) << "row " << i;
    EXPECT_FALSE(std::isnan(out.o[static_cast<size_t>(((i + 1) * kHeads - 1) * kDim)])) << "the last head, row " << i;
  }
}

TEST(AttentionReference, ThreadsChangeNoBit) {
  const Inputs in = random_inputs(kMixedQueries, kMixedKeys);
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const Results one = run(in, kMixed, kMixedQueries, kMixedKeys, DType::F32);
  omp_set_num_threads(3);
  const Results three = run(in, kMixed, kMixedQueries, kMixedKeys, DType::F32);
  omp_set_num_threads(threads);
  EXPECT_EQ(one.o, three.o);
  EXPECT_EQ(one.lse, three.lse);
  EXPECT_EQ(one.dq, three.dq);
  EXPECT_EQ(one.dk, three.dk);
  EXPECT_EQ(one.dv, three.dv);
}

}  // namespace
}  // namespace irq
