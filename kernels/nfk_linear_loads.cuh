// What nfk_linear's threads ask for before they begin: the norm, the map of the scales, a part of a row of A.
#pragma once
#include "kernels/nfk_linear.cuh"

namespace irq {

// What a thread needs from memory before the first tile, all asked for at once, so that DRAM is waited for once.
struct LinearEarly {
  Pack<__nv_bfloat16> x, a[kLinearSegment / 8 / kWarp];
  float4 norm[2];
  float map_entry;
};
__device__ __forceinline__ const Pack<__nv_bfloat16>* x_row(const PackedLinearArgs& a, int m) {
  return reinterpret_cast<const Pack<__nv_bfloat16>*>(a.x + m * a.x_stride);
}
__device__ __forceinline__ void load_norm(float4 (&w)[2], const PackedLinearArgs& a, int pack) {
  w[0] = reinterpret_cast<const float4*>(a.norm)[2 * pack],
  w[1] = reinterpret_cast<const float4*>(a.norm)[2 * pack + 1];
}
// One warp's part of a row of A: the unit is row * segments + segment.
__device__ __forceinline__ void load_a(Pack<__nv_bfloat16> (&w)[kLinearSegment / 8 / kWarp], const PackedLinearArgs& a,
                                       int unit, int lane) {
  const int first = unit % a.segments * kLinearSegment;
  const __nv_bfloat16* row = a.a + unit / a.segments * a.a_stride;
#pragma unroll
  for (int k = 0; k < kLinearSegment / 8 / kWarp; ++k) {
    const int column = first + (k * kWarp + lane) * 8;
    if (column < a.cols) w[k] = *reinterpret_cast<const Pack<__nv_bfloat16>*>(row + column);
  }
}

}  // namespace irq
