// What nfk_linear's threads ask for ahead of its use: inputs, a row of A, block codes, factors of groups.
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

// Their words of the row that this half of a warp is for (lanes 0..15: row `warp`, lanes 16..31: row warp + 8), asked for a
// tile ahead: whole lines, where each piece for itself would touch 32 of them.
struct CodeWords {
  uint32_t scale[kLinearCodeWords], tau[kLinearCodeWords];
};
__device__ __forceinline__ void load_codes(CodeWords& c, const PackedLinearArgs& a, int tile, int warp, int lane) {
  const int blocks = a.cols / kBlock;
  const TileRows rows = rows_of_tile(a, tile);
  const PackedView& q = a.part[lane < 16 ? rows.low_part : rows.high_part];
  const int row = min((lane < 16 ? rows.low : rows.high) + warp, static_cast<int>(q.rows) - 1);
#pragma unroll
  for (int k = 0; k < kLinearCodeWords; ++k) {
    const int word = k * 16 + lane % 16;
    if (word >= blocks / 4) continue;
    c.scale[k] = __ldg(reinterpret_cast<const uint32_t*>(q.scale_codes + row * blocks) + word);
    if (q.tau_codes) c.tau[k] = __ldg(reinterpret_cast<const uint32_t*>(q.tau_codes + row * blocks) + word);
  }
}

// The factors of a piece's groups of scales, of rows g and g + 8, asked for a piece ahead.
struct Factors {
  float scale[2], tau[2];
};
__device__ __forceinline__ void load_factors(Factors& f, const PackedLinearArgs& a, int tile, int chunk, int g) {
  const int blocks = a.cols / kBlock;
  const TileRows rows = rows_of_tile(a, tile);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const PackedView& q = a.part[r == 0 ? rows.low_part : rows.high_part];
    const int row = min((r == 0 ? rows.low : rows.high) + g, static_cast<int>(q.rows) - 1);
    const uint32_t at_group = static_cast<uint32_t>(row * blocks + chunk * kLinearChunk) / kScaleGroup;
    f.scale[r] = __ldg(q.scale_groups + at_group);
    f.tau[r] = q.tau_codes ? __ldg(q.tau_groups + at_group) : 0.f;
  }
}

}  // namespace irq
