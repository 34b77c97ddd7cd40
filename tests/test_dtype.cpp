// bf16 and f16 conversions over all bit patterns, and rounding to nearest even between every two neighbours.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "src/core/dtype.h"

namespace irq {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// Every pattern but a NaN comes back as it was; a NaN stays one, with its sign.
template <class T, class Narrow>
void expect_roundtrip(Narrow narrow, uint16_t infinity_bits) {
  int nans = 0;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const T x{static_cast<uint16_t>(bits)};
    const float wide = to_float(x);
    const T back = narrow(wide);
    const bool nan = (bits & 0x7fffu) > infinity_bits;
    ASSERT_EQ(std::isnan(wide), nan) << std::hex << bits;
    if (nan) {
      ++nans;
      ASSERT_TRUE(std::isnan(to_float(back))) << std::hex << bits;
      ASSERT_EQ(back.bits >> 15, bits >> 15) << std::hex << bits;
    } else {
      ASSERT_EQ(back.bits, bits) << std::hex << bits;
      ASSERT_EQ(std::isinf(wide), (bits & 0x7fffu) == infinity_bits) << std::hex << bits;
      ASSERT_EQ(std::signbit(wide), bits >> 15 == 1) << std::hex << bits;
    }
  }
  EXPECT_EQ(nans, 2 * (0x7fff - infinity_bits));
}

// Between neighbours b and b + 1 the middle goes to the even one, and one float step to either side to the nearer one.
// After the largest finite value the "neighbour" is where the next one would be; it rounds to infinity.
template <class T, class Narrow>
void expect_ties_to_even(Narrow narrow, uint16_t infinity_bits) {
  for (uint32_t b = 0; b < infinity_bits; ++b) {
    const float low = to_float(T{static_cast<uint16_t>(b)});
    const double step = b + 1 < infinity_bits
                            ? static_cast<double>(to_float(T{static_cast<uint16_t>(b + 1)})) - static_cast<double>(low)
                            : static_cast<double>(low) - static_cast<double>(to_float(T{static_cast<uint16_t>(b - 1)}));
    const float middle = static_cast<float>(static_cast<double>(low) + step / 2);  // exact: one more bit than T has
    const uint32_t even = b % 2 == 0 ? b : b + 1;
    for (float sign : {1.0f, -1.0f}) {
      const uint32_t s = sign < 0 ? 0x8000u : 0;
      ASSERT_EQ(narrow(sign * middle).bits, even | s) << std::hex << b;
      ASSERT_EQ(narrow(sign * std::nextafter(middle, 0.0f)).bits, b | s) << std::hex << b;
      ASSERT_EQ(narrow(sign * std::nextafter(middle, kInf)).bits, (b + 1) | s) << std::hex << b;
    }
  }
}

const auto kNarrowBf16 = [](float x) { return to_bf16(x); };
const auto kNarrowF16 = [](float x) { return to_f16(x); };

TEST(Bf16, EveryPatternRoundTrips) { expect_roundtrip<Bf16>(kNarrowBf16, 0x7f80); }
TEST(F16, EveryPatternRoundTrips) { expect_roundtrip<F16>(kNarrowF16, 0x7c00); }
TEST(Bf16, RoundsToNearestEven) { expect_ties_to_even<Bf16>(kNarrowBf16, 0x7f80); }
TEST(F16, RoundsToNearestEven) { expect_ties_to_even<F16>(kNarrowF16, 0x7c00); }

TEST(Bf16, KnownValues) {
  EXPECT_EQ(to_bf16(1.0f).bits, 0x3f80);
  EXPECT_EQ(to_bf16(-2.0f).bits, 0xc000);
  EXPECT_EQ(to_bf16(kInf).bits, 0x7f80);
  EXPECT_EQ(to_bf16(std::numeric_limits<float>::max()).bits, 0x7f80);
}
TEST(F16, KnownValues) {
  EXPECT_EQ(to_f16(1.0f).bits, 0x3c00);
  EXPECT_EQ(to_f16(-65504.0f).bits, 0xfbff);
  EXPECT_EQ(to_f16(65520.0f).bits, 0x7c00);
  EXPECT_EQ(to_f16(0x1p-24f).bits, 0x0001);
  EXPECT_EQ(to_f16(0x1p-25f).bits, 0x0000);
  EXPECT_EQ(to_f16(std::numeric_limits<float>::max()).bits, 0x7c00);
  EXPECT_EQ(to_f16(-kInf).bits, 0xfc00);
}

TEST(DType, SizesAndNames) {
  EXPECT_EQ(size_of(DType::F32), 4);
  EXPECT_EQ(size_of(DType::F16), 2);
  EXPECT_EQ(size_of(DType::BF16), 2);
  EXPECT_EQ(size_of(DType::F64), 8);
  EXPECT_EQ(size_of(DType::I32), 4);
  EXPECT_EQ(size_of(DType::U8), 1);
  EXPECT_STREQ(name_of(DType::BF16), "bf16");
  EXPECT_STREQ(name_of(dtype_of<double>()), "f64");
}

}  // namespace
}  // namespace irq
