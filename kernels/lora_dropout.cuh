// What the CUDA kernels of LoRA under dropout share: their arguments, the masks' bits on their way to registers, and how a
// matrix of up to 64 ranks is cut out of any number of adapters.
//
// A word of 64 bits is a row's share of 64 features (kernels/lora_dropout.h). Bits that a lane needs together lie 16 apart,
// so one shift and one byte permutation make the mask of two neighbouring features of bf16.
#pragma once
#include <vector>

#include "kernels/chunk.cuh"
#include "kernels/dropout.h"
#include "kernels/sm80.cuh"

namespace irq {

constexpr int kSliceRanks = 64;

// Up to 64 rank columns of one adapter.
struct RankSlice {
  int adapter;         // its place in the group: picks the mask
  int column, first;   // its first column among the R, and within its adapter
  int width;           // <= 64
  const float* beta1;  // of the adapter, or null
};

struct MaskArgs {
  const uint2* bits;     // (adapters, blocks of 64 features, pitch): a word for each row
  int64_t pitch;         // words
  int blocks;            // of an adapter
  const int* positions;  // (1, N)
  float scale;
  __device__ __forceinline__ const uint2* block(int adapter, int b) const {
    return bits + (int64_t{adapter} * blocks + b) * pitch;
  }
};

inline MaskArgs mask_args(const MaskBits& masks) {
  return {static_cast<const uint2*>(masks.bits.data), masks.bits.stride / 8,
          static_cast<int>(masks.bits.rows / masks.count), static_cast<const int*>(masks.positions.data),
          static_cast<float>(dropout_rate(masks.p).scale)};
}

inline std::vector<RankSlice> rank_slices(const MaskBits& masks, int64_t ranks, const AdapterScalars& beta1 = {}) {
  const int rank = static_cast<int>(ranks / masks.count);
  std::vector<RankSlice> slices;
  for (int m = 0; m < masks.count; ++m)
    for (int first = 0; first < rank; first += kSliceRanks)
      slices.push_back({m, m * rank + first, first, std::min(kSliceRanks, rank - first),
                        static_cast<const float*>(beta1[static_cast<size_t>(m)].data)});
  return slices;
}

// Which rows [first, first + count) are alive, for kernels that visit them many times. Filled by the whole block; a barrier
// must follow. Rows from `rows` on count as dead.
__device__ __forceinline__ void fill_live_rows(uint32_t* live, int64_t first, int count, int64_t rows,
                                               const MaskArgs& m) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x))
    live[i] = first + i < rows && m.positions[first + i] >= 0;
}

// Starts copying the words of rows [row, row + kRows) and of kBlocks blocks of features from `block` on to shared memory, that
// of (block, row) to place block * kRows + row; no bits where there are none. row is even.
template <int kRows, int kBlocks, int kThreads>
__device__ __forceinline__ void load_words(uint32_t to, const MaskArgs& m, int adapter, int block, int64_t row,
                                           int64_t rows) {
  constexpr int kPieces = kRows / 2 * kBlocks;
#pragma unroll
  for (int first = 0; first < kPieces; first += kThreads) {
    const int i = first + static_cast<int>(threadIdx.x), b = i / (kRows / 2), r = i % (kRows / 2) * 2;
    if (kPieces % kThreads != 0 && i >= kPieces) break;
    const bool valid = block + b < m.blocks && row + r < rows;
    cp_async_16(to + i * 16, valid ? m.block(adapter, block + b) + row + r : m.bits, valid);
  }
}

// The bits of chunk c (0 to 3, eight features) of the 32 features of half a word, so that those of its pair j are bits 12 + j
// and 28 + j.
__device__ __forceinline__ uint32_t chunk_bits(uint32_t half_word, int c) { return half_word << (12 - 4 * c); }

// Zeroes the dropped ones of eight bf16 features of a row; bits: chunk_bits.
__device__ __forceinline__ void drop_chunk(uint32_t (&x)[4], uint32_t bits) {
#pragma unroll
  for (int j = 0; j < 4; ++j) x[j] &= spread_signs(bits << (3 - j));
}

// sum[2 j + e] += x[2 j + e] where pair j's bit e is set; bits: chunk_bits.
__device__ __forceinline__ void add_kept(float& low, float& high, float x_low, float x_high, uint32_t bits, int j) {
  add_if_any(low, x_low, bits & 1u << (12 + j));
  add_if_any(high, x_high, bits & 1u << (28 + j));
}

__device__ __forceinline__ void load_shared_16(uint32_t (&r)[4], const unsigned char* from) {
  const uint4 v = *reinterpret_cast<const uint4*>(from);
  r[0] = v.x, r[1] = v.y, r[2] = v.z, r[3] = v.w;
}

// Blocks may use more than 48 KB of shared memory only after the kernel has been told so.
template <class Kernel>
void allow_shared_bytes(Kernel kernel, int bytes) {
  CUDA_CHECK(
      cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
}

// lora_dropout_simple.cu: any shape, any stride, F32 or BF16.
void lora_pool_simple(Tensor px, Tensor x, const MaskArgs& m, bool tile, cudaStream_t stream);
void lora_dropout_fwd_simple(Tensor u, Tensor px, Tensor x, Tensor a, const AdapterScalars& beta1,
                             const MaskBits& masks, cudaStream_t stream);
void lora_dropout_da_simple(Tensor da, Tensor du, Tensor x, const MaskBits& masks, double beta, cudaStream_t stream);
void lora_dropout_dx_simple(Tensor dx, Tensor du, Tensor a, const MaskBits& masks, double beta, cudaStream_t stream);

}  // namespace irq
