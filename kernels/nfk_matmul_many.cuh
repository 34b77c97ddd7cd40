// The arguments of the kernel of nfk_matmul_many.cu, and what one of its thread blocks does.
#pragma once
#include "kernels/dependent_launch.cuh"
#include "kernels/nfk_matmul_share.cuh"

namespace irq {

constexpr int kManyWarps = 12, kManyThreads = kManyWarps * kWarp;
constexpr int kManyChunk = 4;                      // blocks of 64 in a stage: one for each of four warps
constexpr int kManyColumns = kManyChunk * kBlock;  // and columns
constexpr int kManyPitch = kManyColumns * 2 + 16;  // bytes from row to row of x: two rows and four lanes, eight places
constexpr int kManyGroups = kManyWarps / kManyChunk;  // of warps, each with rows of its own

struct ManyArgs {
  PackedView q;
  const __nv_bfloat16* x;
  int64_t x_stride;
  __nv_bfloat16* y;
  int64_t y_stride;
  int m_count, blocks, chunks;
  float beta, unit;
  ShareLayout at;
  int x_in_stage, stage_bytes, ring;  // where x lies behind the codes; a stage; all stages, afterwards partial sums
  int partial_rows;
  float level[16];  // scaled
};

// kSets: of eight rows of x. kTiles: of 16 rows of w that a warp holds.
template <int kBits, int kSets, int kTiles, int kStages>
struct ManyBlock {
  using S = ShareShape<kBits, kManyChunk>;
  const ManyArgs& a;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, p = lane % 4;
  const int part = warp % kManyChunk,
            first_row = warp / kManyChunk * kTiles * 16;  // block of a chunk; rows of this warp
  const Share<kManyWarps> share{a.q, a.at, a.blocks};

  // Starts copying a chunk of all rows of w and of x. Rows past the end of w stay what they were, and so do not count.
  __device__ __forceinline__ void copy_chunk(int chunk, uint32_t to) const {
    const uint32_t row_bytes = a.blocks * S::kBlockBytes;
    const uint8_t* codes = a.q.codes + static_cast<int64_t>(share.row0) * row_bytes + chunk * S::kRowBytes;
#pragma unroll 2
    for (int i = threadIdx.x; i < share.rows * S::kUnits; i += kManyThreads) {
      const int r = i / S::kUnits, unit = i % S::kUnits;
      cp_async_16(to + r * S::kPitch + S::place(r, unit) * 16, codes + r * row_bytes + unit * 16, true);
    }
    const __nv_bfloat16* x = a.x + warp * a.x_stride + chunk * kManyColumns + lane * 8;
    uint32_t x_to = to + a.x_in_stage + warp * kManyPitch + lane * 16;
#pragma unroll 2
    for (int m = warp; m < a.m_count; m += kManyWarps, x += kManyWarps * a.x_stride, x_to += kManyWarps * kManyPitch)
      cp_async_16(x_to, x, true);
  }

  // The weights of 16 rows in this warp's block of a chunk, as bf16 operands: level * scale + shift rounded once.
  __device__ __forceinline__ void dequantize(uint32_t (&w)[4][4], uint32_t codes, uint32_t column,
                                             const float (&scale)[2], const float (&shift)[2]) const {
    const Codes<kBits> now[2] = {Codes<kBits>(codes), Codes<kBits>(codes + 8 * S::kPitch)};
    const auto weights = [&](int r, uint32_t levels) {
      return pack_bf16(fmaf(__uint_as_float(levels << 16), scale[r], shift[r]),
                       fmaf(__uint_as_float(levels & 0xffff0000u), scale[r], shift[r]));
    };
    const auto step = [&](auto s) {
      constexpr int i = 2 * s.value;
      w[s.value][0] = weights(0, share_levels(now[0].template wide_address<i>(column)));
      w[s.value][1] = weights(1, share_levels(now[1].template wide_address<i>(column)));
      w[s.value][2] = weights(0, share_levels(now[0].template wide_address<i + 1>(column)));
      w[s.value][3] = weights(1, share_levels(now[1].template wide_address<i + 1>(column)));
    };
    step(std::integral_constant<int, 0>{});
    step(std::integral_constant<int, 1>{});
    step(std::integral_constant<int, 2>{});
    step(std::integral_constant<int, 3>{});
  }

  __device__ __forceinline__ void multiply(float (&sum)[kTiles][kSets][4], uint32_t codes, uint32_t x, uint32_t column,
                                           float scale, float shift) const {
    uint32_t w[kTiles][4][4];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      float s[2], t[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {  // lane p has decoded what belongs to row g + 8 p
        s[r] = __shfl_sync(kFullWarp, scale, (lane & ~3) + 2 * n + r);
        t[r] = __shfl_sync(kFullWarp, shift, (lane & ~3) + 2 * n + r);
      }
      dequantize(w[n], codes + n * 16 * S::kPitch, column, s, t);
    }
#pragma unroll
    for (int k = 0; k < kSets; ++k) {
      const uint4 low = load_shared_128(x + k * 8 * kManyPitch), high = load_shared_128(x + k * 8 * kManyPitch + 16);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        mma_m16n8k16(sum[n][k], w[n][0], low.x, low.y);
        mma_m16n8k16(sum[n][k], w[n][1], low.z, low.w);
        mma_m16n8k16(sum[n][k], w[n][2], high.x, high.y);
        mma_m16n8k16(sum[n][k], w[n][3], high.z, high.w);
      }
    }
  }

  // The four warps of the same rows lay their sums side by side where the stages were; then all threads add them up.
  __device__ __forceinline__ void finish(const float (&sum)[kTiles][kSets][4]) const {
    const int values = a.partial_rows * 8;  // of a set
    cp_async_wait<0>();
    __syncthreads();
    if (first_row < a.partial_rows) {
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int k = 0; k < kSets; ++k)
#pragma unroll
          for (int r = 0; r < 2; ++r)
            store_shared_64(a.ring + ((part * kSets + k) * values + (first_row + n * 16 + g + 8 * r) * 8 + 2 * p) * 4,
                            __float_as_uint(sum[n][k][2 * r]), __float_as_uint(sum[n][k][2 * r + 1]));
    }
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < kSets * values; i += kManyThreads) {
      const int set = i / values, row = (i - set * values) / 8, m = set * 8 + i % 8;
      if (m >= a.m_count || row >= share.rows) continue;
      float total = 0;
#pragma unroll
      for (int k = 0; k < kManyChunk; ++k)
        total += __uint_as_float(load_shared_32(a.ring + (k * kSets * values + i) * 4));
      __nv_bfloat16& out = a.y[m * a.y_stride + share.row0 + row];
      out = __float2bfloat16_rn(a.beta == 0.0f ? total : fmaf(a.beta, __bfloat162float(out), total));
    }
  }

  __device__ __forceinline__ void run() const {
    const auto entries = share.load_entries();
    const float offset = __ldg(a.q.scale_offset);
    const ShareScales at = share.copy_scales(first_row + g + 8 * (p % (2 * kTiles)), part);
    cp_async_commit();
    let_next_kernel_begin();
    wait_for_previous_kernel();  // x is its work; all before was on weights
#pragma unroll 1
    for (int k = 0; k < kStages - 1; ++k) {
      if (k < a.chunks) copy_chunk(k, a.ring + k * a.stage_bytes);
      cp_async_commit();
    }
    share.template fill_table<kBits>(entries, a.level);
    const uint32_t column = kept(lane * 4);
    const uint32_t codes = kept(a.ring + (first_row + g) * S::kPitch + S::block_place(g, p, part));
    const uint32_t x = kept(a.ring + a.x_in_stage + g * kManyPitch + part * 128 + p * 32);
    const bool busy = first_row < share.rows;
    float sum[kTiles][kSets][4] = {};
    int stage = 0, free = kStages - 1;
#pragma unroll 1
    for (int chunk = 0; chunk < a.chunks; ++chunk) {
      cp_async_wait<kStages - 2>();
      __syncthreads();  // the chunk is there for all, and all are through with the one before
      if (chunk + kStages - 1 < a.chunks) copy_chunk(chunk + kStages - 1, a.ring + free * a.stage_bytes);
      cp_async_commit();
      if (busy) {
        float scale, shift;
        share.decode(scale, shift, at, column, 0, chunk * kManyChunk, offset);
        multiply(sum, codes + stage * a.stage_bytes, x + stage * a.stage_bytes, column, scale * a.unit, shift);
      }
      free = stage;
      stage = stage + 1 < kStages ? stage + 1 : 0;
    }
    finish(sum);
  }
};

}  // namespace irq
