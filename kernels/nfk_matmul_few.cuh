// The arguments and the shared memory of the kernel of nfk_matmul_few.cu, and what one of its warps does.
#pragma once
#include "kernels/dependent_launch.cuh"
#include "kernels/nfk_matmul_share.cuh"

namespace irq {

constexpr int kFewTile = 16;  // rows of w in a piece
constexpr int kFewChunk = 4;  // blocks of 64 of each of them

constexpr int kFewStages =
    2;  // pieces of a warp on the way: 48 to 64 KB on a multiprocessor. More only make others wait.
// Warps of a thread block: what the registers allow that hold the x of so many rows.
constexpr int few_warps(int tokens) { return tokens <= 8 ? 16 : 12; }

struct FewLayout {
  int partial, partial_rows;  // of each warp: (tokens / 8, partial_rows, 8) f32; for 2 tokens (partial_rows, 2)
  int ring, total;
  // Chunks are dealt to warps in turns, one for each. In the last turn there are `last` of them, each for `sharing` warps that
  // split its tiles; warp / last = warp * reciprocal >> 16.
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
  ShareLayout share;
  FewLayout at;
  float level[16];  // scaled
};

// kTokens: rows of x that there is room for. 2: column 2 j + m of a product is block j of token m, so that a lane's results are of
// the one block whose scales it decodes. 8, 16: column m of product t is token 8 t + m.
// kEarly: a piece's codes go to registers at once, so that the next copy need not wait for the products; and a chunk's last tile,
// which may have few rows, comes first, so that what arrives at the end are whole tiles.
template <int kBits, int kTokens, bool kEarly>
struct FewBlock {
  using S = ShareShape<kBits, kFewChunk>;
  static constexpr int kStage = kFewTile * S::kPitch;
  static constexpr int kWarps = few_warps(kTokens), kThreads = kWarps * kWarp;
  static constexpr int kSets = kTokens <= 8 ? 1 : kTokens / 8;  // of eight columns
  static constexpr int kWidth = kTokens / kSets;                // tokens of a set
  static constexpr bool kByBlock = kTokens == 2;
  static constexpr int kBlocksApart = kByBlock ? 1 : kFewChunk;  // sums of x, results before scaling

  const FewArgs& a;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, p = lane % 4;
  const Share<kWarps> share{a.q, a.share, a.blocks};
  const int tiles = (share.rows + kFewTile - 1) / kFewTile;

  // The pieces of a warp, one after the other: all tiles of a chunk before the next chunk. chunk < 0: no more.
  struct Walk {
    int turn, chunk, tile, step;
  };
  __device__ __forceinline__ void enter(Walk& w) const {
    w.chunk = w.turn * kWarps + warp, w.tile = kEarly ? tiles - 1 : 0, w.step = 1;
    if (w.turn < a.at.turns) return;
    const int share = warp * a.at.reciprocal >> 16;
    w.tile += kEarly ? -share : share, w.step = a.at.sharing;
    w.chunk = w.turn == a.at.turns && share < a.at.sharing && share < tiles ? w.chunk - share * a.at.last : -1;
  }
  __device__ __forceinline__ void advance(Walk& w) const {
    if (w.chunk < 0 || (kEarly ? (w.tile -= w.step) >= 0 : (w.tile += w.step) < tiles)) return;
    ++w.turn;
    enter(w);
  }

  // Where this lane reads and writes, as far as the piece does not matter.
  struct Places {
    const uint8_t* from;  // its first 16 bytes of codes in row 0, chunk 0
    uint32_t to;          // where they go in stage 0 (NF3: stage 0)
    uint32_t codes;       // of row g, block 0 in stage 0
    uint32_t partial;
    uint32_t column;  // in an entry of the table
  };
  __device__ __forceinline__ Places places() const {
    const uint32_t row_bytes = a.blocks * S::kBlockBytes;
    const uint8_t* first = a.q.codes + static_cast<int64_t>(share.row0) * row_bytes;
    const uint32_t ring = a.at.ring + warp * kFewStages * kStage;
    const int row = lane / S::kUnits, unit = lane % S::kUnits;
    Places at;
    at.from = kBits == 3 ? first : first + row * row_bytes + unit * 16;
    at.to = kBits == 3 ? ring : ring + row * S::kPitch + S::place(row, unit) * 16;
    at.codes = ring + g * S::kPitch + S::block_place(g, p, 0);
    at.partial = a.at.partial + (warp * kSets * a.at.partial_rows + g) * kWidth * 4 +
                 (kByBlock ? (p / 2 * 8 * kWidth + p % 2) * 4 : p * 8);
    at.column = lane * 4;
    return at;
  }

  // Starts copying the codes of a piece; rows past the end stay what they were, and so do not count.
  __device__ __forceinline__ void copy_piece(const Walk& w, const uint8_t* from, uint32_t to) const {
    const uint32_t row_bytes = a.blocks * S::kBlockBytes;
    const uint8_t* unit = from + (static_cast<uint32_t>(w.tile * kFewTile) * row_bytes + w.chunk * S::kRowBytes);
    const int live = share.rows - w.tile * kFewTile;
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
        const uint4* from =
            reinterpret_cast<const uint4*>(a.x + token * a.x_stride + (chunk * kFewChunk + j) * kBlock + p * 16);
        const bool mine = token < a.m_count && (!kByBlock || g / 2 == j);
        const uint4 zero{}, low = mine ? from[0] : zero, high = mine ? from[1] : zero;
        in.x[t][j][0] = low.x, in.x[t][j][1] = low.y, in.x[t][j][2] = low.z, in.x[t][j][3] = low.w;
        in.x[t][j][4] = high.x, in.x[t][j][5] = high.y, in.x[t][j][6] = high.z, in.x[t][j][7] = high.w;
      }
    }
  }
  __device__ __forceinline__ void sum_x(Input& in) const {
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

  // A lane's codes of rows g and g + 8 in block j of a chunk. codes: Places, in the stage.
  struct BlockCodes {
    Codes<kBits> rows[2];
  };
  __device__ __forceinline__ static BlockCodes load_codes(uint32_t codes, int j) {
    const uint32_t block = kBits == 4 ? codes ^ j * 32 : codes + j * S::kBlockBytes;
    return {{Codes<kBits>(block), Codes<kBits>(block + 8 * S::kPitch)}};
  }

  // sum[t][2 r + c]: row g + 8 r; of token 8 t + 2 p + c, or of token c (this lane's block alone). codes_of(j): BlockCodes; column:
  // Places.
  template <class F>
  __device__ __forceinline__ void multiply(float (&sum)[kSets][4], F&& codes_of, uint32_t column, const Input& in,
                                           const float (&scale)[2], const float (&shift)[2]) const {
    float apart[2][4] = {};  // kByBlock: two chains of products
#pragma unroll
    for (int j = 0; j < kFewChunk; ++j) {
      const BlockCodes codes = codes_of(j);
      const Codes<kBits>(&now)[2] = codes.rows;
      float product[kSets][4] = {};
      const auto step = [&](auto s) {
        constexpr int i = 2 * s.value;
        const uint32_t w[4] = {share_levels(now[0].template wide_address<i>(column)),
                               share_levels(now[1].template wide_address<i>(column)),
                               share_levels(now[0].template wide_address<i + 1>(column)),
                               share_levels(now[1].template wide_address<i + 1>(column))};
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
  __device__ __forceinline__ static void scale_products(float (&sum)[4], const float (&product)[4], const float (&x)[2],
                                                        int r, float scale, float shift) {
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
      const float all = (odd ? odd_token : even_token) + __shfl_xor_sync(kFullWarp, odd ? even_token : odd_token, 1);
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

  __device__ __forceinline__ void clear_partial() const {
#pragma unroll 1
    for (int i = threadIdx.x; i < kWarps * a.at.partial_rows * kTokens / 4; i += kThreads)
      store_shared_128(a.at.partial + i * 16, uint4{});
  }

  __device__ __forceinline__ void finish() const {
    const int values = a.at.partial_rows * kTokens;
#pragma unroll 1
    for (int i = threadIdx.x; i < values; i += kThreads) {
      const int c = i % kWidth, line = i / kWidth, set = kSets == 1 ? 0 : line / a.at.partial_rows;
      const int row = line - set * a.at.partial_rows, m = set * kWidth + c;
      if (m >= a.m_count || row >= share.rows) continue;
      float total = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) total += __uint_as_float(load_shared_32(a.at.partial + (w * values + i) * 4));
      __nv_bfloat16& out = a.y[m * a.y_stride + share.row0 + row];
      out = __float2bfloat16_rn(a.beta == 0.0f ? total : fmaf(a.beta, __bfloat162float(out), total));
    }
  }

  __device__ __forceinline__ void run() const {
    // What everything waits for is asked for first: it would stand behind all the codes otherwise.
    const auto entries = share.load_entries();
    const float offset = __ldg(a.q.scale_offset);
    const ShareScales scales = share.copy_scales(g, p);
    cp_async_commit();
    let_next_kernel_begin();
    Places place = places();
    Walk ahead{};
    enter(ahead);
    Walk now = ahead;
    wait_for_previous_kernel();  // x is its work; all before was on weights
    Input in;
    int chunk_in = now.chunk;
    if (chunk_in >= 0) load_x(in, chunk_in);
#pragma unroll 1
    for (int k = 0; k < kFewStages; ++k) {
      if (ahead.chunk >= 0) copy_piece(ahead, place.from, place.to + k * kStage);
      cp_async_commit();
      advance(ahead);
    }
    clear_partial();
    share.template fill_table<kBits>(entries, a.level);
    place.from = kept(place.from), place.to = kept(place.to), place.codes = kept(place.codes);
    place.partial = kept(place.partial), place.column = kept(place.column);
    if (chunk_in >= 0) sum_x(in);
    uint32_t stage = 0;  // where it begins
    cp_async_wait<kFewStages>();
    __syncthreads();
#pragma unroll 1
    while (now.chunk >= 0) {
      if (now.chunk != chunk_in) load_x(in, chunk_in = now.chunk), sum_x(in);
      float scale[2], shift[2], sum[kSets][4] = {};
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        share.decode(scale[r], shift[r], scales, place.column, now.tile * kFewTile + 8 * r, now.chunk * kFewChunk,
                     offset);
        scale[r] *= a.unit;
      }
      cp_async_wait<kFewStages - 1>();
      __syncwarp();
      const auto copy_next = [&] {
        __syncwarp();  // all lanes have read the stage
        if (ahead.chunk >= 0) copy_piece(ahead, place.from, place.to + stage);
        cp_async_commit();
        advance(ahead);
      };
      if constexpr (kEarly) {
        BlockCodes codes[kFewChunk];
#pragma unroll
        for (int j = 0; j < kFewChunk; ++j) codes[j] = load_codes(place.codes + stage, j);
        copy_next();
        multiply(
            sum, [&](int j) { return codes[j]; }, place.column, in, scale, shift);
      } else {
        multiply(
            sum, [&](int j) { return load_codes(place.codes + stage, j); }, place.column, in, scale, shift);
        copy_next();
      }
      add_partial(sum, place.partial + now.tile * (kFewTile * kWidth * 4));
      advance(now);
      stage = stage + kStage < kFewStages * kStage ? stage + kStage : 0;
    }
    __syncthreads();
    finish();
  }
};

}  // namespace irq
