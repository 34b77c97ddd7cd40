// What the two kernels that multiply NF-k codes by tensor cores share: levels as bf16, and pairs of codes as operands.
#pragma once
#include "kernels/nfk_block.cuh"
#include "kernels/sm80.cuh"

namespace irq {

// Multiples of the levels that bf16 holds best (found by trying): with them the error falls from 1.5e-3 to 8.3e-4 rms for
// NF4, 5.6e-4 to 4.7e-4 for NF3, 2.2e-3 to 1e-5 for NF2, weighted by how often a level occurs and how large it is.
constexpr float kLevelScale[5] = {0, 0, 1.52342606f, 1.30531311f, 1.43654251f};
// Those multiples, and what a product of them is multiplied by.
inline void scale_levels(float (&level)[16], float& unit, int bits) {
  for (int i = 0; i < 1 << bits; ++i) level[i] = nf_codebook(bits).level[i] * kLevelScale[bits];
  unit = 1.0f / kLevelScale[bits];
}

// A lane's 16 codes of a block, as 8 pairs. Pair i is taken out with as few instructions as possible.
template <int kBits>
struct Codes;
template <>
struct Codes<4> {
  uint2 bytes;
  Codes() = default;
  __device__ __forceinline__ explicit Codes(const uint8_t* p) : bytes(*reinterpret_cast<const uint2*>(p)) {}
  __device__ __forceinline__ explicit Codes(uint32_t shared) : bytes(load_shared_64(shared)) {}
  template <int i>
  __device__ __forceinline__ uint32_t pair() const {
    return __byte_perm(i < 4 ? bytes.x : bytes.y, 0, 0x4440 + i % 4);
  }
  // 256 * pair + column, one instruction; bits 8 to 23 of column are 0.
  template <int i>
  __device__ __forceinline__ uint32_t wide_address(uint32_t column) const {
    return __byte_perm(i < 4 ? bytes.x : bytes.y, column, 0x7504 + (i % 4 << 4));
  }
};
template <>
struct Codes<3> {
  uint32_t a, b, c;  // 16 bits each: the 6 bytes are not aligned to more
  Codes() = default;
  __device__ __forceinline__ explicit Codes(const uint8_t* p) {
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(p);
    a = halves[0], b = halves[1], c = halves[2];
  }
  __device__ __forceinline__ explicit Codes(uint32_t shared)
      : a(load_shared_16(shared)), b(load_shared_16(shared + 2)), c(load_shared_16(shared + 4)) {}
  template <int i>
  __device__ __forceinline__ uint32_t pair() const {
    const uint32_t v = i < 4 ? __byte_perm(a, b, 0x3014) : __byte_perm(b, c, 0x3145);  // 24 bits, first code on top
    return (v >> (18 - 6 * (i % 4))) & 63;
  }
  template <int i>
  __device__ __forceinline__ uint32_t wide_address(uint32_t column) const {
    const uint32_t v = i < 4 ? __byte_perm(a, b, 0x3014) : __byte_perm(b, c, 0x3145);
    constexpr int kShift = 18 - 6 * (i % 4) - 8;
    return ((kShift >= 0 ? v >> (kShift & 31) : v << (-kShift & 31)) & (63 << 8)) | column;
  }
};
template <>
struct Codes<2> {
  uint32_t v;
  Codes() = default;
  __device__ __forceinline__ explicit Codes(const uint8_t* p) : v(*reinterpret_cast<const uint32_t*>(p)) {}
  __device__ __forceinline__ explicit Codes(uint32_t shared) : v(load_shared_32(shared)) {}
  template <int i>
  __device__ __forceinline__ uint32_t pair() const {
    return (v >> (8 * (i / 2) + (i % 2 == 0 ? 4 : 0))) & 15;
  }
  template <int i>
  __device__ __forceinline__ uint32_t wide_address(uint32_t column) const {
    constexpr int kShift = 8 * (i / 2) + (i % 2 == 0 ? 4 : 0) - 8;
    return ((kShift >= 0 ? v >> (kShift & 31) : v << (-kShift & 31)) & (15 << 8)) | column;
  }
};

// The table of all pairs of codes, a copy for each lane (no bank conflicts): [pair][lane] = two levels as bf16, the first
// code's in the lower half. `level` is lane's own of the codebook, scaled; by all kThreads of a block.
// kPitch: bytes from one pair's copies to the next's: 128, or 256 for wide_address().
template <int kBits, int kThreads, int kPitch = 128>
__device__ __forceinline__ void fill_pair_table(uint32_t* table, float level) {
  constexpr int kPieces = (1 << (2 * kBits)) * 8;  // of 16 bytes: 4 copies
#pragma unroll
  for (int k = 0; k < kPieces; k += kThreads) {
    const int i = k + threadIdx.x, pair = i / 8;
    const float first = __shfl_sync(kFullWarp, level, pair >> kBits);
    const float second = __shfl_sync(kFullWarp, level, pair & ((1 << kBits) - 1));
    const uint32_t value = pack_bf16(first, second);
    if (i < kPieces)
      reinterpret_cast<uint4*>(table)[pair * (kPitch / 16) + i % 8] = make_uint4(value, value, value, value);
  }
}

}  // namespace irq
