// What the two kernels of lora_dropout_da share: tiles, the masked rows of x as mma's left operand, and the results' way out.
#pragma once
#include "kernels/lora_dropout.cuh"

namespace irq {
namespace lora_da {

constexpr int kGroups = 4, kSplit = 2;  // warps: 64 features each, every second 16 rows of a stage
constexpr int kThreads = kGroups * kSplit * kWarp;
constexpr int kFeatures = 64 * kGroups, kRows = 16 * kSplit, kStages = 4;
constexpr int kChunks = kFeatures / 8, kRankChunks = kSliceRanks / 8;
constexpr int kTileBytes = kRows * (kChunks + kRankChunks) * 16;        // x, then du
constexpr int kStageBytes = kTileBytes + kRows * (kFeatures / 64) * 8;  // then the words of the masks
constexpr int kMaxRows = 2048;  // of a block's range: their table is in shared memory

struct DaArgs {
  float* partial;  // (splits, ranks, cols)
  const __nv_bfloat16 *x, *du;
  int64_t x_stride, du_stride, first, rows;  // rows of this launch: [first, rows)
  int cols, ranks, rows_per_split, feature_blocks, slices;
  RankSlice slice[AdapterMasks::kMax];
  MaskArgs mask;
  // lora_dropout_da_sm90.cu writes da itself where one block, or a pair, has all the rows.
  float* da;
  int64_t da_stride;
  float beta;
  bool vector;  // 16 bytes of da at once
  int splits;
  bool paired;  // each two of the splits add up first
};

// Chunks of x are placed so that what a quarter of a warp reads at once, the rows 4 q + i and two neighbouring chunks, lies in
// different banks.
__device__ __forceinline__ int x_byte(int row, int chunk) {
  return (row * kChunks + (chunk ^ (row >> 2 & 3) << 1)) * 16;
}

// Starts copying rows [row, row + kRows) of the block's range of x; dead ones become zeros.
__device__ __forceinline__ void load_x(uint32_t stage, const DaArgs& p, const uint32_t* live, int64_t first, int row,
                                       int feature) {
  const int thread = static_cast<int>(threadIdx.x), chunk = thread % kChunks, c = feature + chunk * 8;
#pragma unroll
  for (int i = 0; i < kRows; i += kThreads / kChunks) {
    const int r = thread / kChunks + i;
    const bool valid = c < p.cols && live[row + r];
    cp_async_16(stage + x_byte(r, chunk), valid ? p.x + (first + row + r) * p.x_stride + c : p.x, valid);
  }
}

__device__ __forceinline__ uint32_t low_halves(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x5410); }
__device__ __forceinline__ uint32_t high_halves(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x7632); }

// a: four tiles of 16 features; tile m has features 8 g + 2 m and 8 g + 2 m + 1 of the warp's 64 as rows g and g + 8, and
// the lane's rows of x, 4 q + i, as terms 2 q, 2 q + 1, 2 q + 8, 2 q + 9.
__device__ __forceinline__ void transpose_rows(uint32_t (&a)[4][4], const uint32_t (&x)[4][4]) {
#pragma unroll
  for (int m = 0; m < 4; ++m) {
    a[m][0] = low_halves(x[0][m], x[1][m]), a[m][1] = high_halves(x[0][m], x[1][m]);
    a[m][2] = low_halves(x[2][m], x[3][m]), a[m][3] = high_halves(x[2][m], x[3][m]);
  }
}

// Adds the two halves of the rows and writes the block's sums to p.partial.
// acc[m][n]: features 8 g + 2 m and 8 g + 2 m + 1 of the warp's 64 (rows g and g + 8 of mma's result), ranks 8 n + 2 q + {0, 1}.
__device__ __forceinline__ void store_da(const DaArgs& p, float (&acc)[4][8][4], unsigned char* shared_memory,
                                         int feature, int split, const RankSlice& slice) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, g = lane / 4, q = lane % 4;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, group = warp % kGroups, row = warp / kGroups * 16;
  float* exchange = reinterpret_cast<float*>(shared_memory) + group * 128 * kWarp + lane;  // in the stages' place
  static_assert(kSplit == 2 && kGroups * 128 * kWarp * 4 <= kStages * kStageBytes,
                "one partial result per group of features");
  if (row > 0) {
#pragma unroll
    for (int i = 0; i < 128; ++i) exchange[i * kWarp] = acc[i / 32][i / 4 % 8][i % 4];
  }
  __syncthreads();
  if (row > 0) return;
#pragma unroll
  for (int i = 0; i < 128; ++i) acc[i / 32][i / 4 % 8][i % 4] += exchange[i * kWarp];
  const int c = feature + (group * 8 + g) * 8;
  if (c >= p.cols) return;
#pragma unroll
  for (int n = 0; n < 8; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int j = n * 8 + 2 * q + e;
      if (j >= slice.width) continue;
      float* out = p.partial + (int64_t{split} * p.ranks + slice.column + j) * p.cols + c;
#pragma unroll
      for (int m = 0; m < 4; m += 2)
        *reinterpret_cast<float4*>(out + 2 * m) =
            make_float4(acc[m][n][e], acc[m][n][2 + e], acc[m + 1][n][e], acc[m + 1][n][2 + e]);
    }
}

}  // namespace lora_da

// lora_dropout_da_sm90.cu, on compute capability 9.0. Returns how many sums it has left in p.partial, 1 if da is done.
int lora_dropout_da_sm90(lora_da::DaArgs p, const std::vector<RankSlice>& slices, int most_splits, int sm_count,
                         cudaStream_t stream);

}  // namespace irq
