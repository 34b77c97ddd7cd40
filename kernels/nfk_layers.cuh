// The arguments and the shared memory of the kernel of nfk_layers.cu: a program of linears of one token, and of attention.
#pragma once
#include "kernels/nfk_linear.cuh"

namespace irq {

constexpr int kStreamWarps = 16, kStreamThreads = kStreamWarps * kWarp;
constexpr int kStreamBlocks = 8;                        // of 64 in a piece, which has kLinearRows rows of W
constexpr int kStreamColumns = kStreamBlocks * kBlock;  // of a piece
constexpr int kStreamStages = 2;                        // pieces of a warp that are there or on their way
constexpr int kStreamEager = 4;        // warps that ask for pieces of the next linear before its x is there
constexpr int kStreamMaxBlocks = 256;  // of a row: as many as the table of NF4 has gaps
constexpr int kStreamLayers = 16;      // most of a launch (its parameters end at 32 KB)
constexpr int kStreamSlots = 4;        // linears whose arguments lie in shared memory
constexpr int kStreamExchange = 8192;  // words of u, or of one result, on their way to other blocks;
constexpr int kStreamExchangeQkv = 2 * kStreamExchange, kStreamExchangeRecords = 4 * kStreamExchange;  // of those
constexpr int kStreamSplits = 4;  // most blocks that share a head's keys

// Of tile `first` + i of a part: its rows 0 to 7 are rows (i >> shift) * step + i % 2^shift * 8 and on, its rows 8 to 15 begin
// `upper` rows later.
struct StreamTiles {
  int first, shift, step, upper;
};
struct StreamPart {
  const uint8_t *codes, *block_codes[2];  // of weights; of scales and shifts, whose pointer may be null
  const float *block_groups[2], *scale_offset;
  const __nv_bfloat16* b;
  int b_stride, b_column, b_rank;
  int rows;
  int first;  // column of y
};
// PackedLinearArgs for one token, without what the linears of a program share.
struct StreamLinear {
  StreamPart part[PackedLinear::kParts];
  StreamTiles tiles_of[PackedLinear::kParts];
  int tile_end[PackedLinear::kParts - 1];  // tiles of the parts before and with this one
  int paired;                              // 1: rows 8 to 15 of a tile belong to the next part
  int whole_pieces;  // 1: each piece of a row has blocks of one group of scales, 8 bytes of codes that are aligned
  int tiles, cols;
  PackedLinear::Finish finish;
  int kv_stride;
  const __nv_bfloat16* x;  // null: what attention left
  const float* norm;
  __nv_bfloat16* y;
  const __nv_bfloat16* base;
  const __nv_bfloat16* a;
  int a_stride, ranks, segments;
  float eps, base_scale;
  int cos_stride, sin_stride, half;
  const float *cosine, *sine;
  const int32_t *positions, *cache_rows;
  __nv_bfloat16 *keys, *values;
};
struct StreamAttention {
  const __nv_bfloat16 *keys, *values;
  const int32_t* seq;  // of the token: six numbers
  int kv_stride, heads, group, head_dim, splits;
  int first_key, first_value;  // columns of q, k and v side by side
  float scale;
};
// Zero before and after each launch, but the epoch: the number of the last linear.
struct StreamMeeting {
  unsigned left, epoch, unused[2];  // left: blocks that are through
};
struct StreamShared {  // of all linears of a program
  const float* map;
  StreamMeeting* meeting;
  // Words for other blocks, each with the number of its linear, so that one look says that it is there: sums over a segment
  // of A (segments, ranks); pairs of elements of what the four linears of a layer and attention give; and what attention's
  // splits give: unnormalized output (heads, splits, D), then maximum and sum (heads, splits, 2).
  uint2* u;
  uint2 *result[4], *attended;
  uint2 *record_o, *record_sum;
  float level[16];  // scaled
  float unit;
};
struct StreamProgram {
  StreamShared all;
  int count;  // of linears: four a layer, with attention behind the first
  StreamLinear linear[4 * kStreamLayers];
  StreamAttention attend[kStreamLayers];
};

// The keys that the token sees: the prefix, rows p_begin.. of the cache, and then its own, row k_begin + i for key i.
struct StreamVisible {
  int keys, prefix, p_begin, k_begin;
};
// A linear's arguments in shared memory, with the numbers that they point to.
struct StreamSlot {
  StreamLinear a;
  float offset[PackedLinear::kParts];
  int tiles, chunks;  // this block's; pieces of a row of W
  int position, cache_row;
  StreamVisible visible;  // to attention behind it
};

template <int kBits>
struct StreamShape {
  static constexpr int kTable = (1 << (2 * kBits)) * 256;
  static constexpr bool kGaps = kTable / 256 >= kStreamMaxBlocks;  // x lies in the gaps of the table
  static constexpr int kXPitch = kGaps ? 256 : 128;                // of a block of x
  static constexpr int kBlockBytes = kBlock / 8 * kBits, kRowBytes = kStreamBlocks * kBlockBytes;
  static constexpr int kPieces = kRowBytes / 16;
  static constexpr int kPitch = kBits == 4 ? kRowBytes : kRowBytes + 16;
  static constexpr int kScales = kLinearRows * kPitch;                        // [scale, tau][row][block]: codes
  static constexpr int kFactors = kScales + 2 * kLinearRows * kStreamBlocks;  // [scale, tau][row][half]: of groups
  static constexpr int kStage = kFactors + 2 * kLinearRows * 2 * 4;
};

// Bytes from kTableAddress on.
struct StreamMemory {
  int x_pitch;  // of a block of x
  int map, x, block_sums, u_parts, u, partial, slots, stages, total;
};
constexpr int stream_align(int bytes) { return (bytes + 15) / 16 * 16; }

}  // namespace irq
