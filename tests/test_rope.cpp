// rope: the ladder of its cases, the definition by complex numbers, and forward then inverse.
#include <gtest/gtest.h>

#include <complex>

#include "tests/cases/rope.h"

namespace irq {
namespace {

IRQ_OP_TESTS(Rope, rope_cases());

// The pair (j, j + D/2) is the complex number a + ib, turned by e^(i angle).
TEST(Rope, IsAComplexRotationOfHalfSplitPairs) {
  constexpr int kD = 12, kHalf = kD / 2;
  constexpr int64_t kN = 10, kH = 3;
  for (const bool inverse : {false, true}) {
    const OpCase c = rope_case(kN, kH, kD, inverse);
    const HostArgs in = make_inputs(c);
    std::vector<double> want = in[0];
    for (int64_t i = 0; i < kN; ++i)
      for (int64_t h = 0; h < kH; ++h)
        for (int64_t j = 0; j < kHalf; ++j) {
          double& a = want[size_t((i * kH + h) * kD + j)];
          double& b = want[size_t((i * kH + h) * kD + j + kHalf)];
          const double position = in[3][size_t(i)];
          const double angle = rope_angle(int64_t(position) * kHalf + j, kD);
          const std::complex<double> z =
              position < 0 ? 0.0 : std::complex(a, b) * std::polar(1.0, inverse ? -angle : angle);
          a = z.real(), b = z.imag();
        }
    EXPECT_LE(relative_l2(run_case(c, cpu_backend(DType::F64), in)[0], want), 1e-14);  // a few F64 roundings
  }
}

TEST(Rope, InverseUndoesForwardAndDeadRowsAreZero) {
  constexpr int kD = 16;
  constexpr int64_t kN = 13, kH = 4;
  HostArgs args = make_inputs(rope_case(kN, kH, kD, false));
  const std::vector<double> x = args[0];
  args[0] = run_case(rope_case(kN, kH, kD, false), cpu_backend(DType::F64), args)[0];
  const std::vector<double> back = run_case(rope_case(kN, kH, kD, true), cpu_backend(DType::F64), args)[0];
  bool moved = false;
  for (size_t i = 0; i < x.size(); ++i) {
    const bool dead = args[3][i / size_t(kH * kD)] < 0;
    EXPECT_NEAR(back[i], dead ? 0.0 : x[i], 1e-14) << i;
    if (!dead) moved = moved || std::abs(args[0][i] - x[i]) > 0.1;
  }
  EXPECT_TRUE(moved);
}

}  // namespace
}  // namespace irq
