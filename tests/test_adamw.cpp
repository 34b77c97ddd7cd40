// adamw: the check values of fidelity 6.4, clipping, decay after the update, and the first step's size.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/cases/adamw.h"

namespace irq {

IRQ_OP_TESTS(Adamw, adamw_cases());

namespace {

// One parameter in F64 on the CPU.
struct Scalar {
  double p = 1, m = 0, v = 0, norm = 0;
  int64_t t = 0;
  void step(double g, double lr, double clip = 0, double decay = 0) {
    ++t;
    StepParams params;
    params.lr = lr;
    params.clip = clip;
    params.bias1 = 1 - std::pow(kAdamBeta1, static_cast<double>(t));
    params.bias2 = 1 - std::pow(kAdamBeta2, static_cast<double>(t));
    const auto view = [](double& x, const char* name) { return make_view(&x, DType::F64, 1, 1, name); };
    cpu_backend(DType::F64)
        .adamw(view(p, "p"), view(m, "m"), view(v, "v"), view(g, "g"), view(norm, "norm"),
               make_view(&params, DType::U8, 1, sizeof(params), "params"), decay);
  }
};

TEST(AdamwDirect, CheckValues) {
  const double gradients[] = {0.1, -0.3, 0.05}, expected[] = {0.9998000000, 0.9998988380, 0.9999543376};
  Scalar x;
  for (int i = 0; i < 3; ++i) {
    x.step(gradients[i], 2e-4);
    EXPECT_NEAR(x.p, expected[i], 5.1e-11) << "step " << i + 1;  // 10 printed digits
  }
}

// The form bitsandbytes computes: p -= lr sqrt(bias2) / bias1 * m / (sqrt(v) + eps sqrt(bias2)).
TEST(AdamwDirect, IsTheFormOfBitsandbytes) {
  Scalar x;
  double p = 1, m = 0, v = 0;
  for (int t = 1; t <= 50; ++t) {
    const double g = 1e-4 * std::sin(t);
    x.step(g, 1e-3);
    m = 0.9 * m + 0.1 * g;
    v = 0.999 * v + 0.001 * g * g;
    const double c1 = 1 - std::pow(0.9, t), c2 = std::sqrt(1 - std::pow(0.999, t));
    p -= 1e-3 * c2 / c1 * m / (std::sqrt(v) + 1e-8 * c2);
    ASSERT_NEAR(x.p, p, 1e-13) << "step " << t;  // F64 rounding of 50 steps
  }
}

// Whatever the gradient's size, the first step moves a parameter by lr (as good as eps / |g| allows).
TEST(AdamwDirect, FirstStepIsTheLearningRate) {
  for (double g : {1e-3, -10.0}) {
    Scalar x;
    x.step(g, 0.01);
    EXPECT_NEAR(std::abs(x.p - 1), 0.01, 0.01 * 1e-8 / std::abs(g) * 1.01 + 1e-15);
  }
}

TEST(AdamwDirect, ClipsByTheGlobalNorm) {
  Scalar x;
  x.norm = 5;
  x.step(4, 1e-3, 0.3);
  const double clipped = 4 * 0.3 / (5 + 1e-6);
  EXPECT_DOUBLE_EQ(x.m, 0.1 * clipped);
  EXPECT_NEAR(x.v, 0.001 * clipped * clipped, 1e-17);
  Scalar below;  // a norm below the limit changes nothing
  below.norm = 0.2;
  below.step(0.2, 1e-3, 0.3);
  EXPECT_DOUBLE_EQ(below.m, 0.1 * 0.2);
  Scalar off;  // clip = 0: none, and the norm is not read
  off.norm = std::nan("");
  off.step(4, 1e-3, 0);
  EXPECT_DOUBLE_EQ(off.m, 0.4);
}

TEST(AdamwDirect, DecaysAfterTheUpdate) {
  Scalar plain, decayed;
  plain.step(0.5, 1e-2);
  decayed.step(0.5, 1e-2, 0, 0.1);
  EXPECT_DOUBLE_EQ(decayed.p, plain.p * (1 - 1e-2 * 0.1));
}

}  // namespace
}  // namespace irq
