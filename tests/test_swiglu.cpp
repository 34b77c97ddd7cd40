// swiglu: the ladder of its cases, finite differences, and gates far from zero.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/cases/swiglu.h"

namespace irq {
namespace {

IRQ_OP_TESTS(Swiglu, swiglu_cases());

TEST(Swiglu, FiniteDifferences) {
  constexpr int64_t kN = 2, kF = 7;
  const OpCase fwd = swiglu_fwd_case(kN, kF), bwd = swiglu_bwd_case(kN, kF, true);
  Backend& b = cpu_backend(DType::F64);
  HostArgs in = make_inputs(bwd);
  const std::vector<double> grad = run_case(bwd, b, in)[0];
  const auto loss = [&](const std::vector<double>& gate_up) {
    const std::vector<double> h = run_case(fwd, b, {std::vector<double>(kN * kF), gate_up})[0];
    double sum = 0;
    for (size_t i = 0; i < h.size(); ++i) sum += h[i] * in[1][i];
    return sum;
  };
  std::vector<double> want;
  for (size_t i = 0; i < in[0].size(); ++i) {
    std::vector<double> up = in[0], down = in[0];
    up[i] += 1e-5, down[i] -= 1e-5;
    want.push_back((loss(up) - loss(down)) / 2e-5);
  }
  EXPECT_LE(relative_l2(grad, want), 1e-8);  // h^2 of the third derivative and 1e-16 / h of rounding at h = 1e-5
}

// silu and its slope have limits on both sides; nothing may overflow into NaN.
void expect_limits(Backend& b) {
  const std::vector<double> gates = {-3e4, -200, 200, 3e4, 0}, ones(5, 1.0);
  std::vector<double> gate_up = gates;
  gate_up.insert(gate_up.end(), ones.begin(), ones.end());
  const std::vector<double> h = run_case(swiglu_fwd_case(1, 5), b, {std::vector<double>(5), gate_up})[0];
  const std::vector<double> d = run_case(swiglu_bwd_case(1, 5, true), b, {gate_up, ones, gate_up, ones})[0];
  const double slopes[] = {0, 0, 1, 1, 0.5};
  for (size_t i = 0; i < 5; ++i) {
    const double limit = std::max(gates[i], 0.0);
    EXPECT_NEAR(h[i], limit, 4e-3 * limit + 1e-30) << gates[i];  // bf16 storage rounds by up to 2^-9
    EXPECT_NEAR(d[i], slopes[i], 1e-30) << gates[i];
    EXPECT_NEAR(d[5 + i], limit, 4e-3 * limit + 1e-30) << gates[i];
  }
}
TEST(Swiglu, LimitsCpu) { expect_limits(cpu_backend(DType::F32)); }
TEST(Swiglu, LimitsCuda) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  expect_limits(cuda_backend(DType::F32));
  expect_limits(cuda_backend(DType::BF16));
}

}  // namespace
}  // namespace irq
