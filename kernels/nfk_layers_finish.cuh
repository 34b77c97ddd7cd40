// The end of a linear in nfk_layers.cu: sums added up, adapters, and what becomes of the result.
#pragma once
#include "kernels/nfk_layers_core.cuh"

namespace irq {

// Lanes that have a row of the result, and rows that they finish together.
constexpr int kStreamRowLanes = 4, kStreamLate = 2;
constexpr int kStreamRowsAtOnce = kStreamThreads / kStreamRowLanes;

struct StreamFinish : StreamCore {
  using Finish = PackedLinear::Finish;

  // Neighbours of kStreamRowLanes lanes have rows r and r + 8 of one tile.
  struct Item {
    int tile, row_in_tile, part, row;  // tile: this block's; row: of the part
    bool there;
  };
  // What is loaded before the sums of a row are there: this lane's ranks of its row of B, and what is added (16 bits of bf16)
  // or cosine and sine.
  struct Late {
    Item of;
    uint4 b[2];
    uint32_t first, second;
  };
  __device__ __forceinline__ Item item(const StreamSlot& s, int i) const {
    const StreamLinear& a = s.a;
    const int tile = i / kLinearRows, j = i % kLinearRows;
    if (tile >= s.tiles) return {0, 0, 0, 0, false};
    const TileRows rows = rows_of(a, blockIdx.x + tile * gridDim.x);
    const bool upper = j % 2;
    return {tile, j / 2 + upper * 8, upper ? rows.high_part : rows.low_part, (upper ? rows.high : rows.low) + j / 2,
            true};
  }
  __device__ __forceinline__ int first_rank() const { return lane % kStreamRowLanes * 16; }
  // Where this lane's ranks of the row of B are; null if there are none.
  __device__ __forceinline__ const uint4* b_of(const StreamSlot& s, const Item& t) const {
    const StreamPart& w = s.a.part[t.part];
    const bool some = t.there && t.row < w.rows && w.b && first_rank() < w.b_rank;
    return some ? reinterpret_cast<const uint4*>(w.b + static_cast<int64_t>(t.row) * w.b_stride + first_rank())
                : nullptr;
  }
  __device__ __forceinline__ void prefetch_late(const StreamSlot& s, int i) const {
    if (const uint4* b = b_of(s, item(s, i))) asm volatile("prefetch.global.L2 [%0];" ::"l"(b));
  }
  __device__ __forceinline__ void load_late(Late& late, const StreamSlot& s, int i) const {
    const StreamLinear& a = s.a;
    const Item t = late.of = item(s, i);
    const StreamPart& w = a.part[t.part];
    late.b[0] = late.b[1] = make_uint4(0, 0, 0, 0), late.first = late.second = 0;
    if (const uint4* b = b_of(s, t)) {
      late.b[0] = __ldg(b);
      if (first_rank() + 8 < w.b_rank) late.b[1] = __ldg(b + 1);
    }
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
  __device__ __forceinline__ float adapter_term(const StreamPart& w, const Late& late) const {
    float sum = 0;
    const auto add = [&](int rank, const uint4& b) {
      const float* u = in_shared<float>(at.u) + w.b_column + rank;
      float v[8];
      unpack(v, b);
#pragma unroll
      for (int k = 0; k < 8; ++k) sum = fmaf(v[k], u[k], sum);
    };
#pragma unroll
    for (int h = 0; h < 2; ++h)
      if (first_rank() + 8 * h < w.b_rank) add(first_rank() + 8 * h, late.b[h]);
#pragma unroll 1
    for (int rank = first_rank() + 64; rank < w.b_rank; rank += rank % 16 == 0 ? 8 : 56)
      add(rank, __ldg(reinterpret_cast<const uint4*>(w.b + static_cast<int64_t>(late.of.row) * w.b_stride + rank)));
    return sum;
  }
  // The rows' sums over the pieces and the adapters' terms, of all lanes of a row.
  template <int kCount>
  __device__ __forceinline__ void row_sums(float (&sum)[kCount], const StreamSlot& s,
                                           const Late (&late)[kCount]) const {
    const int chunks = s.chunks;
    const float* from[kCount];
#pragma unroll
    for (int k = 0; k < kCount; ++k)
      sum[k] = 0, from[k] = partial() + late[k].of.tile * chunks * kLinearRows + late[k].of.row_in_tile;
#pragma unroll 2
    for (int c = lane % kStreamRowLanes; c < chunks; c += kStreamRowLanes)
#pragma unroll
      for (int k = 0; k < kCount; ++k) sum[k] += from[k][c * kLinearRows];
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const StreamPart& w = s.a.part[late[k].of.part];
      if (late[k].of.there && w.b && late[k].of.row < w.rows) sum[k] += adapter_term(w, late[k]);
    }
#pragma unroll
    for (int offset = kStreamRowLanes / 2; offset > 0; offset /= 2)
#pragma unroll
      for (int k = 0; k < kCount; ++k) sum[k] += __shfl_xor_sync(kFullWarp, sum[k], offset);
  }
  __device__ __forceinline__ void finish(const StreamSlot& s, int n, const Late& late, float sum) const {
    constexpr int kUpper = kStreamRowLanes, kNext = 2 * kStreamRowLanes;  // lanes from a row to row + 8, and to row + 1
    const StreamLinear& a = s.a;
    const Item& t = late.of;
    const StreamPart& w = a.part[t.part];
    const float other = __shfl_xor_sync(kFullWarp, sum, kUpper);
    const bool upper = t.row_in_tile >= 8, mine = t.there && lane % kStreamRowLanes == 0 && t.row < w.rows;
    if (a.finish != Finish::rope) {
      if (a.finish == Finish::swiglu) sum = sum / (1.f + expf(-sum)) * other;
      else if (a.base) sum = fmaf(a.base_scale, __uint_as_float(late.first << 16), sum);
      const float next = __shfl_down_sync(kFullWarp, sum, kNext);
      if (!mine || (a.finish == Finish::swiglu && upper)) return;
      if (a.finish == Finish::add) a.y[w.first + t.row] = __float2bfloat16_rn(sum);
      if (t.row % 2 == 0) send(p.all.result[n % 4] + (w.first + t.row) / 2, pack_bf16(sum, next), n);
    } else {
      const float c = __uint_as_float(late.first), d = __uint_as_float(late.second);
      const float z = t.part == 2 ? sum : upper ? sum * c + other * d : sum * c - other * d;
      const float next = __shfl_down_sync(kFullWarp, z, kNext);
      if (!mine) return;
      if (t.part > 0 && s.cache_row >= 0)
        (t.part == 1 ? a.keys : a.values)[static_cast<int64_t>(s.cache_row) * a.kv_stride + t.row] =
            __float2bfloat16_rn(z);
      if (t.row % 2 == 0) send(p.all.result[0] + (w.first + t.row) / 2, pack_bf16(z, next), n);
    }
  }
};

}  // namespace irq
