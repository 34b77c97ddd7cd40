// What the variants of nfk_matmul share: arguments, and the tables in shared memory.
#pragma once
#include "bench/variants/variant.cuh"

namespace irq {

constexpr int kMostTokens = 8;  // rows of x

struct MatmulArgs {
  __nv_bfloat16* y;
  const __nv_bfloat16* x;
  int64_t y_stride, x_stride;
  PackedView q;
  int tokens;
  Codebook book;
};
inline MatmulArgs matmul_args(const std::vector<Tensor>& t) {  // y, x, the matrix: tests/cases/nfk.h
  IRQ_CHECK(t[0].rows <= kMostTokens && t[1].cols % kBlock == 0 && t[1].stride % 8 == 0, "%ld rows of %ld", t[1].rows,
            t[1].cols);
  return {static_cast<__nv_bfloat16*>(t[0].data),
          static_cast<const __nv_bfloat16*>(t[1].data),
          t[0].stride,
          t[1].stride,
          nf4_view(t, 2, t[0].cols, t[1].cols),
          static_cast<int>(t[0].rows),
          nf_codebook(4)};
}

// By all threads of a block of at least 32, barrier included.
struct MatmulTables {
  float level[16], map[256];
};
__device__ __forceinline__ void fill(MatmulTables& tables, const MatmulArgs& a) {
  if (threadIdx.x < 16) tables.level[threadIdx.x] = a.book.level[threadIdx.x];
  for (int i = threadIdx.x; i < 256; i += blockDim.x) tables.map[i] = a.q.map[i];
  __syncthreads();
}
struct BlockFactors {
  float scale, tau;
};
__device__ __forceinline__ BlockFactors block_factors(const PackedView& q, const float* map, float offset,
                                                      uint32_t block) {
  const uint32_t group = block / kScaleGroup;
  return {__fadd_rn(__fmul_rn(map[q.scale_codes[block]], q.scale_groups[group]), offset),
          __fmul_rn(map[q.tau_codes[block]], q.tau_groups[group])};
}

// Calls f with 1 or kMostTokens as a constant: a kernel's sums are registers, so their number is known when compiling.
template <class F>
void dispatch_tokens(int tokens, F&& f) {
  if (tokens == 1) f(std::integral_constant<int, 1>{});
  else f(std::integral_constant<int, kMostTokens>{});
}

}  // namespace irq
