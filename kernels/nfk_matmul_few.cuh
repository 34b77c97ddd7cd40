// The arguments and the shared memory of the kernel of nfk_matmul_few.cu, and what one of its warps does.
#pragma once
#include "kernels/dependent_launch.cuh"
#include "kernels/nfk_matmul.cuh"
#include "kernels/nfk_pairs.cuh"

namespace irq {

constexpr int kFewTile = 16;   // rows of w in a piece
constexpr int kFewChunk = 4;   // blocks of 64 of each of them

// Warps of a thread block: what the registers allow that hold the x of so many rows.
constexpr int few_warps(int tokens) { return tokens <= 8 ? 16 : tokens <= 16 ? 12 : 8; }

// Where things lie in the window of shared memory, in bytes, and how the matrix is dealt out.
struct FewLayout {
  int scales, shifts, pitch;  // codes of the thread block's rows; bytes from row to row
  int padded_units;           // of 16 bytes of a row, if rows are set apart; 0: one lies right behind the other
  int groups;                 // factors of scale and shift, in turns
  int partial, partial_rows;  // of each warp: (tokens / 8, partial_rows, 8) f32; for 2 tokens (partial_rows, 2)
  int ring, total;
  int rows, more;  // a thread block has `rows` rows of w, the first `more` of them one more
  // Chunks are dealt to warps in turns, one for each. In the last turn there are `last` of them, each for `sharing` warps that split
  // its tiles; warp / last = warp * reciprocal >> 16.
  int turns, last, sharing, reciprocal;
};
struct FewArgs {
  PackedView q;
  const __nv_bfloat16* x;
  int64_t x_stride;
  __nv_bfloat16* y;
  int64_t y_stride;
  int m_count, blocks;
  float beta, unit;
  FewLayout at;
  float level[16];  // scaled
};

template <int kBits>
struct FewShape {
  static constexpr int kPairs = 1 << (2 * kBits);
  static constexpr int kBlockBytes = kBlock / 8 * kBits, kRowBytes = kFewChunk * kBlockBytes;
  static constexpr int kUnits = kRowBytes / 16;  // of 16 bytes, of a row of a piece
  // Rows start in different banks: NF4's blocks change places within a row instead.
  static constexpr int kPitch = kRowBytes + (kBits == 4 ? 0 : 16);
  static constexpr int kStage = kFewTile * kPitch;
};

// One table for both kinds of codes, 256 bytes an entry: two levels for each lane, then the entry of the map of scales for each
// lane, so that no two lanes meet in a bank. At a constant address, which a load adds for nothing.
constexpr int kFewTable = 2048, kFewTableBytes = 256 * 256;
__device__ __forceinline__ uint32_t few_levels(uint32_t place) {
  uint32_t x;
  asm("ld.shared.u32 %0, [%1+2048];" : "=r"(x) : "r"(place));
  return x;
}
__device__ __forceinline__ float few_map(uint32_t place) {
  float x;
  asm("ld.shared.f32 %0, [%1+2176];" : "=f"(x) : "r"(place));
  return x;
}

// kTokens: rows of x that there is room for. 2: column 2 j + m of a product is block j of token m, so that a lane's results are of
// the one block whose scales it decodes. 8, 16, 32: column m of product t is token 8 t + m.
template <int kBits, int kTokens, int kStages>
struct FewBlock {
  using S = FewShape<kBits>;
  static constexpr int kWarps = few_warps(kTokens), kThreads = kWarps * kWarp;
  static constexpr int kSets = kTokens <= 8 ? 1 : kTokens / 8;  // of eight columns
  static constexpr int kWidth = kTokens / kSets;                // tokens of a set
  static constexpr bool kByBlock = kTokens == 2;
  static constexpr int kBlocksApart = kByBlock ? 1 : kFewChunk;  // sums of x, results before scaling

  const FewArgs& a;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, p = lane % 4;
  const int rows = a.at.rows + (static_cast<int>(blockIdx.x) < a.at.more ? 1 : 0);
  const int row0 = static_cast<int>(blockIdx.x) * a.at.rows + min(static_cast<int>(blockIdx.x), a.at.more);
  const int tiles = (rows + kFewTile - 1) / kFewTile;

  // The pieces of a warp, one after the other: all tiles of a chunk before the next chunk. chunk < 0: no more.
  struct Walk {
    int turn, chunk, tile, step;
  };
  __device__ __forceinline__ void enter(Walk& w) const {
    w.chunk = w.turn * kWarps + warp, w.tile = 0, w.step = 1;
    if (w.turn < a.at.turns) return;
    const int share = warp * a.at.reciprocal >> 16;
    w.tile = share, w.step = a.at.sharing;
    w.chunk = w.turn == a.at.turns && share < a.at.sharing && share < tiles ? w.chunk - share * a.at.last : -1;
  }
  __device__ __forceinline__ void advance(Walk& w) const {
    if (w.chunk < 0 || (w.tile += w.step) < tiles) return;
    ++w.turn;
    enter(w);
  }

  // Where this lane reads and writes, as far as the piece does not matter.
  struct Places {
    const uint8_t* from;      // its first 16 bytes of codes in row 0, chunk 0
    uint32_t to;              // where they go in stage 0 (NF3: stage 0)
    uint32_t codes;           // of row g, block 0 in stage 0
    uint32_t scales, shifts;  // codes of row g, block p
    uint32_t group;           // row g, block 0, counted from the first group's first block
    uint32_t partial;
    uint32_t column;  // in an entry of the table
  };
  __device__ __forceinline__ Places places() const {
    const uint32_t row_bytes = a.blocks * S::kBlockBytes;
    const uint8_t* first = a.q.codes + static_cast<int64_t>(row0) * row_bytes;
    const uint32_t ring = a.at.ring + warp * kStages * S::kStage;
    const int row = lane / S::kUnits, unit = lane % S::kUnits;
    Places at;
    at.from = kBits == 3 ? first : first + row * row_bytes + unit * 16;
    at.to = kBits == 3 ? ring : ring + row * S::kPitch + (kBits == 4 ? unit ^ (row & 3) * 2 : unit) * 16;
    at.codes = ring + g * S::kPitch + (kBits == 4 ? (g & 3) * 32 + p * 8 : p * 2 * kBits);
    at.partial = a.at.partial + (warp * kSets * a.at.partial_rows + g) * kWidth * 4 +
                 (kByBlock ? (p / 2 * 8 * kWidth + p % 2) * 4 : p * 8);
    at.column = lane * 4;
    return at;
  }

  // Starts copying the codes of a piece; rows past the end stay what they were, and so do not count.
  __device__ __forceinline__ void copy_piece(const Walk& w, const uint8_t* from, uint32_t to) const {
    const uint32_t row_bytes = a.blocks * S::kBlockBytes;
    const uint8_t* unit = from + (static_cast<uint32_t>(w.tile * kFewTile) * row_bytes + w.chunk * S::kRowBytes);
    const int live = rows - w.tile * kFewTile;
    if constexpr (kBits == 3) {  // 6 units a row
#pragma unroll
      for (int k = 0; k < kFewTile * S::kUnits; k += kWarp) {
        const int i = k + lane, r = i / S::kUnits, u = i % S::kUnits;
        if (r < live) cp_async_16(to + r * S::kPitch + u * 16, unit + r * row_bytes + u * 16, true);
      }
    } else {
      constexpr int kStep = kWarp / S::kUnits;  // rows
      const int left = live - lane / S::kUnits;
#pragma unroll
      for (int r = 0; r < kFewTile; r += kStep, unit += kStep * row_bytes)
        if (r < left) cp_async_16(to + r * S::kPitch, unit, true);
    }
  }

  // Starts copying the scale (or tau) codes of the block's rows, in units of 16 bytes wherever they lie. Returns where they
  // begin.
  __device__ __forceinline__ uint32_t copy_codes(const uint8_t* codes, uint32_t to) const {
    const uint8_t* first = codes + static_cast<int64_t>(row0) * a.blocks;
    const int skip = static_cast<int>(reinterpret_cast<uintptr_t>(first) % 16), bytes = rows * a.blocks + skip;
    const unsigned apart = a.at.padded_units ? a.at.padded_units : 1 << 30;
#pragma unroll 1
    for (int i = threadIdx.x; i * 16 < bytes; i += kThreads)
      cp_async_some(to + i * 16 + static_cast<unsigned>(i) / apart * 16, first - skip + i * 16, min(16, bytes - i * 16));
    return to + skip;
  }
  // Factor i of the scales, and of the shifts behind it: 0 if there are none.
  __device__ __forceinline__ void copy_groups(int64_t first, int count) const {
#pragma unroll 1
    for (int i = threadIdx.x; i < count; i += kThreads) {
      const uint32_t to = a.at.groups + i * 8;
      cp_async_4(to, a.q.scale_groups + first + i, true);
      cp_async_4(to + 4, a.q.tau_codes ? a.q.tau_groups + first + i : a.q.scale_groups, a.q.tau_codes != nullptr);
    }
  }

  // Entry i: the two levels of pair i (if there are as many), and map[i]. entry: map[16 warp + lane % 16].
  __device__ __forceinline__ void fill_table(float entry) const {
    const float level = a.level[lane % (1 << kBits)];
#pragma unroll
    for (int sixteen = 0; sixteen < 16; sixteen += kWarps) {
      if (sixteen > 0) {
        if (sixteen + warp >= 16) break;
        entry = __ldg(a.q.map + (sixteen + warp) * 16 + lane % 16);
      }
#pragma unroll
      for (int k = 0; k < 16; k += 2) {
        const int i = k + lane / 16, pair = (sixteen + warp) * 16 + i;
        const float first = __shfl_sync(kFullWarp, level, pair >> kBits & ((1 << kBits) - 1));
        const float second = __shfl_sync(kFullWarp, level, pair & ((1 << kBits) - 1));
        const float map = __shfl_sync(kFullWarp, entry, i);
        const uint32_t v = lane % 16 < 8 ? pack_bf16(first, second) : __float_as_uint(map);
        if (pair < S::kPairs || lane % 16 >= 8)
          store_shared_128(kFewTable + pair * 256 + lane % 16 * 16, make_uint4(v, v, v, v));
      }
    }
  }

  // This lane's x of a chunk as the products want it, and the sums of its blocks of x.
  struct Input {
    uint32_t x[kSets][kFewChunk][8];
    float sums[kSets][kBlocksApart][2];  // of tokens 2p and 2p + 1 of a set; for two tokens of block p
  };
  __device__ __forceinline__ void load_x(Input& in, int chunk) const {
#pragma unroll
    for (int t = 0; t < kSets; ++t) {
      const int token = t * 8 + (kByBlock ? g % 2 : g);
#pragma unroll
      for (int j = 0; j < kFewChunk; ++j) {
        const uint4* from = reinterpret_cast<const uint4*>(a.x + token * a.x_stride +
                                                           (chunk * kFewChunk + j) * kBlock + p * 16);
        const bool mine = token < a.m_count && (!kByBlock || g / 2 == j);
        const uint4 zero{}, low = mine ? from[0] : zero, high = mine ? from[1] : zero;
        in.x[t][j][0] = low.x, in.x[t][j][1] = low.y, in.x[t][j][2] = low.z, in.x[t][j][3] = low.w;
        in.x[t][j][4] = high.x, in.x[t][j][5] = high.y, in.x[t][j][6] = high.z, in.x[t][j][7] = high.w;
      }
    }
    constexpr uint32_t kOnes = 0x3f803f80u;
    const uint32_t ones[4] = {kOnes, kOnes, kOnes, kOnes};
#pragma unroll
    for (int t = 0; t < kSets; ++t) {
      float total[kFewChunk][4] = {};
#pragma unroll
      for (int j = 0; j < kFewChunk; ++j)
#pragma unroll
        for (int s = 0; s < 4; ++s) mma_m16n8k16(total[j], ones, in.x[t][j][2 * s], in.x[t][j][2 * s + 1]);
#pragma unroll
      for (int c = 0; c < 2; ++c)
        if (kByBlock) {
          in.sums[t][0][c] = total[0][c] + total[1][c] + (total[2][c] + total[3][c]);  // one of them is not 0
        } else {
#pragma unroll
          for (int j = 0; j < kBlocksApart; ++j) in.sums[t][j][c] = total[j][c];
        }
    }
  }

  // scale and shift of block p of rows g and g + 8 of a piece.
  __device__ __forceinline__ void decode(float (&scale)[2], float (&shift)[2], const Walk& w, const Places& place,
                                         float offset) const {
    const uint32_t row = w.tile * kFewTile, block = w.chunk * kFewChunk;
    const uint32_t at = row * a.at.pitch + block, group = place.group + row * a.blocks + block;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const auto entry = [&](uint32_t codes) {
        return few_map(load_shared_8(codes + at + r * 8 * a.at.pitch) * 256u + place.column);
      };
      const uint2 factor = load_shared_64(a.at.groups + (group + r * 8 * a.blocks) / kScaleGroup * 8);
      scale[r] = __fadd_rn(__fmul_rn(entry(place.scales), __uint_as_float(factor.x)), offset) * a.unit;
      shift[r] = __fmul_rn(entry(place.shifts), __uint_as_float(factor.y));
    }
  }

  // sum[t][2 r + c]: row g + 8 r; of token 8 t + 2 p + c, or of token c (this lane's block alone). codes, column: Places, in
  // the stage.
  __device__ __forceinline__ void multiply(float (&sum)[kSets][4], uint32_t codes, uint32_t column, const Input& in,
                                           const float (&scale)[2], const float (&shift)[2]) const {
    float apart[2][4] = {};  // kByBlock: two chains of products
#pragma unroll
    for (int j = 0; j < kFewChunk; ++j) {
      const uint32_t block = kBits == 4 ? codes ^ j * 32 : codes + j * S::kBlockBytes;
      const Codes<kBits> now[2] = {Codes<kBits>(block), Codes<kBits>(block + 8 * S::kPitch)};
      float product[kSets][4] = {};
      const auto step = [&](auto s) {
        constexpr int i = 2 * s.value;
        const uint32_t w[4] = {few_levels(now[0].template wide_address<i>(column)),
                               few_levels(now[1].template wide_address<i>(column)),
                               few_levels(now[0].template wide_address<i + 1>(column)),
                               few_levels(now[1].template wide_address<i + 1>(column))};
#pragma unroll
        for (int t = 0; t < kSets; ++t)
          mma_m16n8k16(kByBlock ? apart[s.value % 2] : product[t], w, in.x[t][j][i], in.x[t][j][i + 1]);
      };
      step(std::integral_constant<int, 0>{});
      step(std::integral_constant<int, 1>{});
      step(std::integral_constant<int, 2>{});
      step(std::integral_constant<int, 3>{});
      if constexpr (!kByBlock)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int from = (lane & ~3) + j;
          const float s = __shfl_sync(kFullWarp, scale[r], from), t = __shfl_sync(kFullWarp, shift[r], from);
#pragma unroll
          for (int k = 0; k < kSets; ++k) scale_products(sum[k], product[k], in.sums[k][j], r, s, t);
        }
    }
    if constexpr (kByBlock) {
#pragma unroll
      for (int c = 0; c < 4; ++c) apart[0][c] += apart[1][c];
#pragma unroll
      for (int r = 0; r < 2; ++r) scale_products(sum[0], apart[0], in.sums[0][0], r, scale[r], shift[r]);
    }
  }
  __device__ __forceinline__ static void scale_products(float (&sum)[4], const float (&product)[4],
                                                        const float (&x)[2], int r, float scale, float shift) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      sum[2 * r + c] = fmaf(scale, product[2 * r + c], sum[2 * r + c]);
      sum[2 * r + c] = fmaf(shift, x[c], sum[2 * r + c]);
    }
  }

  // Adds a piece's sums to the warp's partial results, at Places of this tile.
  __device__ __forceinline__ void add_partial(const float (&sum)[kSets][4], uint32_t place) const {
    const auto add = [&](uint32_t before, float x) { return __float_as_uint(__uint_as_float(before) + x); };
    if constexpr (kByBlock) {
      // Four lanes hold four values each: two exchanges leave lane p with value p of all four.
      const float(&z)[4] = sum[0];
      const bool upper = p & 2, odd = p & 1;
      const float even_token = (upper ? z[2] : z[0]) + __shfl_xor_sync(kFullWarp, upper ? z[0] : z[2], 2);
      const float odd_token = (upper ? z[3] : z[1]) + __shfl_xor_sync(kFullWarp, upper ? z[1] : z[3], 2);
      const float all =
          (odd ? odd_token : even_token) + __shfl_xor_sync(kFullWarp, odd ? even_token : odd_token, 1);
      store_shared_32(place, add(load_shared_32(place), all));
    } else {
#pragma unroll
      for (int t = 0; t < kSets; ++t, place += a.at.partial_rows * kWidth * 4)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const uint32_t at = place + r * 8 * kWidth * 4;
          const uint2 before = load_shared_64(at);
          store_shared_64(at, add(before.x, sum[t][2 * r]), add(before.y, sum[t][2 * r + 1]));
        }
    }
  }

  // Starts all copies that find room, and makes the table and an empty sum meanwhile.
  __device__ __forceinline__ void begin(Places& place, Walk& ahead, float& offset) const {
    const int64_t block0 = static_cast<int64_t>(row0) * a.blocks;
    const int before = static_cast<int>(block0 % kScaleGroup);  // blocks of the first group
    place.scales = copy_codes(a.q.scale_codes, a.at.scales);
    place.shifts = a.q.tau_codes ? copy_codes(a.q.tau_codes, a.at.shifts) : place.scales;
    place.scales = kept(place.scales + g * a.at.pitch + p), place.shifts = kept(place.shifts + g * a.at.pitch + p);
    place.group = kept(before + g * a.blocks);
    copy_groups(block0 / kScaleGroup, (before + rows * a.blocks - 1) / kScaleGroup + 1);
    cp_async_commit();
#pragma unroll 1
    for (int k = 0; k < kStages; ++k) {
      if (ahead.chunk >= 0) copy_piece(ahead, place.from, place.to + k * S::kStage);
      cp_async_commit();
      advance(ahead);
    }
    const float entry = __ldg(a.q.map + warp * 16 + lane % 16);
    offset = __ldg(a.q.scale_offset);
    let_next_kernel_begin();
#pragma unroll 1
    for (int i = threadIdx.x; i < kWarps * a.at.partial_rows * kTokens / 4; i += kThreads)
      store_shared_128(a.at.partial + i * 16, uint4{});
    fill_table(entry);
  }

  __device__ __forceinline__ void finish() const {
    const int values = a.at.partial_rows * kTokens;
#pragma unroll 1
    for (int i = threadIdx.x; i < values; i += kThreads) {
      const int c = i % kWidth, line = i / kWidth, set = kSets == 1 ? 0 : line / a.at.partial_rows;
      const int row = line - set * a.at.partial_rows, m = set * kWidth + c;
      if (m >= a.m_count || row >= rows) continue;
      float total = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w)
        total += __uint_as_float(load_shared_32(a.at.partial + (w * values + i) * 4));
      __nv_bfloat16& out = a.y[m * a.y_stride + row0 + row];
      out = __float2bfloat16_rn(a.beta == 0.0f ? total : fmaf(a.beta, __bfloat162float(out), total));
    }
  }

  __device__ __forceinline__ void run() const {
    Places place = places();
    Walk ahead{};
    enter(ahead);
    Walk now = ahead;
    float offset;
    begin(place, ahead, offset);
    place.from = kept(place.from), place.to = kept(place.to), place.codes = kept(place.codes);
    place.partial = kept(place.partial), place.column = kept(place.column);
    wait_for_previous_kernel();  // x is its work; all before was on weights
    Input in;
    int chunk_in = -1;
    uint32_t stage = 0;  // where it begins
    cp_async_wait<kStages>();
    __syncthreads();
#pragma unroll 1
    while (now.chunk >= 0) {
      if (now.chunk != chunk_in) load_x(in, chunk_in = now.chunk);
      float scale[2], shift[2], sum[kSets][4] = {};
      decode(scale, shift, now, place, offset);
      cp_async_wait<kStages - 1>();
      __syncwarp();
      multiply(sum, place.codes + stage, place.column, in, scale, shift);
      __syncwarp();  // all lanes have read the stage
      if (ahead.chunk >= 0) copy_piece(ahead, place.from, place.to + stage);
      cp_async_commit();
      advance(ahead);
      add_partial(sum, place.partial + now.tile * (kFewTile * kWidth * 4));
      advance(now);
      stage = stage + S::kStage < kStages * S::kStage ? stage + S::kStage : 0;
    }
    __syncthreads();
    finish();
  }
};

}  // namespace irq
