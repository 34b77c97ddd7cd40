// Philox against its authors' known answers; the sequential stream over it.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <vector>

#include "src/core/rng.h"

namespace irq {
namespace {

void expect_philox(Philox4 counter, uint32_t key0, uint32_t key1, Philox4 expected) {
  const Philox4 out = philox(counter, key0, key1);
  EXPECT_EQ(out.x, expected.x);
  EXPECT_EQ(out.y, expected.y);
  EXPECT_EQ(out.z, expected.z);
  EXPECT_EQ(out.w, expected.w);
}

// The known-answer vectors of Random123 for philox4x32, 10 rounds.
TEST(Philox, KnownAnswers) {
  expect_philox({0, 0, 0, 0}, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  expect_philox({~0u, ~0u, ~0u, ~0u}, ~0u, ~0u, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  expect_philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0xa4093822, 0x299f31d0,
                {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

// One counter bit flips about half of the 128 output bits: 64 +- 4 sigma (sigma = sqrt(32) = 5.7).
TEST(Philox, EveryCounterBitMatters) {
  const Philox4 base = philox({1, 2, 3, 4}, 5, 6);
  for (int bit = 0; bit < 128; ++bit) {
    uint32_t c[4] = {1, 2, 3, 4};
    c[bit / 32] ^= 1u << (bit % 32);
    const Philox4 r = philox({c[0], c[1], c[2], c[3]}, 5, 6);
    const int flipped = std::popcount(r.x ^ base.x) + std::popcount(r.y ^ base.y) + std::popcount(r.z ^ base.z) +
                        std::popcount(r.w ^ base.w);
    EXPECT_NEAR(flipped, 64, 23) << "bit " << bit;
  }
}

TEST(Rng, IsPhiloxInOrder) {
  Rng rng(0xa4093822ull | 0x299f31d0ull << 32, 7);
  for (uint32_t block = 0; block < 3; ++block) {
    const Philox4 r = philox({block, 0, 7, 0}, 0xa4093822, 0x299f31d0);
    for (uint32_t expected : {r.x, r.y, r.z, r.w}) EXPECT_EQ(rng.next_u32(), expected);
  }
}

// Chi-square of counts in equal bins: mean bins - 1, variance 2 (bins - 1); 5 sigma either way. Too even is wrong too.
void expect_uniform(const std::vector<int>& counts, int draws) {
  const double bins = static_cast<double>(counts.size()), expected = draws / bins;
  double chi2 = 0;
  for (int count : counts) chi2 += (count - expected) * (count - expected) / expected;
  EXPECT_NEAR(chi2, bins - 1, 5 * std::sqrt(2 * (bins - 1)));
}

TEST(Rng, UniformIsUniform) {
  constexpr int kDraws = 200000, kBins = 256;
  Rng rng(1);
  std::vector<int> high(kBins), low(kBins);
  for (int i = 0; i < kDraws; ++i) {
    const double u = rng.uniform();
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    ++high[static_cast<size_t>(u * kBins)];
    const double fine = u * 0x1p40;  // bits 41 to 48 after the point: all 53 are random, not only a float's 24
    ++low[static_cast<size_t>((fine - std::floor(fine)) * kBins)];
  }
  expect_uniform(high, kDraws);
  expect_uniform(low, kDraws);
}

TEST(Rng, BelowStaysBelowAndIsUniform) {
  Rng rng(2);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(rng.below(1), 0u);
  for (uint64_t bound : {2ull, 3ull, 6ull, 100ull}) {
    std::vector<int> counts(bound);
    for (int i = 0; i < 60000; ++i) {
      const uint64_t r = rng.below(bound);
      ASSERT_LT(r, bound);
      ++counts[r];
    }
    expect_uniform(counts, 60000);
  }
  // 3 * 2^62: a plain modulo of 64 bits would return values below 2^62 twice as often as the others.
  const uint64_t bound = 3ull << 62;
  std::vector<int> counts(3);
  for (int i = 0; i < 60000; ++i) {
    const uint64_t r = rng.below(bound);
    ASSERT_LT(r, bound);
    ++counts[r >> 62];
  }
  expect_uniform(counts, 60000);
}

// Moments of n normal draws: mean 0, variance 1, kurtosis 3 with standard errors 1, sqrt 2 and sqrt 96 over sqrt n; 4 sigma.
TEST(Rng, NormalHasItsMoments) {
  constexpr int kDraws = 200000;
  Rng rng(3);
  double sum = 0, sum2 = 0, sum4 = 0;
  for (int i = 0; i < kDraws; ++i) {
    const double x = rng.normal();
    ASSERT_TRUE(std::isfinite(x));
    sum += x, sum2 += x * x, sum4 += x * x * x * x;
  }
  const double error = 4 / std::sqrt(kDraws);
  EXPECT_NEAR(sum / kDraws, 0, error);
  EXPECT_NEAR(sum2 / kDraws, 1, error * std::sqrt(2));
  EXPECT_NEAR(sum4 / kDraws, 3, error * std::sqrt(96));
}

// Correlation of two streams of n uniform draws: standard error 1 / sqrt n; 4 sigma. Neighbouring ids, seeds and lags.
TEST(Rng, StreamsAreIndependent) {
  constexpr int kDraws = 50000;
  const auto draws = [](uint64_t seed, uint64_t id, int skip) {
    Rng rng(seed, id);
    std::vector<double> x;
    for (int i = -skip; i < kDraws; ++i) {
      const double u = rng.uniform() - 0.5;
      if (i >= 0) x.push_back(u);
    }
    return x;
  };
  const std::vector<double> base = draws(5, 0, 0);
  const std::vector<std::vector<double>> others = {draws(5, 1, 0), draws(6, 0, 0), draws(5, 1ull << 32, 0),
                                                   draws(5ull | 1ull << 32, 0, 0), draws(5, 0, 1)};
  for (size_t k = 0; k < others.size(); ++k) {
    double dot = 0;
    for (int i = 0; i < kDraws; ++i) dot += base[static_cast<size_t>(i)] * others[k][static_cast<size_t>(i)];
    EXPECT_NEAR(dot * 12 / kDraws, 0, 4 / std::sqrt(kDraws)) << "pair " << k;
  }
  EXPECT_EQ(base, draws(5, 0, 0));
}

}  // namespace
}  // namespace irq
