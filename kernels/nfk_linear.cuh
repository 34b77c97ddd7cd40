// The arguments and the shared memory of the kernel of nfk_linear.cu.
#pragma once
#include "kernels/dependent_launch.cuh"
#include "kernels/nfk_linear.h"
#include "kernels/nfk_pairs.cuh"

namespace irq {

// Each block is a multiprocessor's only one and walks through tiles of 16 rows of W.
constexpr int kLinearGroups =
    2;  // of warps, each with tiles of its own, so that one finishes while the other multiplies
constexpr int kLinearWarps = 8;  // of a group
constexpr int kLinearThreads = kLinearGroups * kLinearWarps * kWarp;
constexpr int kLinearRows = 16;       // of w in a tile
constexpr int kLinearChunk = 4;       // blocks of 64 in a warp's piece of a tile
constexpr int kLinearTokens = 8;      // most rows of x
constexpr int kLinearSegment = 1024;  // columns of A that a warp takes
constexpr int kLinearColumns = kLinearChunk * kBlock;

struct PackedLinearArgs {
  PackedView part[PackedLinear::kParts];
  int tile_end
      [PackedLinear::kParts];  // tiles of the parts before and with this one (but swiglu: a tile takes from both)
  int tiles, cols, m_count;
  PackedLinear::Finish finish;
  const __nv_bfloat16* x;
  int64_t x_stride;
  const float* norm;  // null: x as it is
  float eps;
  __nv_bfloat16* y;
  int64_t y_stride;
  const __nv_bfloat16* base;  // y = base_scale * base + ..., null: nothing to add
  int64_t base_stride;
  float base_scale;
  const __nv_bfloat16* a;
  int64_t a_stride;
  int ranks;     // R; 0: no adapter
  int segments;  // of a row of A
  const __nv_bfloat16* b[PackedLinear::kParts];
  int64_t b_stride[PackedLinear::kParts];
  int b_column[PackedLinear::kParts], b_rank[PackedLinear::kParts];
  float* u;   // (m_count, segments, R) in device memory: sums over a segment each
  int* meet;  // [0] parts of u that are there, [1] blocks that are through
  const float *cosine, *sine;
  int64_t cos_stride, sin_stride, kv_stride;
  const int32_t *positions, *cache_rows;
  int half, tile_shift;  // D/2; log2 of the tiles of a head
  __nv_bfloat16 *keys, *values;
  Codebook scaled;
  float unit;
};

// Rows of a tile: `low`.. of part `low_part` are its rows 0..7, `high`.. of `high_part` its rows 8..15. What the finish
// needs together (gate and up, both halves of a RoPE pair) are rows r and r + 8 of one tile.
struct TileRows {
  int low_part, high_part, low, high;
};

template <class Args>
__device__ __forceinline__ TileRows rows_of_tile(const Args& a, int tile) {
  if (a.finish == PackedLinear::Finish::swiglu) return {0, 1, tile * 8, tile * 8};
  int part = 0, first = 0;
#pragma unroll
  for (int i = 0; i < PackedLinear::kParts - 1; ++i)
    if (tile >= a.tile_end[i]) part = i + 1, first = a.tile_end[i];
  const int i = tile - first;
  if (a.finish == PackedLinear::Finish::rope && part < 2) {
    const int head = i >> a.tile_shift, low = head * 2 * a.half + (i - (head << a.tile_shift)) * 8;
    return {part, part, low, low + a.half};
  }
  return {part, part, i * kLinearRows, i * kLinearRows + 8};
}

template <int kBits>
struct LinearShape {
  static constexpr int kPairs = 1 << (2 * kBits);
  static constexpr int kBlockBytes = kBlock / 8 * kBits, kChunkBytes = kLinearChunk * kBlockBytes;
  static constexpr int kPieces = kChunkBytes / 16;                     // of 16 bytes, of a row of a chunk
  static constexpr int kPitch = kChunkBytes + (kBits == 4 ? 32 : 16);  // rows start in different banks
  static constexpr int kScales = kLinearRows * kPitch;                 // then [row][block] of a chunk: scale codes,
  static constexpr int kShifts = kScales + kLinearRows * 4;            // tau codes,
  static constexpr int kScaleGroups = kShifts + kLinearRows * 4;       // and of each row its group's factors
  static constexpr int kShiftGroups = kScaleGroups + kLinearRows * 4;
  static constexpr int kStage = kShiftGroups + kLinearRows * 4;
};

// The table of pairs lies at this address of the shared window, whatever the compiler puts in front of it: a constant that a
// load adds for nothing.
constexpr int kTableAddress = 2048;
__device__ __forceinline__ uint32_t load_pair(uint32_t place) {
  uint32_t x;
  asm("ld.shared.u32 %0, [%1+2048];" : "=r"(x) : "r"(place));
  return x;
}

// Bytes from kTableAddress on.
struct LinearMemory {
  int map, partial, u, block_sums, x, stages, total;
  int x_pitch;  // elements
  LinearMemory() = default;
  // tokens: of a result's row in `partial`, 1 or kLinearTokens
  LinearMemory(int table_bytes, int tokens, int m_count, int cols, int ranks, int stage_bytes, int stage_count) {
    x_pitch = cols + 8;  // rows of x start in different banks
    map = table_bytes;
    partial = map + 256 * 4;
    u = partial + kLinearGroups * 2 * (kLinearWarps + 1) * kLinearRows * tokens * 4;
    block_sums = u + kLinearGroups * ((ranks * m_count * 4 + 15) / 16 * 16);
    x = block_sums + (m_count * (cols / kBlock) * 4 + 15) / 16 * 16;
    stages = x + m_count * x_pitch * 2;
    total = stages + kLinearGroups * kLinearWarps * stage_bytes * stage_count;
  }
};

// Everything but the places of u and the counters; false if no kernel here takes the call.
bool packed_linear_arguments(const PackedLinear& c, PackedLinearArgs& a);

}  // namespace irq
