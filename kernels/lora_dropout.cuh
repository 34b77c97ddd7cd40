// What the CUDA kernels of LoRA under dropout share: their arguments, the masks in registers, and how a matrix of up to 64
// ranks is cut out of any number of adapters.
//
// One Philox call decides over eight consecutive features of a row, 16 bytes in bf16. The products are therefore arranged
// around lanes that hold such a chunk whole: the order of the terms of a sum (K of an mma) and of the columns of a result
// (N) is free, as long as both operands agree on it, so no mask bit ever changes its lane.
#pragma once
#include <vector>

#include "kernels/chunk.cuh"
#include "kernels/dropout.h"
#include "kernels/sm80.cuh"

namespace irq {

constexpr int kSliceRanks = 64;

// Up to 64 rank columns of one adapter.
struct RankSlice {
  int id;              // the adapter's number: picks the mask
  int adapter;         // its place in the group
  int column, first;   // its first column among the R, and within its adapter
  int width;           // <= 64
  const float* beta1;  // of the adapter, or null
};

struct MaskArgs {
  const int *positions, *samples;  // (1, N)
  const StepParams* params;
  DropoutThreshold kept;
  uint32_t threshold;
  float scale;
};

inline MaskArgs mask_args(const AdapterMasks& masks) {
  const DropoutRate rate = dropout_rate(masks.p);
  return {static_cast<const int*>(masks.positions.data),
          static_cast<const int*>(masks.samples.data),
          static_cast<const StepParams*>(masks.params.data),
          dropout_threshold(rate.threshold),
          rate.threshold,
          static_cast<float>(rate.scale)};
}

inline std::vector<RankSlice> rank_slices(const AdapterMasks& masks, int64_t ranks, const AdapterScalars& beta1 = {}) {
  const int rank = static_cast<int>(ranks / masks.count);
  std::vector<RankSlice> slices;
  for (int m = 0; m < masks.count; ++m)
    for (int first = 0; first < rank; first += kSliceRanks)
      slices.push_back({masks.ids[static_cast<size_t>(m)], m, m * rank + first, first,
                        std::min(kSliceRanks, rank - first),
                        static_cast<const float*>(beta1[static_cast<size_t>(m)].data)});
  return slices;
}

// A row's share of its masks and whether it is alive, for kernels that visit the rows [first, first + count) many times.
struct alignas(16) TableRow {
  DropoutRow mask;
  uint32_t live;
};
// Filled by the whole block; a barrier must follow. Rows from `rows` on count as dead.
__device__ __forceinline__ void fill_row_table(TableRow* table, int64_t first, int count, int64_t rows,
                                               const MaskArgs& m) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    TableRow row{};
    if (first + i < rows && m.positions[first + i] >= 0)
      row = {dropout_row(m.positions[first + i], m.samples[first + i], m.params->seed), 1};
    table[i] = row;
  }
}

// Zeroes the dropped ones of eight bf16 features of a row.
__device__ __forceinline__ void drop_chunk(uint32_t (&x)[4], const DropoutRow& row, const DropoutColumn& column,
                                           const uint32_t (&seed)[2], DropoutThreshold kept) {
  const Philox4 bits = dropout_pair(row, column, seed);
  x[0] &= spread_signs(dropout_kept(bits.x, kept));
  x[1] &= spread_signs(dropout_kept(bits.y, kept));
  x[2] &= spread_signs(dropout_kept(bits.z, kept));
  x[3] &= spread_signs(dropout_kept(bits.w, kept));
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
                             const AdapterMasks& masks, cudaStream_t stream);
void lora_dropout_da_simple(Tensor da, Tensor du, Tensor x, const AdapterMasks& masks, double beta,
                            cudaStream_t stream);
void lora_dropout_dx_simple(Tensor dx, Tensor du, Tensor a, const AdapterMasks& masks, double beta,
                            cudaStream_t stream);

}  // namespace irq
