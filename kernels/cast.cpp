// copy: the one op that moves elements between types. CPU reference.
#include <cmath>

#include "kernels/common.h"

namespace irq {
namespace {

// double -> float, but inexact results get an odd last bit. Rounding that once more to 16 bits then gives what a single
// rounding would: the odd bit remembers on which side of a tie the double was.
float round_to_odd(double x) {
  const float f = static_cast<float>(x);
  if (std::isnan(x) || static_cast<double>(f) == x || (std::bit_cast<uint32_t>(f) & 1u)) return f;
  const bool too_large = std::abs(static_cast<double>(f)) > std::abs(x);
  return std::bit_cast<float>(std::bit_cast<uint32_t>(f) + (too_large ? -1u : 1u));  // one step in magnitude
}

float widen(Bf16 x) { return to_float(x); }
float widen(F16 x) { return to_float(x); }
float widen(float x) { return x; }
double widen(double x) { return x; }

template <class D, class S>
D convert(S x) {
  if constexpr (std::is_same_v<D, S>) return x;  // same type: the bits move, NaN payloads too
  else if constexpr (std::is_same_v<D, float> || std::is_same_v<D, double>) return static_cast<D>(widen(x));
  else {
    float f;
    if constexpr (std::is_same_v<S, double>) f = round_to_odd(x);
    else f = widen(x);
    if constexpr (std::is_same_v<D, Bf16>) return to_bf16(f);
    else return to_f16(f);
  }
}

template <class D, class S>
void copy_rows(Tensor dst, Tensor src) {
#pragma omp parallel for if (dst.numel() > 16384)
  for (int64_t r = 0; r < dst.rows; ++r) {
    D* d = dst.row<D>(r);
    const S* s = src.row<S>(r);
    for (int64_t c = 0; c < dst.cols; ++c) d[c] = convert<D>(s[c]);
  }
}

template <class F>
void dispatch_any(DType t, F&& f) {
  switch (t) {
    case DType::F32: return f(float{});
    case DType::F64: return f(double{});
    case DType::BF16: return f(Bf16{});
    case DType::F16: return f(F16{});
    default: IRQ_CHECK(false, "copy cannot convert %s", name_of(t));
  }
}

}  // namespace

void CpuBackend::copy(Tensor dst, Tensor src) {
  if (dst.dtype == src.dtype) {  // any type, integers included
    const int64_t width = size_of(dst.dtype);
    for (int64_t r = 0; r < dst.rows; ++r)
      std::memcpy(static_cast<char*>(dst.data) + r * dst.stride * width,
                  static_cast<const char*>(src.data) + r * src.stride * width, static_cast<size_t>(dst.cols * width));
    return;
  }
  dispatch_any(dst.dtype, [&](auto d) {
    dispatch_any(src.dtype, [&](auto s) { copy_rows<decltype(d), decltype(s)>(dst, src); });
  });
}

}  // namespace irq
