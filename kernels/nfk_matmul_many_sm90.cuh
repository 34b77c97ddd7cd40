// The arguments of the kernel of nfk_matmul_many_sm90.cu, and what one of its thread blocks does.
#pragma once
#include "kernels/dependent_launch.cuh"
#include "kernels/nfk_matmul_share.cuh"
#include "kernels/sm90.cuh"

namespace irq {
namespace many_sm90 {

// Four warpgroups multiply, a fifth copies. The launch gives each thread 96 registers.
constexpr int kGroups = 4, kWarps = 4 * kGroups, kThreads = kWarps * kWarp, kCopiers = 128;
constexpr int kMultiplierRegisters = 104, kCopierRegisters = 64;
static_assert(kMultiplierRegisters * kThreads + kCopierRegisters * kCopiers <= 96 * (kThreads + kCopiers));
constexpr int kTileRows = 64;    // of a warpgroup
constexpr int kChunk = 2;        // blocks of 64 columns in a stage
constexpr int kPartsAtOnce = 8;  // of a sum
constexpr int kMostStages = 12, kFewestStages = 4;
constexpr int kPitch = (kGroups * kTileRows + 4) * 4;  // of a token's partial sums: 4 lanes, 8 rows meet 32 banks

struct Args {
  PackedView q;
  const __nv_bfloat16* x;
  int64_t x_stride;
  __nv_bfloat16* y;
  int64_t y_stride;
  int m_count, blocks;
  int cluster;              // thread blocks of a cluster
  int tiles, turns;         // warpgroups beside each other that share a chunk; such teams, which take chunks in turns
  int quads, more_quads;    // of rows: of each cluster; the first more_quads have one more
  int chunks, more_chunks;  // of each thread block, likewise
  bool whole_quads;         // y takes 8 bytes at once
  float beta, unit;
  ShareLayout at;
  int barriers, ring, stages, codes_in_stage, stage_bytes;
  float level[16];  // scaled
};

// Codes of a chunk in shared memory: what eight rows are read for at once is in different banks.
template <int kBits>
struct StageShape {
  static constexpr int kBlockBytes = kBlock / 8 * kBits, kPitch = kChunk * kBlockBytes, kUnits = kPitch / 16;
  // Units of 16 bytes change places within a row, also in an address: unit u is at the row's first place ^ 16 u.
  __device__ __forceinline__ static int turned(int row) {
    return kBits == 4 ? (row & 2) | (row >> 2 & 1) : kBits == 2 ? row >> 2 & 1 : 0;
  }
  __device__ __forceinline__ static int place(int row, int unit) { return unit ^ turned(row); }
  __device__ __forceinline__ static uint32_t block(uint32_t row, int j) {
    return kBits == 3 ? row + j * kBlockBytes : row ^ j * kBlockBytes;
  }
};

// The codes of a row's block, read by all four lanes alike; of eight of them lane p multiplies 2 p and 2 p + 1, so that x keeps its
// order. address<k>: in the table, of the k-th eight. chooses: what chooses(p) says.
template <int kBits>
struct RowCodes;
template <>
struct RowCodes<4> {
  static constexpr int kParts = 2;  // a block is read in two parts, to save registers
  uint4 half;
  __device__ __forceinline__ static uint32_t chooses(int p) { return 0x7504 + (p << 4); }
  template <int part>
  __device__ __forceinline__ void load(uint32_t row) {
    half = load_shared_128(row ^ part * 16);
  }
  template <int k>
  __device__ __forceinline__ uint32_t address(uint32_t column, uint32_t chooses) const {
    return __byte_perm(k % 4 == 0 ? half.x : k % 4 == 1 ? half.y : k % 4 == 2 ? half.z : half.w, column, chooses);
  }
};
template <>
struct RowCodes<3> {
  static constexpr int kParts = 1;
  uint32_t w[6];
  __device__ __forceinline__ static uint32_t chooses(int p) { return 18 - 6 * p; }
  template <int part>
  __device__ __forceinline__ void load(uint32_t row) {
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const uint2 two = load_shared_64(row + 8 * i);
      w[2 * i] = two.x, w[2 * i + 1] = two.y;
    }
  }
  template <int k>
  __device__ __forceinline__ uint32_t address(uint32_t column, uint32_t chooses) const {
    constexpr int i = k / 4 * 3;  // three words hold four eights; the first code on top, below the last something else
    const uint32_t eight = k % 4 == 0   ? __byte_perm(w[i], 0, 0x0122)
                           : k % 4 == 1 ? __byte_perm(w[i], w[i + 1], 0x3455)
                           : k % 4 == 2 ? __byte_perm(w[i + 1], w[i + 2], 0x2344)
                                        : __byte_perm(w[i + 2], 0, 0x1233);
    return (eight >> chooses & 63 << 8) | column;
  }
};
template <>
struct RowCodes<2> {
  static constexpr int kParts = 1;
  uint4 all;
  __device__ __forceinline__ static uint32_t chooses(int p) { return p / 2 * 8 + (p % 2 == 0 ? 4 : 0) + 24; }
  template <int part>
  __device__ __forceinline__ void load(uint32_t row) {
    all = load_shared_128(row);
  }
  template <int k>
  __device__ __forceinline__ uint32_t address(uint32_t column, uint32_t chooses) const {
    const uint32_t v = k / 2 == 0 ? all.x : k / 2 == 1 ? all.y : k / 2 == 2 ? all.z : all.w;
    return (__funnelshift_r(v, v, chooses + k % 2 * 16) & 15 << 8) | column;
  }
};

__device__ __forceinline__ uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;\n" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
// kSets: of eight rows of x.
template <int kBits, int kSets>
struct Block {
  using S = StageShape<kBits>;
  static constexpr int kTokens = kSets * 8;
  static constexpr int kPanel = kTokens * 128;  // bytes of x in a block of 64 columns
  const Args& a;
  const uint32_t window;  // where this thread block's shared memory begins: in a cluster, its rank is in the address
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, p = lane % 4;
  const int number = static_cast<int>(blockIdx.x) / a.cluster, rank = static_cast<int>(blockIdx.x) % a.cluster;
  const int row0 = 4 * (number * a.quads + min(number, a.more_quads));
  const int quads = a.quads + (number < a.more_quads ? 1 : 0);
  const int rows = min(4 * quads, static_cast<int>(a.q.rows) - row0);
  const int chunk0 = rank * a.chunks + min(rank, a.more_chunks), chunks = a.chunks + (rank < a.more_chunks ? 1 : 0);
  const Share<kWarps> share{a.q, a.at, a.blocks, rows, row0};

  // Starts copying the scale and tau codes of this block's columns, in words: the first may begin before them.
  __device__ __forceinline__ void copy_scale_codes() const {
    const int word0 = chunk0 * kChunk / 4, words = ((chunk0 + chunks) * kChunk + 3) / 4 - word0;
    const int first = threadIdx.x / 16, word = threadIdx.x % 16;
    constexpr int kRowsAtOnce = (kThreads + kCopiers) / 16;
#pragma unroll 1
    for (int w = word; w < words; w += 16) {
      const int64_t from = (static_cast<int64_t>(row0) + first) * a.blocks + (word0 + w) * 4;
      const uint8_t *scale = a.q.scale_codes + from, *shift = a.q.tau_codes + from;
      uint32_t to = window + first * a.at.pitch + w * 4;
#pragma unroll 2
      for (int r = first; r < rows; r += kRowsAtOnce, to += kRowsAtOnce * a.at.pitch) {
        cp_async_4(to + a.at.scales, scale, true);
        if (a.q.tau_codes) cp_async_4(to + a.at.shifts, shift, true);
        scale += kRowsAtOnce * a.blocks, shift += kRowsAtOnce * a.blocks;
      }
    }
  }
  // And of their factors. The places of block `block` of row `row`.
  __device__ __forceinline__ ShareScales copy_scales(int row, int block) const {
    const int64_t block0 = static_cast<int64_t>(row0) * a.blocks, group0 = block0 / kScaleGroup;
    const int before = static_cast<int>(block0 % kScaleGroup), first = chunk0 * kChunk;
    copy_scale_codes();
    const int count = (before + rows * a.blocks - 1) / kScaleGroup + 1;
    const uint32_t groups = window + a.at.groups;
#pragma unroll 1
    for (int i = threadIdx.x; i < count; i += kThreads + kCopiers) {  // a shift's factor is 0 if there are none
      cp_async_4(groups + i * 8, a.q.scale_groups + group0 + i, true);
      cp_async_4(groups + i * 8 + 4, a.q.tau_codes ? a.q.tau_groups + group0 + i : a.q.scale_groups,
                 a.q.tau_codes != nullptr);
    }
    const uint32_t place = row * a.at.pitch + first % 4 + block;
    return {kept(window + a.at.scales + place), kept(window + a.at.shifts + place),
            kept(before + row * a.blocks + first + block)};
  }

  // Of a stage: all copies are there; all products of it are done.
  __device__ __forceinline__ uint32_t full(int stage) const { return window + a.barriers + stage * 16; }
  __device__ __forceinline__ uint32_t empty(int stage) const { return full(stage) + 8; }

  // By a warpgroup of its own: all chunks of all rows of w and of x. Rows past the end stay what they were in shared memory, and
  // so do not count.
  __device__ __forceinline__ void copy() const {
    constexpr int kRowsAtOnce = kCopiers / S::kUnits, kTokensAtOnce = kCopiers / (kChunk * 8);
    static_assert(kTokensAtOnce == 8, "chunks of a token's x change places by the token modulo 8");
    const int thread = threadIdx.x - kThreads;
    const uint32_t row_bytes = a.blocks * S::kBlockBytes;
    const int first = thread / S::kUnits, unit = thread % S::kUnits;
    const uint8_t* codes =
        a.q.codes + (static_cast<int64_t>(row0) + first) * row_bytes + chunk0 * S::kPitch + unit * 16;
    const uint32_t codes_to = a.codes_in_stage + first * S::kPitch + S::place(first, unit) * 16;
    const int row_count = first < kRowsAtOnce ? rows - first : 0;
    const int token = thread / (kChunk * 8), eight = thread % (kChunk * 8), token_count = a.m_count - token;
    const __nv_bfloat16* x = a.x + token * a.x_stride + chunk0 * (kChunk * kBlock) + eight * 8;
    const uint32_t x_to = eight / 8 * kPanel + panel_byte(token, eight % 8);
    int stage = 0, round = 0;
    uint32_t to = window + a.ring;
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
      barrier_wait(empty(stage), round + 1);
      const uint8_t* from = codes;
#pragma unroll
      for (int r = 0; r < kGroups * kTileRows; r += kRowsAtOnce, from += kRowsAtOnce * row_bytes)
        if (r < row_count) cp_async_16(to + codes_to + r * S::kPitch, from, true);
      const __nv_bfloat16* from_x = x;
#pragma unroll
      for (int m = 0; m < kTokens; m += kTokensAtOnce, from_x += kTokensAtOnce * a.x_stride)
        if (m < token_count) cp_async_16(to + x_to + m * 128, from_x, true);
      barrier_arrive_after_copies(full(stage));
      codes += S::kPitch, x += kChunk * kBlock, to += a.stage_bytes;
      if (++stage == a.stages) stage = 0, ++round, to = window + a.ring;
    }
    cp_async_wait<0>();  // no thread ends before what it has started
  }

  // The weights of 16 rows in a block of 64 columns as operands. scale: of rows g and g + 8, twice the larger part, twice the rest.
  __device__ __forceinline__ void dequantize(uint32_t (&w)[4][4], uint32_t row, uint32_t column, uint32_t chooses,
                                             const uint32_t (&large)[2], const uint32_t (&small)[2],
                                             const uint32_t (&shift)[2]) const {
    RowCodes<kBits> codes[2];
    const auto weights = [&](int r, uint32_t place) {
      const uint32_t levels = share_levels(place);
      return fma_bf16x2(levels, large[r], fma_bf16x2(levels, small[r], shift[r]));
    };
    const auto step = [&](auto s) {
      constexpr int k = 2 * s.value, kPart = s.value * RowCodes<kBits>::kParts / 4;
      if constexpr (s.value * RowCodes<kBits>::kParts % 4 == 0) {
        codes[0].template load<kPart>(row);
        codes[1].template load<kPart>(row + 8 * S::kPitch);
      }
      w[s.value][0] = weights(0, codes[0].template address<k>(column, chooses));
      w[s.value][1] = weights(1, codes[1].template address<k>(column, chooses));
      w[s.value][2] = weights(0, codes[0].template address<k + 1>(column, chooses));
      w[s.value][3] = weights(1, codes[1].template address<k + 1>(column, chooses));
    };
    step(std::integral_constant<int, 0>{});
    step(std::integral_constant<int, 1>{});
    step(std::integral_constant<int, 2>{});
    step(std::integral_constant<int, 3>{});
  }

  // A block's scale as two bf16, the larger part in the lower half, and its shift twice.
  struct Scales {
    uint32_t scale, shift;
  };
  // Lane p decodes block p / 2 of row g + 8 (p % 2); the places move on to the team's next chunk.
  __device__ __forceinline__ Scales decode(ShareScales& at, uint32_t column, float offset) const {
    const auto entry = [&](uint32_t codes) { return share_map(load_shared_8(codes) * 256u + column); };
    const uint2 factor = load_shared_64(window + a.at.groups + at.group / kScaleGroup * 8);
    const float s_hat = __fadd_rn(__fmul_rn(entry(at.scales), __uint_as_float(factor.x)), offset),
                scale = s_hat * a.unit;
    const float shift = __fmul_rn(entry(at.shifts), __uint_as_float(factor.y));
    at.scales += a.turns * kChunk, at.shifts += a.turns * kChunk, at.group += a.turns * kChunk;
    const float large = __uint_as_float(pack_bf16(scale, scale) << 16);
    return {pack_bf16(large, scale - large), pack_bf16(shift, shift)};
  }

  // Block j of a chunk of this warpgroup's rows; its products may still run afterwards. x: how products are told of it.
  template <int j>
  __device__ __forceinline__ void multiply(float (&sum)[kSets][4], uint32_t (&w)[4][4], uint32_t row, uint32_t x,
                                           uint32_t column, uint32_t chooses, const Scales& scales) const {
    uint32_t large[2], small[2], shift[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int from = (lane & ~3) + 2 * j + r;
      const uint32_t both = __shfl_sync(kFullWarp, scales.scale, from);
      large[r] = __byte_perm(both, 0, 0x1010), small[r] = __byte_perm(both, 0, 0x3232);
      shift[r] = __shfl_sync(kFullWarp, scales.shift, from);
    }
    dequantize(w, S::block(row, j), column, chooses, large, small, shift);
    operands_are_there(w);
    wgmma_fence();
    constexpr uint64_t kHigh = (kPanelSwizzle | kPanelGroup) >> 32 << 32;
#pragma unroll
    for (int s = 0; s < 4; ++s) wgmma_registers<false>(sum, w[s], kHigh | (x + (j * kPanel + s * 32) / 16));
    wgmma_commit();
  }

  // The chunks of this warpgroup's team.
  __device__ __forceinline__ void multiply_all(float (&sum)[kSets][4], ShareScales at, float offset, int team) const {
    const uint32_t column = kept(window + lane * 4);
    const int row = (warp / 4 - team * a.tiles) * kTileRows + warp % 4 * 16 + g;
    const uint32_t codes = kept(window + a.ring + a.codes_in_stage + row * S::kPitch + S::turned(g) * 16);
    const uint32_t chooses = kept(RowCodes<kBits>::chooses(p));
    const uint32_t x = static_cast<uint32_t>(panel_along(window + a.ring));
    uint32_t w[kChunk][4][4];
    Scales scales = decode(at, column, offset);
    int stage = team, round = 0, before = 0;
#pragma unroll 1
    for (int chunk = team; chunk < chunks; chunk += a.turns) {
      const uint32_t begin = stage * a.stage_bytes;
      barrier_wait(full(stage), round);
      publish_to_products();  // other threads' copies of x
      wgmma_wait<1>();        // the products before the last have read their registers
      multiply<0>(sum, w[0], codes + begin, x + begin / 16, column, chooses, scales);
      const Scales after = decode(at, column, offset);  // behind the last one: not used
      wgmma_wait<1>();                                  // all products of the chunk before are done
      if (lane == 0 && chunk != team) barrier_arrive(empty(before));
      multiply<1>(sum, w[1], codes + begin, x + begin / 16, column, chooses, scales);
      scales = after;
      before = stage, stage += a.turns;
      if (stage >= a.stages) stage -= a.stages, ++round;
    }
    wgmma_wait<0>();
    results_are_there(sum);
  }

  // Sums lie token by token where the stages were. Each thread block of a cluster adds up its part of the rows.
  __device__ __forceinline__ void finish(const float (&sum)[kSets][4], bool has_rows) const {
    meet(1, kThreads);
    if (has_rows) {
      const uint32_t to = window + a.ring + (warp * 16 + g) * 4 + 2 * p * kPitch;
#pragma unroll
      for (int k = 0; k < kSets; ++k)
#pragma unroll
        for (int c = 0; c < 4; ++c)
          store_shared_32(to + (8 * k + c % 2) * kPitch + c / 2 * 32, __float_as_uint(sum[k][c]));
    }
    meet_cluster();
    const int mine = (quads + a.cluster - 1) / a.cluster, first = rank * mine, count = min(mine, quads - first);
#pragma unroll 1
    for (int i = threadIdx.x; i < a.m_count * count; i += kThreads) {
      const int m = i / count, row = 4 * (first + i - m * count);
      float4 total{};
      int team = 0, part_rank = 0;
#pragma unroll 1
      for (int left = a.turns * a.cluster; left > 0; left -= kPartsAtOnce) {  // mostly once
        float4 part[kPartsAtOnce];
#pragma unroll
        for (int k = 0; k < kPartsAtOnce; ++k) {
          const uint32_t from = window + a.ring + m * kPitch + (team * a.tiles * kTileRows + row) * 4;
          part[k] = k < left ? load_cluster_128(from, part_rank) : float4{};
          if (++part_rank == a.cluster) part_rank = 0, ++team;
        }
#pragma unroll
        for (int k = 0; k < kPartsAtOnce; ++k)
          total.x += part[k].x, total.y += part[k].y, total.z += part[k].z, total.w += part[k].w;
      }
      store_quad(a.y + m * a.y_stride + row0 + row, total, rows - row);
    }
    meet_cluster_again();  // nobody leaves while others read
  }
  __device__ __forceinline__ void store_quad(__nv_bfloat16* y, const float4& total, int live) const {
    if (a.beta == 0.0f && a.whole_quads) {
      *reinterpret_cast<uint2*>(y) = {pack_bf16(total.x, total.y), pack_bf16(total.z, total.w)};
      return;
    }
    const float value[4] = {total.x, total.y, total.z, total.w};
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (e < live)
        y[e] = __float2bfloat16_rn(a.beta == 0.0f ? value[e] : fmaf(a.beta, __bfloat162float(y[e]), value[e]));
  }

  __device__ __forceinline__ void run() const {
    const bool copies = warp >= kWarps;
    const int team = warp / 4 / a.tiles, tile = warp / 4 - team * a.tiles;
    const auto entries = share.load_entries();
    const float offset = __ldg(a.q.scale_offset);
    const ShareScales at = copy_scales(tile * kTileRows + warp % 4 * 16 + g + 8 * (p % 2), team * kChunk + p / 2);
    cp_async_commit();
    if (threadIdx.x == 0)
      for (int i = 0; i < a.stages; ++i) barrier_init(full(i), kCopiers), barrier_init(empty(i), a.tiles * 4);
    let_next_kernel_begin();
    wait_for_previous_kernel();  // x is its work; all before was on weights
    __syncthreads();
    if (copies) {
      give_up_registers<kCopierRegisters>();
      cp_async_wait<0>();
      let_pass(2, kThreads + kCopiers);
      copy();
    } else {
      take_registers<kMultiplierRegisters>();
      share.template fill_table<kBits>(entries, a.level, window);
      cp_async_wait<0>();
      meet(2, kThreads + kCopiers);
      float sum[kSets][4] = {};
      const bool busy = team < a.turns && team < chunks;
      if (busy) multiply_all(sum, at, offset, team);
      finish(sum, team < a.turns);
    }
  }
};

}  // namespace many_sm90
}  // namespace irq
