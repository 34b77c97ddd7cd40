// The arithmetic of one NF-k block on the device, step for step that of nfk_block.h. The intrinsics that end in _rn round
// each step and are never contracted into an FMA, so the codes have the same bits as the CPU's.
#pragma once
#include "kernels/common.cuh"
#include "kernels/nf_codebook.h"
#include "kernels/quantized_matrix.h"

namespace irq {

constexpr unsigned kFullWarp = 0xffffffffu;

inline bool aligned_16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// T[c] of nf_codebook.h and its fp32 counterpart, passed to kernels by value.
struct EntropyTables {
  int64_t term[65];
  float term_fp32[65];
};
inline EntropyTables entropy_tables() {
  EntropyTables t;
  for (int c = 0; c <= kBlock; ++c) {
    t.term[c] = entropy_terms()[static_cast<size_t>(c)];
    t.term_fp32[c] = entropy_terms_fp32()[static_cast<size_t>(c)];
  }
  return t;
}

// |x| as an integer: ordered like the numbers, infinity and NaN above all, so that a maximum never loses a NaN.
__device__ __forceinline__ int magnitude_bits(float x) { return __float_as_int(x) & 0x7fffffff; }
__device__ __forceinline__ int warp_max_bits(int x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x = max(x, __shfl_xor_sync(kFullWarp, x, offset));
  return x;
}

template <int kBits>
__device__ __forceinline__ int nfk_code(const Codebook& book, float u, float a, float rcp) {
  const float x = __fmul_rn(u, rcp);
  int code = 0;
#pragma unroll
  for (int j = 0; j < (1 << kBits) - 1; ++j) code += x > book.threshold[j];
  return a == 0.0f ? book.zero_code : code;
}

// H = (T[n] - S) / (n 2^40): one division of integers that fp64 holds exactly.
__device__ __forceinline__ float entropy_bits(int64_t sum, int n, int64_t term_n) {
  return __double2float_rn(__ddiv_rn(static_cast<double>(term_n - sum), __dmul_rn(static_cast<double>(n), 0x1p40)));
}

// What a kernel reads of a QuantizedMatrix.
struct PackedView {
  const uint8_t* codes;
  const uint8_t* scale_codes;
  const float* scale_groups;
  const float* scale_offset;
  const float* scales;       // null: double-quantized
  const uint8_t* tau_codes;  // null: no shift
  const float* tau_groups;
  const float* map;
  int64_t rows, cols;
};
inline PackedView packed_view(const QuantizedMatrix& q) {
  const bool plain = q.format.scale == ScaleKind::f32;
  PackedView v{};
  v.codes = q.codes.as<uint8_t>();
  if (plain) {
    v.scales = q.scales.as<float>();
  } else {
    v.scale_codes = q.scale_codes.as<uint8_t>();
    v.scale_groups = q.scale_groups.as<float>();
    v.scale_offset = q.scale_offset.as<float>();
  }
  if (q.has_tau()) {
    v.tau_codes = q.tau_codes.as<uint8_t>();
    v.tau_groups = q.tau_groups.as<float>();
  }
  if (!plain || q.has_tau()) v.map = q.map.as<float>();
  v.rows = q.rows;
  v.cols = q.cols;
  return v;
}

// s_hat = fl(fl(map[code] * group) + offset), or the plain scale.
__device__ __forceinline__ float block_scale(const PackedView& q, int64_t block) {
  if (q.scales) return __ldg(q.scales + block);
  const float entry = __ldg(q.map + __ldg(q.scale_codes + block));
  return __fadd_rn(__fmul_rn(entry, __ldg(q.scale_groups + block / kScaleGroup)), __ldg(q.scale_offset));
}
__device__ __forceinline__ float block_tau(const PackedView& q, int64_t block) {
  return __fmul_rn(__ldg(q.map + __ldg(q.tau_codes + block)), __ldg(q.tau_groups + block / kScaleGroup));
}
template <bool kTau>
__device__ __forceinline__ float dequantized(float level, float scale, float tau) {
  const float product = __fmul_rn(level, scale);
  return kTau ? __fadd_rn(product, tau) : product;
}
// Code of element i of the whole matrix: for the general paths.
template <int kBits>
__device__ __forceinline__ int code_at(const uint8_t* codes, int64_t i) {
  const int64_t bit = i * kBits;
  const int offset = static_cast<int>(bit & 7);
  unsigned window = static_cast<unsigned>(codes[bit >> 3]) << 8;
  if (offset + kBits > 8) window |= codes[(bit >> 3) + 1];
  return static_cast<int>(window >> (16 - offset - kBits)) & ((1 << kBits) - 1);
}

// Calls f(std::integral_constant<int, bits>) for 2, 3 or 4.
template <class F>
void dispatch_bits(int bits, F&& f) {
  if (bits == 2) f(std::integral_constant<int, 2>{});
  else if (bits == 3) f(std::integral_constant<int, 3>{});
  else if (bits == 4) f(std::integral_constant<int, 4>{});
  else IRQ_CHECK(false, "no %d-bit codes", bits);
}

}  // namespace irq
