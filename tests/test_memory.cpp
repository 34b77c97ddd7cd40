// copy, fill, axpby, gather_rows, reduce_sum: the ladder of their cases, and what the cases cannot say.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/cases/memory.h"

namespace irq {
namespace {

IRQ_OP_TESTS(Memory, memory_cases());

template <class To, class From>
std::vector<To> converted(const std::vector<From>& in) {
  std::vector<To> out(in.size());
  const int64_t n = static_cast<int64_t>(in.size());
  cpu_backend(DType::F32)
      .copy(make_view(out.data(), dtype_of<To>(), 1, n, "out"),
            make_view(const_cast<From*>(in.data()), dtype_of<From>(), 1, n, "in"));
  return out;
}

// A 16-bit float by its definition: `mantissa` explicit bits, smallest normal exponent, ties to even (nearbyint).
double rounded(double x, int mantissa, int smallest, double overflow, double largest) {
  if (std::isnan(x) || std::isinf(x) || x == 0) return x;
  const int exponent = std::max(std::ilogb(x), smallest) - mantissa;
  const double r = std::ldexp(std::nearbyint(std::ldexp(x, -exponent)), exponent);
  return std::abs(x) >= overflow ? std::copysign(INFINITY, x) : std::copysign(std::min(std::abs(r), largest), x);
}
double to_half(double x) { return rounded(x, 10, -14, 65520.0, 65504.0); }
double to_bfloat(double x) { return rounded(x, 7, -126, 0x1.ffp127, 0x1.fep127); }

// Every sign, exponent and leading mantissa bits, with the low 16 bits at, just below and just above the ties of both
// types.
std::vector<float> floats_around_ties() {
  std::vector<float> x;
  for (uint32_t high = 0; high < 0x10000u; ++high)
    for (const uint32_t low :
         {0x0000u, 0x0001u, 0x0fffu, 0x1000u, 0x1001u, 0x3000u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu})
      x.push_back(std::bit_cast<float>((high << 16) | low));
  return x;
}

template <class T, class F>
void expect_rounding(const std::vector<F>& in, double (*definition)(double)) {
  const std::vector<T> out = converted<T>(in);
  size_t wrong = 0, at = 0;
  for (size_t i = 0; i < in.size(); ++i) {
    const double got = to_float(out[i]), want = definition(static_cast<double>(in[i]));
    const bool same = std::isnan(want) ? std::isnan(got) : got == want && std::signbit(got) == std::signbit(want);
    if (!same && wrong++ == 0) at = i;
  }
  EXPECT_EQ(wrong, 0u) << strf("first: %.9g became %.9g, expected %.9g", double(in[at]), double(to_float(out[at])),
                               definition(static_cast<double>(in[at])));
}

TEST(Copy, FloatToHalfRoundsToNearestEven) { expect_rounding<F16>(floats_around_ties(), to_half); }
TEST(Copy, FloatToBfloatRoundsToNearestEven) { expect_rounding<Bf16>(floats_around_ties(), to_bfloat); }

TEST(Copy, DoubleIsRoundedOnce) {
  std::vector<double> x = {1 + 0x1p-11 + 0x1p-40,
                           1 + 0x1p-11 - 0x1p-40,
                           1 + 0x1p-8 + 0x1p-50,
                           1 + 0x1p-8 - 0x1p-50,
                           0x1p-25 + 0x1p-60,
                           65520 - 1e-9,
                           1e300,
                           -1e-300,
                           INFINITY,
                           -INFINITY,
                           std::nan(""),
                           -0.0};
  Rng rng(5);
  for (int i = 0; i < 20000; ++i) {  // within 1e-12 of a tie of either type
    const double step = i % 2 ? 0x1p-11 : 0x1p-8;
    x.push_back((1 + (2 * std::floor(rng.uniform() * 0x1p6) + 1) * step) * (1 + 1e-12 * rng.normal()));
  }
  expect_rounding<F16>(x, to_half);
  expect_rounding<Bf16>(x, to_bfloat);
}

TEST(Copy, WideningIsExactAndComesBack) {
  std::vector<F16> half;
  std::vector<Bf16> bfloat;
  for (uint32_t i = 0; i < 0x10000u; ++i) half.push_back({uint16_t(i)}), bfloat.push_back({uint16_t(i)});
  const auto half_wide = converted<float>(half);
  const auto half_back = converted<F16>(half_wide);
  const auto bfloat_back = converted<Bf16>(converted<double>(bfloat));
  for (uint32_t i = 0; i < 0x10000u; ++i) {
    const uint32_t exponent = (i >> 10) & 31, mantissa = i & 1023;
    const double magnitude =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, int(exponent) - 25);
    if (exponent != 31) {
      EXPECT_EQ(double(half_wide[i]), i & 0x8000 ? -magnitude : magnitude) << i;
      EXPECT_EQ(half_back[i].bits, i);
    } else {
      EXPECT_EQ(std::isinf(half_wide[i]), mantissa == 0) << i;
      EXPECT_EQ(std::isnan(half_wide[i]), mantissa != 0) << i;
    }
    if (!std::isnan(to_float(bfloat[i]))) { EXPECT_EQ(bfloat_back[i].bits, i); }
  }
}

TEST(Copy, SameTypeMovesTheBits) {
  std::vector<uint32_t> in = {0x7f800001u, 0xffc12345u, 0x80000000u, 0x00000001u};
  std::vector<uint32_t> out(4);
  cpu_backend(DType::F32)
      .copy(make_view(out.data(), DType::F32, 2, 2, "out"), make_view(in.data(), DType::F32, 2, 2, "in"));
  EXPECT_EQ(out, in);
}

TEST(Copy, StridedOnBothSides) {
  std::vector<double> in(5 * 7);
  for (size_t i = 0; i < in.size(); ++i) in[i] = double(i);
  std::vector<F16> out(5 * 4, F16{0x7bff});
  Tensor src = make_view(in.data(), DType::F64, 5, 7, "in").slice_cols(2, 3);
  Tensor dst = make_view(out.data(), DType::F16, 5, 4, "out").slice_cols(1, 3);
  cpu_backend(DType::F32).copy(dst, src);
  for (int r = 0; r < 5; ++r) {
    EXPECT_EQ(out[size_t(r * 4)].bits, 0x7bff);
    for (int c = 0; c < 3; ++c) EXPECT_EQ(to_float(out[size_t(r * 4 + 1 + c)]), float(r * 7 + 2 + c));
  }
}

// The GPU rounds as the CPU does, for every pair of types.
template <class To, class From>
void expect_cuda_as_cpu(const std::vector<From>& in) {
  Backend& gpu = cuda_backend(DType::F32);
  const int64_t n = static_cast<int64_t>(in.size());
  const std::vector<To> want = converted<To>(in);
  std::vector<To> got(in.size());
  Tensor src = make_view(gpu.allocate(n * int64_t{sizeof(From)}), dtype_of<From>(), 1, n, "src", Device::CUDA);
  Tensor dst = make_view(gpu.allocate(n * int64_t{sizeof(To)}), dtype_of<To>(), 1, n, "dst", Device::CUDA);
  gpu.upload(src, in.data());
  gpu.copy(dst, src);
  gpu.download(got.data(), dst);
  gpu.release(src.data);
  gpu.release(dst.data);
  size_t wrong = 0;
  for (size_t i = 0; i < in.size(); ++i) {
    if constexpr (std::is_same_v<To, float>)
      wrong += std::isnan(want[i]) ? !std::isnan(got[i])
                                   : std::bit_cast<uint32_t>(want[i]) != std::bit_cast<uint32_t>(got[i]);
    else wrong += std::isnan(to_float(want[i])) ? !std::isnan(to_float(got[i])) : want[i].bits != got[i].bits;
  }
  EXPECT_EQ(wrong, 0u) << name_of(dtype_of<From>()) << " to " << name_of(dtype_of<To>());
}

TEST(Copy, CudaRoundsAsTheCpu) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  std::vector<F16> half;
  std::vector<Bf16> bfloat;
  for (uint32_t i = 0; i < 0x10000u; ++i) half.push_back({uint16_t(i)}), bfloat.push_back({uint16_t(i)});
  expect_cuda_as_cpu<F16>(floats_around_ties());
  expect_cuda_as_cpu<Bf16>(floats_around_ties());
  expect_cuda_as_cpu<float>(half);
  expect_cuda_as_cpu<float>(bfloat);
  expect_cuda_as_cpu<Bf16>(half);
  expect_cuda_as_cpu<F16>(bfloat);
}

// <gather(x), dy> = <x, gather with the inverse index (dy)>: its own backward, as ops.inc says.
TEST(GatherRows, InverseIndexIsTheTranspose) {
  constexpr int64_t kFrom = 9, kTo = 6, kCols = 5;
  std::vector<int32_t> index = {4, -1, 8, 0, 3, 7}, inverse(kFrom, -1);
  for (int32_t i = 0; i < kTo; ++i)
    if (index[size_t(i)] >= 0) inverse[size_t(index[size_t(i)])] = i;
  Rng rng(3);
  std::vector<double> x(kFrom * kCols), dy(kTo * kCols), y(kTo * kCols, std::nan("")), dx(kFrom * kCols, std::nan(""));
  for (double& v : x) v = rng.normal();
  for (double& v : dy) v = rng.normal();
  Backend& b = cpu_backend(DType::F64);
  const auto view = [](std::vector<double>& v, int64_t rows) {
    return make_view(v.data(), DType::F64, rows, kCols, "v");
  };
  b.gather_rows(view(y, kTo), view(x, kFrom), make_view(index.data(), DType::I32, 1, kTo, "index"), 0.0);
  b.gather_rows(view(dx, kFrom), view(dy, kTo), make_view(inverse.data(), DType::I32, 1, kFrom, "inverse"), 0.0);
  double left = 0, right = 0;
  for (size_t i = 0; i < y.size(); ++i) left += y[i] * dy[i];
  for (size_t i = 0; i < x.size(); ++i) right += x[i] * dx[i];
  EXPECT_NEAR(left, right, 1e-13);  // the same 25 products, rounded in another order
  for (int64_t c = 0; c < kCols; ++c) {
    EXPECT_EQ(y[size_t(1 * kCols + c)], 0.0);
    EXPECT_EQ(y[size_t(2 * kCols + c)], x[size_t(8 * kCols + c)]);
    EXPECT_EQ(dx[size_t(1 * kCols + c)], 0.0);
  }
}

TEST(Axpby, BetaZeroNeverReadsTheOutput) {
  std::vector<double> y(4, std::nan("")), x = {1, 2, 3, 4};
  cpu_backend(DType::F64)
      .axpby(make_view(y.data(), DType::F64, 1, 4, "y"), make_view(x.data(), DType::F64, 1, 4, "x"), 2.0, 0.0);
  EXPECT_EQ(y, (std::vector<double>{2, 4, 6, 8}));
}

}  // namespace
}  // namespace irq
