// cross_entropy: values by hand, extreme logits, padding, dead rows, and the gradient against finite differences.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/cases/cross_entropy.h"

namespace irq {

IRQ_OP_TESTS(CrossEntropy, cross_entropy_cases());

namespace {

std::vector<double> nll_of(std::vector<double>& logits, std::vector<int32_t> targets, int64_t vocab, bool want_grad,
                           double inv_tokens = 1) {
  const int64_t rows = static_cast<int64_t>(targets.size()), cols = static_cast<int64_t>(logits.size()) / rows;
  std::vector<double> nll(targets.size(), std::nan(""));
  StepParams params;
  params.inv_tokens = inv_tokens;
  cpu_backend(DType::F64)
      .cross_entropy(make_view(nll.data(), DType::F64, 1, rows, "nll"),
                     make_view(logits.data(), DType::F64, rows, cols, "logits"),
                     make_view(targets.data(), DType::I32, 1, rows, "targets"),
                     make_view(&params, DType::U8, 1, sizeof(params), "params"), vocab, want_grad);
  return nll;
}

TEST(CrossEntropyDirect, ByHand) {
  // softmax of {0, ln 2, ln 5} is {1, 2, 5} / 8.
  std::vector<double> x = {0, std::log(2), std::log(5)};
  EXPECT_NEAR(nll_of(x, {1}, 3, true, 0.5)[0], std::log(4), 1e-14);
  EXPECT_NEAR(x[0], 0.5 * 1 / 8, 1e-14);
  EXPECT_NEAR(x[1], 0.5 * (2.0 / 8 - 1), 1e-14);
  EXPECT_NEAR(x[2], 0.5 * 5 / 8, 1e-14);
}

TEST(CrossEntropyDirect, ExtremeLogitsStayFinite) {
  std::vector<double> x = {1e5, -1e5, 0, -INFINITY, -1e5, -1e5 + 1, -1e5, -INFINITY};
  const std::vector<double> nll = nll_of(x, {2, 1}, 4, true);
  EXPECT_DOUBLE_EQ(nll[0], 1e5);
  EXPECT_NEAR(nll[1], std::log(1 + 2 * std::exp(-1)), 1e-10);  // 1e-16 of the logits' 1e5
  for (double value : x) EXPECT_TRUE(std::isfinite(value));
  EXPECT_EQ(x[3], 0);
  EXPECT_DOUBLE_EQ(x[2], -1);
}

TEST(CrossEntropyDirect, PaddingColumnsAndDeadRowsDoNotCount) {
  const double nan = std::nan("");
  std::vector<double> x = {1, 2, 3, nan, 1e9, nan, nan, nan, nan, nan};
  const std::vector<double> nll = nll_of(x, {0, -1}, 3, true);
  EXPECT_NEAR(nll[0], 2 + std::log(1 + std::exp(-1) + std::exp(-2)), 1e-14);
  EXPECT_EQ(nll[1], 0);
  for (size_t i = 3; i < 10; ++i) EXPECT_EQ(x[i], 0) << i;
}

TEST(CrossEntropyDirect, WithoutGradientTheLogitsStay) {
  std::vector<double> x = {1, 2, 3, 4, 5, 6};
  const std::vector<double> before = x;
  std::vector<double> again = x;
  const std::vector<double> nll = nll_of(x, {0, -1}, 3, false);
  EXPECT_EQ(x, before);
  EXPECT_EQ(nll, nll_of(again, {0, -1}, 3, true));
}

// Central differences with step 1e-5 in F64: truncation 1e-10 and rounding 1e-16 / 1e-5 leave 1e-9.
TEST(CrossEntropyDirect, GradientIsTheDerivative) {
  const int64_t rows = 3, cols = 9, vocab = 7;
  const std::vector<int32_t> targets = {6, -1, 2};
  Rng rng(8);
  std::vector<double> x(static_cast<size_t>(rows * cols));
  for (double& value : x) value = 2 * rng.normal();
  const auto loss = [&](std::vector<double> at) {
    double sum = 0;
    for (double value : nll_of(at, targets, vocab, false)) sum += value;
    return sum * 0.25;
  };
  std::vector<double> gradient = x;
  nll_of(gradient, targets, vocab, true, 0.25);
  for (size_t i = 0; i < x.size(); ++i) {
    std::vector<double> up = x, down = x;
    up[i] += 1e-5;
    down[i] -= 1e-5;
    EXPECT_NEAR(gradient[i], (loss(up) - loss(down)) / 2e-5, 1e-9) << i;
  }
}

}  // namespace
}  // namespace irq
