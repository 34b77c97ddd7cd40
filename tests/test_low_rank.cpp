// low_rank: the ladder, known decompositions, and what makes an approximation the best one.
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <limits>
#include <numbers>

#include "tests/cases/low_rank.h"

IRQ_OP_TESTS(LowRankOp, irq::low_rank_cases());

namespace irq {
namespace {

using Values = std::vector<float>;

struct Factors {
  int64_t o, h, r;
  Values w, left, right;
  double at(const Values& x, int64_t i, int64_t j, int64_t width) const {
    return static_cast<double>(x[static_cast<size_t>(i * width + j)]);
  }
  double l(int64_t i, int64_t k) const { return at(left, i, k, r); }
  double rt(int64_t k, int64_t j) const { return at(right, k, j, h); }
  // s_k, from the left factor's column.
  double value(int64_t k) const {
    double sum = 0;
    for (int64_t i = 0; i < o; ++i) sum += l(i, k) * l(i, k);
    return sum;
  }
  double squared_error() const {
    double sum = 0;
    for (int64_t i = 0; i < o; ++i)
      for (int64_t j = 0; j < h; ++j) {
        double rest = at(w, i, j, h);
        for (int64_t k = 0; k < r; ++k) rest -= l(i, k) * rt(k, j);
        sum += rest * rest;
      }
    return sum;
  }
};

Factors factors_of(const Values& w, int64_t o, int64_t h, int64_t r) {
  Factors f{o, h, r, w, Values(static_cast<size_t>(o * r), NAN), Values(static_cast<size_t>(r * h), NAN)};
  cpu_backend(DType::F32)
      .low_rank(make_view(f.left.data(), DType::F32, o, r, "left"),
                make_view(f.right.data(), DType::F32, r, h, "right"), make_view(f.w.data(), DType::F32, o, h, "w"));
  return f;
}

Values random_matrix(int64_t o, int64_t h, uint64_t seed) {
  Rng rng(seed);
  Values w(static_cast<size_t>(o * h));
  for (float& x : w) x = static_cast<float>(rng.normal());
  return w;
}

double largest_dot(const Factors& f, bool left, int64_t a, int64_t b) {
  double sum = 0;
  if (left)
    for (int64_t i = 0; i < f.o; ++i) sum += f.l(i, a) * f.l(i, b);
  else
    for (int64_t j = 0; j < f.h; ++j) sum += f.rt(a, j) * f.rt(b, j);
  return sum;
}

TEST(LowRank, ByHand) {
  // diag(2, -3): the largest is 3 with left vector e2 (positive) and right vector -e2.
  const Factors f = factors_of({2, 0, 0, -3}, 2, 2, 3);
  const float a = std::sqrt(3.0f), b = std::sqrt(2.0f);
  EXPECT_EQ(f.left, (Values{0, b, 0, a, 0, 0}));
  EXPECT_EQ(f.right, (Values{0, -a, b, 0, 0, 0}));
  // One row: its length, and its direction.
  const Factors row = factors_of({3, 4}, 1, 2, 1);
  EXPECT_FLOAT_EQ(row.left[0], std::sqrt(5.0f));
  EXPECT_FLOAT_EQ(row.right[0], 3 / std::sqrt(5.0f));
  EXPECT_FLOAT_EQ(row.right[1], 4 / std::sqrt(5.0f));
}

// The second difference matrix: its eigenvalues are 2 - 2 cos(k pi / (n + 1)), its vectors sines.
TEST(LowRank, KnownSpectrum) {
  const int64_t n = 31;
  Values w(static_cast<size_t>(n * n));
  for (int64_t i = 0; i < n; ++i) {
    w[static_cast<size_t>(i * n + i)] = 2;
    if (i + 1 < n) w[static_cast<size_t>(i * n + i + 1)] = w[static_cast<size_t>((i + 1) * n + i)] = -1;
  }
  const Factors f = factors_of(w, n, n, n);
  for (int64_t k = 0; k < n; ++k) {
    const double angle = static_cast<double>(n - k) * std::numbers::pi / static_cast<double>(n + 1);
    // Elements rounded to F32: relative 2^-24 each, 2^-23 of the sum of squares.
    EXPECT_NEAR(f.value(k), 2 - 2 * std::cos(angle), 2.4e-7 * f.value(k)) << k;
    for (int64_t i = 0; i < n; ++i) {
      const double sine = std::sqrt(2.0 / static_cast<double>(n + 1)) * std::sin(static_cast<double>(i + 1) * angle);
      EXPECT_NEAR(std::abs(f.l(i, k)), std::sqrt(f.value(k)) * std::abs(sine), 1e-6) << k << " " << i;
    }
  }
}

// W R_k^T = s_k L_k, W^T L_k = s_k R_k^T, vectors orthogonal, s descending, and the error is what the rest of the spectrum
// leaves (Eckart and Young): no matrix of this rank is nearer.
TEST(LowRank, IsTheBestApproximation) {
  uint64_t seed = 10;
  for (const auto& [o, h] : {std::pair<int64_t, int64_t>{20, 50}, {50, 20}, {40, 40}, {1, 30}, {30, 1}}) {
    const Values w = random_matrix(o, h, ++seed);
    const int64_t n = std::min(o, h);
    const Factors full = factors_of(w, o, h, n);
    double total = 0;
    for (const float x : w) total += static_cast<double>(x) * static_cast<double>(x);
    EXPECT_LT(full.squared_error(), 1e-12 * total);  // F32 factors: (2^-24)^2 times a few terms
    double spectrum = 0;
    for (int64_t k = 0; k < n; ++k) spectrum += full.value(k) * full.value(k);
    EXPECT_NEAR(spectrum, total, 1e-6 * total);
    const double tolerance = 3e-7 * full.value(0) * std::sqrt(full.value(0));  // F32 elements of vectors of that length
    for (int64_t k = 0; k < n; ++k) {
      if (k > 0) { EXPECT_LE(full.value(k), full.value(k - 1) * (1 + 1e-7)); }
      for (int64_t i = 0; i < o; ++i) {
        double product = 0;
        for (int64_t j = 0; j < h; ++j) product += full.at(w, i, j, h) * full.rt(k, j);
        EXPECT_NEAR(product, full.value(k) * full.l(i, k), tolerance);
      }
      for (int64_t other = 0; other < k; ++other)
        for (const bool left : {true, false})
          EXPECT_NEAR(largest_dot(full, left, k, other), 0, 3e-7 * full.value(0)) << k << " " << other;
      double best = 0;
      for (int64_t i = 0; i < o; ++i)
        if (std::abs(full.l(i, k)) > std::abs(best)) best = full.l(i, k);
      EXPECT_GT(best, 0) << k;
    }
    for (const int64_t r : {int64_t{1}, n / 2, n + 8}) {
      if (r == 0) continue;
      const Factors f = factors_of(w, o, h, r);
      double rest = 0;
      for (int64_t k = r; k < n; ++k) rest += full.value(k) * full.value(k);
      EXPECT_NEAR(f.squared_error(), rest, 1e-6 * total) << o << " " << h << " " << r;
      for (int64_t k = n; k < r; ++k) EXPECT_EQ(f.value(k), 0);
    }
  }
}

// Of equal singular values the vectors are anybody's choice, the subspace's properties are not.
TEST(LowRank, RepeatedSingularValues) {
  const int64_t n = 16, r = 5;
  Values w(static_cast<size_t>(n * n));  // Hadamard: all 16 are 4
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j)
      w[static_cast<size_t>(i * n + j)] = __builtin_popcountll(static_cast<uint64_t>(i & j)) % 2 ? -1.0f : 1.0f;
  const Factors f = factors_of(w, n, n, r);
  for (int64_t a = 0; a < r; ++a)
    for (int64_t b = 0; b < r; ++b)
      for (const bool left : {true, false}) EXPECT_NEAR(largest_dot(f, left, a, b), a == b ? 4 : 0, 1e-5);
  EXPECT_NEAR(f.squared_error(), static_cast<double>(n - r) * 16, 1e-4);
}

TEST(LowRank, DependentRowsEndTheSpectrum) {
  const OpCase c = low_rank_case(48, 80, 16, LowRankInput::rank_two);
  const HostArgs in = make_inputs(c);
  const Factors f = factors_of(Values(in[2].begin(), in[2].end()), 48, 80, 16);
  EXPECT_GT(f.value(1), 1);
  for (int64_t k = 2; k < 16; ++k) EXPECT_EQ(f.value(k), 0) << k;
  EXPECT_LT(f.squared_error(), 1e-10 * f.value(0) * f.value(0));
}

TEST(LowRank, SameBitsWithAnyNumberOfThreads) {
  const int before = omp_get_max_threads();
  const Values w = random_matrix(340, 800, 3);  // enough work for a round to be shared
  omp_set_num_threads(1);
  const Factors one = factors_of(w, 340, 800, 16);
  for (const int threads : {3}) {
    omp_set_num_threads(threads);
    const Factors many = factors_of(w, 340, 800, 16);
    EXPECT_EQ(one.left, many.left);
    EXPECT_EQ(one.right, many.right);
  }
  omp_set_num_threads(before);
}

TEST(LowRank, RefusesWhatIsNotFinite) {
  for (const float bad : {NAN, std::numeric_limits<float>::infinity()}) {
    Values w = random_matrix(5, 9, 1);
    w[17] = bad;
    try {
      factors_of(w, 5, 9, 2);
      FAIL() << "accepted";
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find("w: has no low-rank approximation"), std::string::npos) << e.what();
    }
  }
}

TEST(LowRank, RefusesNotFiniteOnCuda) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  OpCase c = low_rank_case(20, 30, 4);
  c.args[2].value = [](Rng& rng, int64_t i) { return i == 77 ? INFINITY : rng.normal(); };
  EXPECT_THROW(run_case(c, cuda_backend(DType::F32), make_inputs(c)), Error);
}

// At a size where the eigensolver works in blocks: both factors as the CPU's, and the same bits again.
TEST(LowRank, CudaAtALargerSize) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  const OpCase c = low_rank_case(576, 320, 64);
  const HostArgs in = make_inputs(c, 5), first = run_case(c, cuda_backend(DType::BF16), in);
  const HostArgs reference = run_case(c, cpu_backend(DType::F32), in);
  for (const size_t side : {size_t{0}, size_t{1}})
    EXPECT_LT(relative_l2(first[side], reference[side]), c.tolerance_f32);
  EXPECT_EQ(run_case(c, cuda_backend(DType::BF16), in), first);
}

}  // namespace
}  // namespace irq
