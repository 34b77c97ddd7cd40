// dropout: the rate, what the mask depends on, and what it must not depend on.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/dropout.h"
#include "tests/cases/dropout.h"

namespace irq {

IRQ_OP_TESTS(Dropout, dropout_cases());

namespace {

struct Token {
  int sample, position;
};

// dropout of ones in F64 on the CPU: row n for tokens[n].
std::vector<double> masked_ones(const std::vector<Token>& tokens, int64_t cols, double p, int adapter = 0,
                                uint32_t seed = 17) {
  const int64_t rows = static_cast<int64_t>(tokens.size());
  std::vector<double> x(static_cast<size_t>(rows * cols), 1.0), y(x.size(), std::nan(""));
  std::vector<int32_t> positions, samples;
  for (const Token& t : tokens) positions.push_back(t.position), samples.push_back(t.sample);
  StepParams params;
  params.seed[0] = seed;
  cpu_backend(DType::F64)
      .dropout(make_view(y.data(), DType::F64, rows, cols, "y"), make_view(x.data(), DType::F64, rows, cols, "x"),
               make_view(positions.data(), DType::I32, 1, rows, "positions"),
               make_view(samples.data(), DType::I32, 1, rows, "samples"),
               make_view(&params, DType::U8, 1, sizeof(params), "params"), adapter, p, 0);
  return y;
}

std::vector<Token> sequence(int count, int sample = 3) {
  std::vector<Token> tokens;
  for (int i = 0; i < count; ++i) tokens.push_back({sample, i});
  return tokens;
}

TEST(DropoutMask, KeepsItsShareAndTheMean) {
  for (double p : {0.05, 0.1, 0.5, 0.9}) {
    const std::vector<double> y = masked_ones(sequence(100), 2000, p);
    const double n = static_cast<double>(y.size()), keep = 1 - std::round(p * 65536) / 65536;
    double kept = 0;
    for (double value : y) {
      if (value == 0) continue;
      ++kept;
      ASSERT_DOUBLE_EQ(value, 1 / keep);
    }
    EXPECT_NEAR(kept, n * keep, 4 * std::sqrt(n * keep * (1 - keep))) << "p = " << p;  // 4 sigma of the binomial
  }
}

// The layout that ops.inc promises, spelled out for every feature of two calls.
TEST(DropoutMask, IsPhiloxOfTheElementsPlace) {
  const int adapter = 5;
  const uint32_t seed = 17;
  const std::vector<double> y = masked_ones({{3, 9}}, 16, 0.5, adapter, seed);
  for (uint32_t f = 0; f < 16; ++f) {
    const Philox4 r = philox({f / 8, 9, 3, adapter}, seed, 0);
    const uint32_t words[4] = {r.x, r.y, r.z, r.w};
    const uint32_t draw = (words[f % 8 / 2] >> (f % 2 * 16)) & 0xffffu;
    EXPECT_EQ(y[f], draw >= 32768 ? 2.0 : 0.0) << "feature " << f;
  }
}

TEST(DropoutMask, DoesNotDependOnPacking) {
  const int64_t cols = 100;
  const std::vector<double> packed = masked_ones({{3, 0}, {3, 1}, {3, 2}, {8, 0}, {8, 1}, {-1, -1}, {5, 0}}, cols, 0.3);
  const std::vector<double> alone = masked_ones({{8, 1}, {3, 2}}, cols, 0.3);
  for (size_t c = 0; c < static_cast<size_t>(cols); ++c) {
    ASSERT_EQ(alone[c], packed[4 * static_cast<size_t>(cols) + c]);
    ASSERT_EQ(alone[static_cast<size_t>(cols) + c], packed[2 * static_cast<size_t>(cols) + c]);
    ASSERT_EQ(packed[5 * static_cast<size_t>(cols) + c], 0);  // a dead row
  }
}

// Two independent masks at p = 0.5 agree in half of n elements, +- 4 sigma (sigma = sqrt(n) / 2).
TEST(DropoutMask, DiffersBetweenAdaptersSamplesPositionsAndSeeds) {
  const int count = 50;
  const int64_t cols = 400;
  const std::vector<double> base = masked_ones(sequence(count), cols, 0.5);
  std::vector<Token> later = sequence(count + 1);
  later.erase(later.begin());
  const std::vector<std::vector<double>> others = {
      masked_ones(sequence(count), cols, 0.5, 1), masked_ones(sequence(count, 4), cols, 0.5),
      masked_ones(later, cols, 0.5), masked_ones(sequence(count), cols, 0.5, 0, 18)};
  const double n = static_cast<double>(base.size());
  for (size_t k = 0; k < others.size(); ++k) {
    double agree = 0;
    for (size_t i = 0; i < base.size(); ++i) agree += base[i] == others[k][i];
    EXPECT_NEAR(agree, n / 2, 2 * std::sqrt(n)) << "pair " << k;
  }
  for (size_t shift : {1u, 2u, 4u, 8u, 400u}) {  // within a word, a call, and the next call or row
    double agree = 0;
    for (size_t i = 0; i + shift < base.size(); ++i) agree += base[i] == base[i + shift];
    EXPECT_NEAR(agree, n / 2, 2 * std::sqrt(n) + static_cast<double>(shift)) << "shift " << shift;
  }
}

TEST(DropoutMask, RateZeroIsTheIdentity) {
  for (double value : masked_ones(sequence(20), 333, 0)) ASSERT_EQ(value, 1.0);
}

// The rate is a multiple of 1 / 65536; one that rounds to 1 would divide by zero and is refused.
TEST(DropoutMask, RefusesRatesOutsideItsRange) {
  EXPECT_THROW(dropout_rate(1.0), Error);
  EXPECT_THROW(dropout_rate(0.999999), Error);
  EXPECT_THROW(dropout_rate(-0.1), Error);
  EXPECT_EQ(dropout_rate(0.1).threshold, 6554u);
  EXPECT_DOUBLE_EQ(dropout_rate(0.1).scale, 65536.0 / 58982.0);
}

// Dead rows of a padded batch may hold anything: they are not read.
TEST(DropoutMask, DeadRowsAreNotRead) {
  double x[4] = {std::nan(""), std::nan(""), 1, 1}, y[4] = {7, 8, 9, 10};
  int32_t positions[2] = {-1, 0}, samples[2] = {0, 0};
  StepParams params;
  cpu_backend(DType::F64)
      .dropout(make_view(y, DType::F64, 2, 2, "y"), make_view(x, DType::F64, 2, 2, "x"),
               make_view(positions, DType::I32, 1, 2, "positions"), make_view(samples, DType::I32, 1, 2, "samples"),
               make_view(&params, DType::U8, 1, sizeof(params), "params"), 0, 0.0, 0.5);
  EXPECT_EQ(y[0], 3.5);
  EXPECT_EQ(y[1], 4.0);
  EXPECT_EQ(y[2], 5.5);
  EXPECT_EQ(y[3], 6.0);
}

}  // namespace
}  // namespace irq
