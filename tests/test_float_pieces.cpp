// The loops that every importer shares.
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

TEST(FloatPieces, HalfSplit) {
  // Two heads of six rows, two bytes a row: pairs (2j, 2j + 1) become (j, j + 3).
  const char in[] = "a0b0c0d0e0f0A1B1C1D1E1F1";
  char out[25] = {};
  half_split_rows(out, in, 2, 6, 2);
  EXPECT_STREQ(out, "a0c0e0b0d0f0A1C1E1B1D1F1");
}

}  // namespace
}  // namespace irq
