// Mask bits from random draws, for the kernels that make them.
#pragma once
#include "kernels/chunk.cuh"
#include "kernels/dropout.h"

namespace irq {

// The bits of 32 features of a row. columns: of their four chunks of eight.
// kMost: at most half of the elements are dropped (DropoutThreshold's "or").
template <bool kMost>
__device__ __forceinline__ uint32_t half_word(const DropoutRow& row, const DropoutColumn* columns,
                                              const uint32_t (&seed)[2], uint32_t lift) {
  uint32_t bits = 0;
#pragma unroll
  for (int chunk = 0; chunk < 4; ++chunk) {
    const Philox4 draws = dropout_pair(row, columns[chunk], seed);
    const uint32_t word[4] = {draws.x, draws.y, draws.z, draws.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint32_t kept = dropout_kept(word[j], {lift, kMost ? 0xffffffffu : 0u}) & 0x80008000u;
      bits = (bits >> 1) + kept;
    }
  }
  return bits;
}

// Of 32 features, those before the row's end, which is `left` features further: even ones in the lower half, odd ones in the upper.
__device__ __forceinline__ uint32_t within_row(int64_t left) {
  const int count = static_cast<int>(min(max(left, int64_t{0}), int64_t{32}));
  return ((1u << (count + 1) / 2) - 1) | ((1u << count / 2) - 1) << 16;
}

}  // namespace irq
