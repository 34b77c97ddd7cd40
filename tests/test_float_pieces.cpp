// The loops over values that converting is made of.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "src/io/float_pieces.h"

namespace irq {
namespace {

TEST(FloatPieces, FindsTheFirstThatIsNotFinite) {
  std::vector<float> x(200000, 1.0f);
  EXPECT_EQ(first_not_finite(x.data(), DType::F32, 200000), -1);
  x[199999] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(first_not_finite(x.data(), DType::F32, 200000), 199999);
  EXPECT_EQ(first_not_finite(x.data(), DType::F32, 199999), -1);
  x[70000] = -std::numeric_limits<float>::infinity();
  EXPECT_EQ(first_not_finite(x.data(), DType::F32, 200000), 70000);
  // All 65,536 patterns of both 16-bit types.
  for (int i = 0; i < 65536; ++i) {
    const uint16_t bits = static_cast<uint16_t>(i);
    EXPECT_EQ(first_not_finite(&bits, DType::F16, 1), std::isfinite(to_float(F16{bits})) ? -1 : 0);
    EXPECT_EQ(first_not_finite(&bits, DType::BF16, 1), std::isfinite(to_float(Bf16{bits})) ? -1 : 0);
  }
}

}  // namespace
}  // namespace irq
