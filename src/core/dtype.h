// Element types, and which of them a run uses for what (the precision policy).
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>

namespace irq {

enum class DType : int32_t { F32 = 0, F16 = 1, BF16 = 2, F64 = 3, I32 = 4, U8 = 5 };

constexpr int64_t size_of(DType t) {
  switch (t) {
    case DType::F64: return 8;
    case DType::F32:
    case DType::I32: return 4;
    case DType::F16:
    case DType::BF16: return 2;
    case DType::U8: return 1;
  }
  return 0;
}
const char* name_of(DType t);  // "f32", "f16", "bf16", "f64", "i32", "u8"

// bfloat16 and IEEE half as bit patterns: storage only, arithmetic happens in float.
struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};
// Rounds to nearest even, as the GPU's __float2bfloat16_rn does; NaN stays NaN.
inline Bf16 to_bf16(float x) {
  uint32_t u = std::bit_cast<uint32_t>(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((u >> 16) | 0x40u)};
  return {static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}
inline float to_float(Bf16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
F16 to_f16(float x);
float to_float(F16 x);

template <class T>
constexpr DType dtype_of();
template <>
constexpr DType dtype_of<float>() {
  return DType::F32;
}
template <>
constexpr DType dtype_of<double>() {
  return DType::F64;
}
template <>
constexpr DType dtype_of<int32_t>() {
  return DType::I32;
}
template <>
constexpr DType dtype_of<uint8_t>() {
  return DType::U8;
}
template <>
constexpr DType dtype_of<Bf16>() {
  return DType::BF16;
}
template <>
constexpr DType dtype_of<F16>() {
  return DType::F16;
}

// The precision policy of a run (one row of the ladder of trust).
//   CPU production {F32, F32} | CPU proof {F64, F64} | CUDA production {BF16, F32} | CUDA proof {F32, F32}
struct Precision {
  DType storage = DType::F32;  // activations, their gradients, frozen weights, folded adapters
  DType master = DType::F32;   // trained parameters, their gradients, Adam's m and v, norm weights, rstd, lse, loss
};

}  // namespace irq
