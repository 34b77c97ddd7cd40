// The end of a linear in nfk_layers.cu: sums added up, adapters, and what becomes of the result.
#pragma once
#include "kernels/nfk_layers_core.cuh"

namespace irq {

// And before its sums are, for a row of the result that it finishes: a part of its row of B, and what is added (16 bits of
// bf16) or cosine and sine.
struct StreamLate {
  uint4 b;
  uint32_t first, second;
};
struct StreamFinish : StreamCore {
  using Finish = PackedLinear::Finish;

  // Eight lanes have a row of the result; neighbours of eight have rows r and r + 8 of one tile.
  struct Item {
    int tile, row_in_tile, part, row;  // tile: this block's; row: of the part
    bool there;
  };
  __device__ __forceinline__ Item item(const StreamSlot& s, int i) const {
    const StreamLinear& a = s.a;
    const int tile = i / kLinearRows, j = i % kLinearRows;
    if (tile >= s.tiles) return {0, 0, 0, 0, false};
    const TileRows rows = rows_of_tile(a, blockIdx.x + tile * gridDim.x);
    const bool upper = j % 2;
    return {tile, j / 2 + upper * 8, upper ? rows.high_part : rows.low_part, (upper ? rows.high : rows.low) + j / 2,
            true};
  }
  // Where this lane's part of the row of B is; null if there is none.
  __device__ __forceinline__ const uint4* b_of(const StreamSlot& s, const Item& t) const {
    const StreamPart& w = s.a.part[t.part];
    const bool some = t.there && t.row < w.rows && w.b && lane % 8 * 8 < w.b_rank;
    return some ? reinterpret_cast<const uint4*>(w.b + static_cast<int64_t>(t.row) * w.b_stride + lane % 8 * 8)
                : nullptr;
  }
  __device__ __forceinline__ void prefetch_late(const StreamSlot& s, int i) const {
    if (const uint4* b = b_of(s, item(s, i))) asm volatile("prefetch.global.L2 [%0];" ::"l"(b));
  }
  __device__ __forceinline__ void load_late(StreamLate& late, const StreamSlot& s, int i) const {
    const StreamLinear& a = s.a;
    const Item t = item(s, i);
    late.b = make_uint4(0, 0, 0, 0), late.first = late.second = 0;
    if (const uint4* b = b_of(s, t)) late.b = __ldg(b);
    const StreamPart& w = a.part[t.part];
    if (!t.there || t.row >= w.rows) return;
    if (a.finish == Finish::add && a.base)
      late.first = __ldcg(reinterpret_cast<const unsigned short*>(a.base + w.first + t.row));
    if (a.finish == Finish::rope && t.part < 2) {
      const int position = s.position, pair = t.row & (a.half - 1);
      if (position < 0) return;
      late.first =
          __ldg(reinterpret_cast<const uint32_t*>(a.cosine + static_cast<int64_t>(position) * a.cos_stride + pair));
      late.second =
          __ldg(reinterpret_cast<const uint32_t*>(a.sine + static_cast<int64_t>(position) * a.sin_stride + pair));
    }
  }
  // u_part times this lane's ranks of a row of B.
  __device__ __forceinline__ float adapter_term(const StreamPart& w, int row, const uint4& first) const {
    float sum = 0;
    for (int rank = lane % 8 * 8; rank < w.b_rank; rank += 64) {
      const uint4 b = rank < 64
                          ? first
                          : __ldg(reinterpret_cast<const uint4*>(w.b + static_cast<int64_t>(row) * w.b_stride + rank));
      const float* u = in_shared<float>(at.u) + w.b_column + rank;
      const uint32_t words[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        sum = fmaf(__uint_as_float(words[k] << 16), u[2 * k], sum);
        sum = fmaf(__uint_as_float(words[k] & 0xffff0000u), u[2 * k + 1], sum);
      }
    }
    return sum;
  }
  __device__ __forceinline__ void finish(const StreamSlot& s, int n, int i, const StreamLate& late) const {
    const StreamLinear& a = s.a;
    const Item t = item(s, i);
    const StreamPart& w = a.part[t.part];
    float sum = 0;
    if (t.there) {
      const int chunks = s.chunks;
      const float* from = partial() + t.tile * chunks * kLinearRows + t.row_in_tile;
      for (int k = lane % 8; k < chunks; k += 8) sum += from[k * kLinearRows];
      if (w.b && t.row < w.rows) sum += adapter_term(w, t.row, late.b);
    }
#pragma unroll
    for (int offset = 4; offset > 0; offset /= 2) sum += __shfl_xor_sync(kFullWarp, sum, offset);
    const float other = __shfl_xor_sync(kFullWarp, sum, 8);
    const bool upper = t.row_in_tile >= 8, mine = t.there && lane % 8 == 0 && t.row < w.rows;
    if (a.finish != Finish::rope) {  // rows r and r + 1 are sixteen lanes apart
      if (a.finish == Finish::swiglu) sum = sum / (1.f + expf(-sum)) * other;
      else if (a.base) sum = fmaf(a.base_scale, __uint_as_float(late.first << 16), sum);
      const float next = __shfl_down_sync(kFullWarp, sum, 16);
      if (!mine || (a.finish == Finish::swiglu && upper)) return;
      if (a.finish == Finish::add) a.y[w.first + t.row] = __float2bfloat16_rn(sum);
      if (lane < 16) send(p.all.result[n % 4 - 1] + (w.first + t.row) / 2, pack_bf16(sum, next), n);
    } else if (mine) {
      const float c = __uint_as_float(late.first), d = __uint_as_float(late.second);
      const float z = t.part == 2 ? sum : upper ? sum * c + other * d : sum * c - other * d;
      const int to = s.cache_row;
      __nv_bfloat16* out = t.part == 0 ? a.y
                           : to < 0    ? nullptr
                                       : (t.part == 1 ? a.keys : a.values) + static_cast<int64_t>(to) * a.kv_stride;
      if (out) out[t.row] = __float2bfloat16_rn(z);
    }
  }
};

}  // namespace irq
