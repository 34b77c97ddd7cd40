// What the kernels of nfk_matmul have in common that give each multiprocessor a share of the rows of w: the shares, their scale
// and tau codes, and the table of levels and of the map of scales in shared memory.
#pragma once
#include <algorithm>
#include <array>

#include "kernels/nfk_matmul.cuh"
#include "kernels/nfk_pairs.cuh"

namespace irq {

// Where the parts are in the window of shared memory, in bytes, and how the rows are dealt out.
struct ShareLayout {
  int scales, shifts, pitch;  // codes of the share's rows; bytes from row to row
  int padded_units;           // of 16 bytes of a row, if rows are set apart; 0: one lies right behind the other
  int groups;                 // factors of scale and shift, in turns
  int rows, more;             // a thread block has `rows` rows of w, the first `more` of them one more
};

// Codes of 16 rows (or of all rows of a share) by kChunk blocks of 64 in shared memory.
template <int kBits, int kChunk>
struct ShareShape {
  static constexpr int kPairs = 1 << (2 * kBits);
  static constexpr int kBlockBytes = kBlock / 8 * kBits, kRowBytes = kChunk * kBlockBytes;
  static constexpr int kUnits = kRowBytes / 16;  // of 16 bytes of a row
  // Rows start in different banks: NF4's blocks change places within a row instead.
  static constexpr int kPitch = kRowBytes + (kBits == 4 ? 0 : 16);
  __device__ __forceinline__ static int place(int row, int unit) { return kBits == 4 ? unit ^ (row & 3) * 2 : unit; }
  // Byte of a row where the codes 16p .. 16p+15 of a block are; `row` modulo 4 counts.
  __device__ __forceinline__ static int block_place(int row, int p, int block) {
    return kBits == 4 ? (block ^ (row & 3)) * 32 + p * 8 : block * kBlockBytes + p * 2 * kBits;
  }
};

// One table for both kinds of codes, 256 bytes an entry: two levels for each lane, then the entry of the map of scales for each
// lane, so that no two lanes meet in a bank. At a constant address, which a load adds for nothing.
constexpr int kShareTable = 2048, kShareTableBytes = 256 * 256;
__device__ __forceinline__ uint32_t share_levels(uint32_t place) {
  uint32_t x;
  asm("ld.shared.u32 %0, [%1+2048];" : "=r"(x) : "r"(place));
  return x;
}
__device__ __forceinline__ float share_map(uint32_t place) {
  float x;
  asm("ld.shared.f32 %0, [%1+2176];" : "=f"(x) : "r"(place));
  return x;
}

// Whether shares can be taken of q, in chunks of 256 columns, and of rows of x in units of 16 bytes.
inline bool share_takes(const PackedView& q, const __nv_bfloat16* x, int64_t x_stride) {
  return q.rows > 0 && q.cols % (4 * kBlock) == 0 && !q.scales && aligned_16(q.codes) && aligned_16(q.scale_codes) &&
         aligned_16(q.tau_codes) && aligned_16(x) && x_stride % 8 == 0 && q.rows * (q.cols / kBlock) < int64_t{1} << 31;
}
// For `grid` thread blocks; `end`: where shared memory is free, before and afterwards.
inline ShareLayout share_layout(const PackedView& q, int64_t grid, int64_t& end) {
  const int64_t rows = ceil_div(q.rows, grid), blocks = q.cols / kBlock;
  ShareLayout at{};
  at.rows = static_cast<int>(q.rows / grid), at.more = static_cast<int>(q.rows % grid);
  // Eight rows of codes start in different banks, if need be through 16 bytes between them.
  at.padded_units = static_cast<int>(blocks % 32 == 0 ? blocks / 16 : 0);
  at.pitch = static_cast<int>(blocks + (at.padded_units ? 16 : 0));
  end = kShareTable + kShareTableBytes;
  const auto take = [&](int64_t bytes) {
    const int64_t begin = end;
    end += ceil_div(bytes, 128) * 128;
    return static_cast<int>(begin);
  };
  const int64_t most = ceil_div(rows, 32) * 32;  // rows behind the last are read, though not used
  at.scales = take(most * at.pitch + 32), at.shifts = q.tau_codes ? take(most * at.pitch + 32) : at.scales;
  at.groups = take((most * blocks / kScaleGroup + 2) * 8);
  return at;
}

// Where a lane finds the scales of a row's block, whatever rows and blocks are added.
struct ShareScales {
  uint32_t scales, shifts;  // codes
  uint32_t group;           // the block, counted from the first group's first
};

template <int kWarps>
struct Share {
  const PackedView& q;
  const ShareLayout& at;
  const int blocks;
  const int rows = at.rows + (static_cast<int>(blockIdx.x) < at.more ? 1 : 0);
  const int row0 = static_cast<int>(blockIdx.x) * at.rows + min(static_cast<int>(blockIdx.x), at.more);

  // Starts copying the scale (or tau) codes of the rows, in units of 16 bytes. Returns where they begin, behind those that
  // share the first unit. Only the last unit may be partly another's: it goes in units of 4.
  __device__ __forceinline__ uint32_t copy_codes(const uint8_t* codes, uint32_t to) const {
    const uint8_t* first = codes + static_cast<int64_t>(row0) * blocks;
    const int skip = static_cast<int>(reinterpret_cast<uintptr_t>(first) % 16), bytes = rows * blocks + skip;
    const int whole = bytes / 16, tail = whole * 16 + static_cast<int>(threadIdx.x) * 4;
    const unsigned apart = at.padded_units ? at.padded_units : 1 << 30;  // rows set apart are whole units
#pragma unroll 1
    for (int i = threadIdx.x; i < whole; i += kWarps * kWarp)
      cp_async_16(to + i * 16 + static_cast<unsigned>(i) / apart * 16, first - skip + i * 16, true);
    if (tail < bytes) cp_async_4(to + tail, first - skip + tail, true);
    return to + skip;
  }
  // Starts copying all scales; the places of a row's block.
  __device__ __forceinline__ ShareScales copy_scales(int row, int block) const {
    const int64_t block0 = static_cast<int64_t>(row0) * blocks, group0 = block0 / kScaleGroup;
    const int before = static_cast<int>(block0 % kScaleGroup);  // blocks of the first group
    ShareScales s;
    s.scales = copy_codes(q.scale_codes, at.scales);
    s.shifts = q.tau_codes ? copy_codes(q.tau_codes, at.shifts) : s.scales;
    s.scales = kept(s.scales + row * at.pitch + block), s.shifts = kept(s.shifts + row * at.pitch + block);
    s.group = kept(before + row * blocks + block);
    const int groups = (before + rows * blocks - 1) / kScaleGroup + 1;
#pragma unroll 1
    for (int i = threadIdx.x; i < groups; i += kWarps * kWarp) {  // a shift's factor is 0 if there are none
      cp_async_4(at.groups + i * 8, q.scale_groups + group0 + i, true);
      cp_async_4(at.groups + i * 8 + 4, q.tau_codes ? q.tau_groups + group0 + i : q.scale_groups,
                 q.tau_codes != nullptr);
    }
    return s;
  }
  // Scale and shift of the block that is `row` rows below and `block` blocks behind the places'. column: 4 * lane.
  __device__ __forceinline__ void decode(float& scale, float& shift, const ShareScales& s, uint32_t column,
                                         uint32_t row, uint32_t block, float offset) const {
    const uint32_t codes = row * at.pitch + block;
    const auto entry = [&](uint32_t first) { return share_map(load_shared_8(first + codes) * 256u + column); };
    const uint2 factor = load_shared_64(at.groups + (s.group + row * blocks + block) / kScaleGroup * 8);
    scale = __fadd_rn(__fmul_rn(entry(s.scales), __uint_as_float(factor.x)), offset);
    shift = __fmul_rn(entry(s.shifts), __uint_as_float(factor.y));
  }

  // The entries of the map that this warp puts into the table: 16 for each sixteenth of the table that it fills.
  static constexpr int kSixteenths = (16 + kWarps - 1) / kWarps;
  struct Entries {
    float map[kSixteenths];
  };
  __device__ __forceinline__ Entries load_entries() const {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    Entries e;
#pragma unroll
    for (int i = 0; i < kSixteenths; ++i) e.map[i] = __ldg(q.map + (warp + i * kWarps) % 16 * 16 + lane % 16);
    return e;
  }
  // Entry i: the two levels of pair i (if there are as many), and map[i]. window: where this thread block's shared memory begins.
  template <int kBits>
  __device__ __forceinline__ void fill_table(const Entries& entries, const float (&levels)[16],
                                             uint32_t window = 0) const {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const float level = levels[lane % (1 << kBits)];
#pragma unroll
    for (int n = 0; n < kSixteenths; ++n) {
#pragma unroll
      for (int k = 0; k < 16; k += 2) {
        const int i = k + lane / 16, pair = (warp + n * kWarps) % 16 * 16 + i;
        const float first = __shfl_sync(kFullWarp, level, pair >> kBits & ((1 << kBits) - 1));
        const float second = __shfl_sync(kFullWarp, level, pair & ((1 << kBits) - 1));
        const float map = __shfl_sync(kFullWarp, entries.map[n], i);
        const uint32_t v = lane % 16 < 8 ? pack_bf16(first, second) : __float_as_uint(map);
        if (warp + n * kWarps < 16 && (pair < 1 << 2 * kBits || lane % 16 >= 8))
          store_shared_128(window + kShareTable + pair * 256 + lane % 16 * 16, make_uint4(v, v, v, v));
      }
    }
  }
};

}  // namespace irq
