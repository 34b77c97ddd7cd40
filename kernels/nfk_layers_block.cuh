// What one thread block of nfk_layers.cu does for a linear: its copies, products of pieces, and the order of all of it.
#pragma once
#include "kernels/nfk_layers_finish.cuh"

namespace irq {

// The 32 codes of a lane of a row, as two times 8 pairs.
template <int kBits>
__device__ __forceinline__ void load_lane_codes(Codes<kBits> (&c)[2], const char* row, int index, int odd_row) {
  if constexpr (kBits == 4) {
    const uint4 v = *reinterpret_cast<const uint4*>(row + ((index ^ (odd_row << 2)) * 16));
    c[0].bytes = make_uint2(v.x, v.y), c[1].bytes = make_uint2(v.z, v.w);
  } else {
    const uint8_t* p = reinterpret_cast<const uint8_t*>(row) + index * 4 * kBits;
    c[0] = Codes<kBits>(p), c[1] = Codes<kBits>(p + 2 * kBits);
  }
}

// As cp_async_4(), with 8 bytes.
__device__ __forceinline__ void cp_async_8(uint32_t shared, const void* global, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;\n" ::"r"(shared), "l"(global), "r"(valid ? 8 : 0)
               : "memory");
}

template <int kBits>
struct StreamBlock : StreamFinish {
  using S = StreamShape<kBits>;
  int issued = 0, consumed = 0;  // pieces of this warp
  struct Cursor {
    int linear, tile, chunk;  // tile: counted among this block's
  } ahead{0, 0, static_cast<int>(threadIdx.x / kWarp)};

  __device__ __forceinline__ char* stage(int i) const {
    return shared + at.stages + (warp * kStreamStages + i % kStreamStages) * S::kStage;
  }

  // ---- copies ----------------------------------------------------------------------------------------------------------
  // Starts copying a piece. Rows and blocks past the end are zeros.
  __device__ __forceinline__ void copy_piece(const StreamLinear& a, int tile, int chunk, char* to_stage) const {
    const TileRows rows = rows_of(a, tile);
    const uint32_t to = smem_address(to_stage);
    const int blocks = a.cols / kBlock, row_bytes = blocks * S::kBlockBytes;
    const StreamPart &low = a.part[rows.low_part], &high = a.part[rows.high_part];
    const int count_low = low.rows - rows.low, count_high = high.rows - rows.high;  // from here on
    const uint8_t *low_codes = low.codes + rows.low * row_bytes, *high_codes = high.codes + rows.high * row_bytes;
    constexpr int kRowsAtOnce = kWarp / S::kPieces;
    if (kWarp % S::kPieces == 0 && count_low >= 8 && count_high >= 8 && (chunk + 1) * S::kRowBytes <= row_bytes) {
      // All there: each copy is kRowsAtOnce rows behind the one before.
      const int r = lane / S::kPieces, piece = lane % S::kPieces, place = kBits == 4 ? piece ^ (r % 2 << 2) : piece;
      const int64_t step = static_cast<int64_t>(kRowsAtOnce) * row_bytes;
      const int first = r * row_bytes + chunk * S::kRowBytes + piece * 16;
      const uint32_t place_at = to + r * S::kPitch + place * 16;
      low_codes += first, high_codes += first;
#pragma unroll
      for (int k = 0; k < 8; k += kRowsAtOnce) {
        cp_async_16(place_at + k * S::kPitch, low_codes, true);
        cp_async_16(place_at + (k + 8) * S::kPitch, high_codes, true);
        low_codes += step, high_codes += step;
      }
    } else {
#pragma unroll 1
      for (int i = lane; i < 8 * S::kPieces; i += kWarp) {
        const int r = i / S::kPieces, piece = i % S::kPieces, byte = chunk * S::kRowBytes + piece * 16;
        const int place = kBits == 4 ? piece ^ (r % 2 << 2) : piece;
        const uint32_t place_at = to + r * S::kPitch + place * 16;
        cp_async_16(place_at, low_codes + r * row_bytes + byte, byte < row_bytes && r < count_low);
        cp_async_16(place_at + 8 * S::kPitch, high_codes + r * row_bytes + byte, byte < row_bytes && r < count_high);
      }
    }
    const int r = lane % kLinearRows, shift = lane / kLinearRows;
    const bool upper = r >= 8;
    const StreamPart& w = a.part[upper ? rows.high_part : rows.low_part];
    const uint8_t* codes = w.block_codes[shift];
    if (!codes) return;
    const float* groups = w.block_groups[shift];
    const int row = (upper ? rows.high - 8 : rows.low) + r;
    const bool there = row < w.rows;
    const uint32_t codes_at = to + S::kScales + (shift * kLinearRows + r) * kStreamBlocks,
                   factors_at = to + S::kFactors + (shift * kLinearRows + r) * 8;
    const uint32_t first = there ? row * blocks + chunk * kStreamBlocks : 0;
    if (a.whole_pieces) {
      cp_async_8(codes_at, codes + first, there);
      cp_async_4(factors_at, groups + first / kScaleGroup, there);
      return;
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const bool valid = there && chunk * kStreamBlocks + h * 4 < blocks;
      const uint32_t block = valid ? first + h * 4 : 0;
      cp_async_4(codes_at + h * 4, codes + block, valid);
      cp_async_4(factors_at + h * 4, groups + block / kScaleGroup, valid);
    }
  }
  // Keeps the stages full, with pieces of linear n and of the two behind it.
  __device__ __forceinline__ void fill(int n) {
    while (issued - consumed < kStreamStages) {
      if (ahead.linear >= p.count || ahead.linear > n + 2) return;
      const StreamSlot& s = slot(ahead.linear);
      const int chunks = s.chunks;
      while (ahead.chunk >= chunks) ahead.chunk -= chunks, ++ahead.tile;
      if (ahead.tile >= s.tiles) {
        ++ahead.linear, ahead.tile = 0, ahead.chunk = warp;
        continue;
      }
      copy_piece(s.a, blockIdx.x + ahead.tile * gridDim.x, ahead.chunk, stage(issued));
      cp_async_commit();
      ++issued, ahead.chunk += kStreamWarps;
    }
  }

  // ---- products --------------------------------------------------------------------------------------------------------
  // product += part i of a piece (16 rows by two blocks) times x, whose words are zero in all but the column of its block.
  __device__ __forceinline__ void multiply_part(float (&product)[2][4], const char* piece, int i,
                                                const uint32_t (&own)[16], bool here) const {
    Codes<kBits> low[2], high[2];
    load_lane_codes<kBits>(low, piece + g * S::kPitch, i * 4 + q, g % 2);
    load_lane_codes<kBits>(high, piece + (g + 8) * S::kPitch, i * 4 + q, g % 2);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const auto step = [&](auto s) {
        constexpr int kFirst = 2 * s.value;
        const auto levels = [&](auto which, const Codes<kBits>& codes) {
          return load_pair(codes.template wide_address<which.value>(lane * 4));
        };
        constexpr std::integral_constant<int, kFirst> first{};
        constexpr std::integral_constant<int, kFirst + 1> second{};
        const uint32_t w[4] = {levels(first, low[h]), levels(first, high[h]), levels(second, low[h]),
                               levels(second, high[h])};
        const uint32_t b0 = here ? own[h * 8 + kFirst] : 0, b1 = here ? own[h * 8 + kFirst + 1] : 0;
        mma_m16n8k16(product[s.value % 2], w, b0, b1);
      };
      step(std::integral_constant<int, 0>{});
      step(std::integral_constant<int, 1>{});
      step(std::integral_constant<int, 2>{});
      step(std::integral_constant<int, 3>{});
    }
  }
  // A piece: the sums of its 16 rows into `to`. Column j of the product is block j: lane (g, q) holds blocks 2q, 2q + 1 of
  // rows g and g + 8.
  __device__ __forceinline__ void multiply(const StreamSlot& s, const TileRows& rows, int chunk, const char* piece,
                                           float* to) const {
    const int block = chunk * kStreamBlocks + g;
    const char* x = shared + at.x + block * S::kXPitch;
    uint32_t own[16];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const uint4 v = *reinterpret_cast<const uint4*>(x + (((q % 2 * 4 + k) ^ g) * 16));
      own[4 * k] = v.x, own[4 * k + 1] = v.y, own[4 * k + 2] = v.z, own[4 * k + 3] = v.w;
    }
    const bool mine = q / 2 == g % 2;
    float product[2][4] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) multiply_part(product, piece, i, own, mine && g / 2 == i);
    const float2 total = *in_shared<float2>(at.block_sums + (chunk * kStreamBlocks + 2 * q) * 4);
    const float* map = in_shared<float>(at.map);
    const int half = s.a.whole_pieces ? 0 : q / 2;
    float sum[2] = {};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = g + 8 * r, part = r == 0 ? rows.low_part : rows.high_part;
      const auto codes = [&](int shift) {
        return *reinterpret_cast<const uint16_t*>(piece + S::kScales + (shift * kLinearRows + row) * kStreamBlocks +
                                                  2 * q);
      };
      const auto factor = [&](int shift) {
        return *reinterpret_cast<const float*>(piece + S::kFactors + ((shift * kLinearRows + row) * 2 + half) * 4);
      };
      const uint32_t scales = codes(0);
      const float offset = s.offset[part], f = factor(0);
      const float s0 = __fadd_rn(__fmul_rn(map[scales & 255], f), offset) * p.all.unit,
                  s1 = __fadd_rn(__fmul_rn(map[scales >> 8], f), offset) * p.all.unit;
      sum[r] = fmaf(s0, product[0][2 * r] + product[1][2 * r], sum[r]);
      sum[r] = fmaf(s1, product[0][2 * r + 1] + product[1][2 * r + 1], sum[r]);
      if (!s.a.part[part].block_codes[1]) continue;
      const uint32_t shifts = codes(1);
      const float t = factor(1);
      sum[r] = fmaf(__fmul_rn(map[shifts & 255], t), total.x, sum[r]);
      sum[r] = fmaf(__fmul_rn(map[shifts >> 8], t), total.y, sum[r]);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum[r] += __shfl_xor_sync(kFullWarp, sum[r], 1);
      sum[r] += __shfl_xor_sync(kFullWarp, sum[r], 2);
    }
    if (q < 2) to[g + 8 * q] = q == 0 ? sum[0] : sum[1];
  }
  // All pieces of this warp. The room of the last one is filled when the next linear's x is there, but for a few warps: what a
  // block asks for behind copies waits for them, and without any memory idles.
  __device__ __forceinline__ void products(int n) {
    const StreamSlot& s = slot(n);
    const int chunks = s.chunks, tiles = s.tiles;
    int tile = 0, chunk = warp;
    for (;; chunk += kStreamWarps) {
      while (chunk >= chunks) chunk -= chunks, ++tile;
      if (tile >= tiles) return;
      if (issued - consumed > 1) cp_async_wait<1>();
      else cp_async_wait<0>();
      __syncwarp();
      multiply(s, rows_of(s.a, blockIdx.x + tile * gridDim.x), chunk, stage(consumed),
               partial() + (tile * chunks + chunk) * kLinearRows);
      __syncwarp();  // all lanes have read the stage
      ++consumed;
      if (warp < kStreamEager || tile * chunks + chunk + kStreamWarps < tiles * chunks) fill(n);
    }
  }

  // Asks L2 for what the end of a linear loads.
  __device__ __forceinline__ void prefetch_all_late(int n) const {
    const StreamSlot& s = slot(n);
#pragma unroll 1
    for (int i = threadIdx.x / kStreamRowLanes; i < s.tiles * kLinearRows; i += kStreamRowsAtOnce) prefetch_late(s, i);
  }
  // One linear, whose x is there.
  __device__ __forceinline__ void linear(int n, StreamAhead& e) {
    const StreamSlot& s = slot(n);
    const StreamLinear& a = s.a;
    const int items = s.tiles * kLinearRows, mine = threadIdx.x / kStreamRowLanes;
    // Who has nothing to do here does not wait for x either: nobody waits for him, so its words may be gone.
    if (items == 0 && static_cast<int>(blockIdx.x) >= a.ranks * a.segments) return __syncthreads();
    store_x(a, n, e);
    __syncthreads();
    if (a.ranks > 0) make_u(a, n, e);
    fill(n);
    products(n);
    Late late[kStreamLate];
#pragma unroll
    for (int k = 0; k < kStreamLate; ++k) load_late(late[k], s, k * kStreamRowsAtOnce + mine);
    if (a.ranks > 0 && items > 0) fetch_u(a, n);  // who has no rows is not waited for, and must not wait
    __syncthreads();                              // partial sums and u are there
    if (items > kStreamRowsAtOnce) {
      float sum[kStreamLate];
      row_sums(sum, s, late);
#pragma unroll
      for (int k = 0; k < kStreamLate; ++k) finish(s, n, late[k], sum[k]);
    } else if (items > 0) finish_one(s, n, late[0]);
#pragma unroll 1
    for (int i = kStreamLate * kStreamRowsAtOnce; i < items; i += kStreamRowsAtOnce) {
      load_late(late[0], s, i + mine);
      finish_one(s, n, late[0]);
    }
  }
  __device__ __forceinline__ void finish_one(const StreamSlot& s, int n, const Late& late) const {
    const Late one[1] = {late};
    float sum[1];
    row_sums(sum, s, one);
    finish(s, n, late, sum[0]);
  }
};

}  // namespace irq
