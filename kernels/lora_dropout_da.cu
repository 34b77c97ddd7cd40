// What:   dA of every adapter of a group under its own dropout mask, without a masked copy of x.
// Math:   da_m = beta da_m + s sum_n du_m[n] (mask_m[n] x[n])^T, F32 sums, s = 1 / (1 - p) after the sum.
// Shapes: da (R, h) M, du (N, R), x (N, h) S; bf16 with rows of x and du aligned to 16 bytes, h and the rank multiples of 8;
//         all else in lora_dropout_simple.cu.
// Cost:   x once from DRAM (2 N h bytes) and once per adapter from L2, du once per 256 features; partial sums of S row
//         ranges, 8 S R h bytes through L2; one Philox call of about 65 instructions per 8 elements and adapter; 2 N h R
//         FLOPs. N = 8192: (h = 4096, R = 192) 12.6 M calls, about 55 us; (4096, 64) 27 us; (11008, 64) 72 us with their
//         second stage. Expected, not measured.
// Tricky: the sum runs over rows, so mma wants two rows in a register where a Philox call covers eight features of one. A
//         lane takes four rows of one chunk, masks them, and swaps halves: its eight registers per pair of rows are column g
//         of eight result tiles (feature 8 g + f in tile f). Rows are permuted the same way for du, by ldmatrix addresses.
//         Row ranges are summed in order by a second kernel: the same bits every time.
#include "kernels/lora_dropout.cuh"

namespace irq {
namespace {

constexpr int kGroups = 4, kSplit = 2;  // warps: 64 features each, every second 16 rows of a stage
constexpr int kThreads = kGroups * kSplit * kWarp;
constexpr int kFeatures = 64 * kGroups, kRows = 16 * kSplit, kStages = 4;
constexpr int kChunks = kFeatures / 8, kRankChunks = kSliceRanks / 8;
constexpr int kStageBytes = kRows * (kChunks + kRankChunks) * 16;
constexpr int kMaxRows = 2048;  // of a block's range: their table is in shared memory
constexpr int64_t kPartialBytes = int64_t{48} << 20;

struct DaArgs {
  float* partial;  // (splits, ranks, cols)
  const __nv_bfloat16 *x, *du;
  int64_t x_stride, du_stride, first, rows;  // rows of this launch: [first, rows)
  int cols, ranks, rows_per_split, feature_blocks, slices;
  RankSlice slice[AdapterMasks::kMax];
  MaskArgs mask;
};

// Chunks are placed so that what a quarter of a warp reads at once lies in different banks: of x the rows 4 q + i and two
// neighbouring chunks, of du (ldmatrix) the rows 4 i and 4 i + 1 of one chunk.
__device__ __forceinline__ int x_byte(int row, int chunk) {
  return (row * kChunks + (chunk ^ (row >> 2 & 3) << 1)) * 16;
}
__device__ __forceinline__ int du_byte(int row, int chunk) {
  return kRows * kChunks * 16 + (row * kRankChunks + (chunk ^ ((row & 1) | (row >> 2 & 3) << 1))) * 16;
}

// Starts copying rows [row, row + kRows) of the block's range; dead ones become zeros.
__device__ __forceinline__ void load_stage(uint32_t stage, const DaArgs& p, const RankSlice& slice,
                                           const TableRow* table, int64_t first, int row, int feature) {
  const int thread = static_cast<int>(threadIdx.x);
  {
    const int chunk = thread % kChunks, c = feature + chunk * 8;
#pragma unroll
    for (int i = 0; i < kRows; i += kThreads / kChunks) {
      const int r = thread / kChunks + i;
      const bool valid = c < p.cols && table[row + r].live;
      cp_async_16(stage + x_byte(r, chunk), valid ? p.x + (first + row + r) * p.x_stride + c : p.x, valid);
    }
  }
  static_assert(kThreads == kRows * kRankChunks, "one chunk of du a thread");
  const int r = thread / kRankChunks, chunk = thread % kRankChunks;
  const bool valid = chunk * 8 < slice.width && table[row + r].live;
  cp_async_16(stage + du_byte(r, chunk),
              valid ? p.du + (first + row + r) * p.du_stride + slice.column + chunk * 8 : p.du, valid);
}

__device__ __forceinline__ uint32_t low_halves(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x5410); }
__device__ __forceinline__ uint32_t high_halves(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x7632); }

// Masked rows of x as mma's left operand: a[m] holds features 8 g + 2 m and 8 g + 2 m + 1 of the warp's 64 as rows g and g + 8,
// the 16 rows of x as terms.
struct Operand {
  uint32_t a[4][4];
};
__device__ __forceinline__ void transpose_rows(Operand& o, const uint32_t (&x)[4][4]) {
#pragma unroll
  for (int m = 0; m < 4; ++m) {
    o.a[m][0] = low_halves(x[0][m], x[1][m]), o.a[m][1] = high_halves(x[0][m], x[1][m]);
    o.a[m][2] = low_halves(x[2][m], x[3][m]), o.a[m][3] = high_halves(x[2][m], x[3][m]);
  }
}

// Adds the products of one stage while it makes the operand of the next: two independent streams of instructions, one for the
// tensor cores, one for Philox, in one loop without a branch.
// acc[m][n]: features 8 g + 2 m and 8 g + 2 m + 1 (rows g and g + 8 of mma's result), ranks 8 n + 2 q + {0, 1}.
template <int kPairs>
__device__ __forceinline__ void multiply_and_mask(float (&acc)[4][8][4], const Operand& now, Operand& next,
                                                  uint32_t du_stage, const unsigned char* x_stage,
                                                  const TableRow* table, int row, int chunk,
                                                  const DropoutColumn& column, const uint32_t (&seed)[2],
                                                  DropoutThreshold kept) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, q = lane % 4, i = lane % 8;
  const int du_row = row + i / 2 * 4 + i % 2 + (lane / 8 & 1) * 2;
  uint32_t x[4][4], b[kPairs][4];
  DropoutRow rows[4];
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    load_shared_16(x[r], x_stage + x_byte(row + 4 * q + r, chunk));
    rows[r] = table[row + 4 * q + r].mask;
  }
#pragma unroll
  for (int n = 0; n < kPairs; ++n) ldmatrix_x4_trans(b[n], du_stage + du_byte(du_row, 2 * n + lane / 16));
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    drop_chunk(x[r], rows[r], column, seed, kept);
    if (r >= kPairs) continue;
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      mma_m16n8k16(acc[m][2 * r], now.a[m], b[r][0], b[r][1]);
      mma_m16n8k16(acc[m][2 * r + 1], now.a[m], b[r][2], b[r][3]);
    }
  }
  transpose_rows(next, x);
}

// kPairs: of 16 ranks.
template <int kPairs>
__global__ void __launch_bounds__(kThreads, 1) lora_dropout_da_kernel(DaArgs p) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  TableRow* table = reinterpret_cast<TableRow*>(shared_memory + kStages * kStageBytes);
  const int block = static_cast<int>(blockIdx.x);  // the slices of one piece of x side by side: they share it in L2
  const RankSlice& slice = p.slice[block % p.slices];
  const int feature = block / p.slices % p.feature_blocks * kFeatures;
  const int split = block / p.slices / p.feature_blocks;
  const int64_t first = p.first + int64_t{split} * p.rows_per_split;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, g = lane / 4, q = lane % 4;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, group = warp % kGroups, row = warp / kGroups * 16;

  fill_row_table(table, first, p.rows_per_split, p.rows, p.mask);
  __syncthreads();
  const uint32_t stages = smem_address(shared_memory);
  const int count = p.rows_per_split / kRows;
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < count) load_stage(stages + s * kStageBytes, p, slice, table, first, s * kRows, feature);
    cp_async_commit();
  }
  const uint32_t seed[2] = {p.mask.params->seed[0], p.mask.params->seed[1]};
  const int chunk = group * 8 + g;
  const DropoutColumn column = dropout_column(feature + chunk * 8, slice.id, seed);
  float acc[4][8][4] = {};
  Operand operand;
  cp_async_wait<kStages - 2>();
  __syncthreads();
  {
    uint32_t x[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      load_shared_16(x[i], shared_memory + x_byte(row + 4 * q + i, chunk));
      drop_chunk(x[i], table[row + 4 * q + i].mask, column, seed, p.mask.kept);
    }
    transpose_rows(operand, x);
  }
  for (int s = 0; s < count; ++s) {
    cp_async_wait<kStages - 3>();
    __syncthreads();  // stage s + 1 is there, and every warp has left stage s - 1, whose place the next load takes
    if (const int next = s + kStages - 1; next < count)
      load_stage(stages + next % kStages * kStageBytes, p, slice, table, first, next * kRows, feature);
    cp_async_commit();
    const int ahead = min(s + 1, count - 1);  // behind the last stage: made once more, and not used
    Operand next;
    multiply_and_mask<kPairs>(acc, operand, next, stages + s % kStages * kStageBytes,
                              shared_memory + ahead % kStages * kStageBytes, table + ahead * kRows, row, chunk, column,
                              seed, p.mask.kept);
    operand = next;
  }
  cp_async_wait<0>();
  __syncthreads();

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
  const int c = feature + chunk * 8;
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

// da = beta * da + scale * (sum over the splits, in order).
template <bool kVector>
__global__ void sum_splits_kernel(float* da, int64_t stride, const float* partial, int splits, int64_t ranks,
                                  int64_t cols, float scale, float beta) {
  const int64_t c = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kChunk;
  if (c >= cols) return;
  for (int64_t j = int64_t{blockIdx.y} * blockDim.y + threadIdx.y; j < ranks; j += int64_t{gridDim.y} * blockDim.y) {
    float sum[kChunk] = {}, value[kChunk];
#pragma unroll 4
    for (int s = 0; s < splits; ++s) {
      load_chunk<true>(value, partial + (s * ranks + j) * cols + c, kChunk);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) sum[i] += value[i];
    }
    float* out = da + j * stride + c;
    if (beta != 0) load_chunk<kVector>(value, out, kChunk);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) sum[i] = (beta == 0 ? 0.0f : beta * value[i]) + scale * sum[i];
    store_chunk<kVector>(out, sum, kChunk);
  }
}

// Row ranges: many fill the device, few keep the second stage short. Times in cycles of one SM: a block needs about 19 for a
// row, a float takes 8 bytes of the L2's 2300 a cycle on its way through `partial`.
int best_splits(int64_t rows, int64_t blocks, int64_t floats, int sm_count, int64_t limit) {
  double best_time = 0;
  int best = 0;
  for (int64_t s = ceil_div(rows, kMaxRows); s <= limit && s <= ceil_div(rows, kRows); ++s) {
    const auto waves = static_cast<double>(ceil_div(blocks * s, sm_count));
    const double time = waves * static_cast<double>(ceil_div(ceil_div(rows, s), kRows) * kRows) * 19 +
                        static_cast<double>(s * floats) * 8 / 2300;
    if (best == 0 || time < best_time) best = static_cast<int>(s), best_time = time;
  }
  return best;
}

}  // namespace

void CudaBackend::lora_dropout_da(Tensor da, Tensor du, Tensor x, AdapterMasks masks, double beta) {
  if (da.numel() == 0) return;
  const int64_t most_splits = kPartialBytes / (da.numel() * int64_t{sizeof(float)}), rank = da.rows / masks.count;
  const bool tiles = x.dtype == DType::BF16 && aligned16(x) && aligned16(du) && x.cols % 8 == 0 && x.cols < INT32_MAX &&
                     rank % 8 == 0 && most_splits >= 1 && x.rows > 0;
  if (!tiles) return lora_dropout_da_simple(da, du, x, masks, beta, stream_);
  DaArgs p{.partial = static_cast<float*>(workspace(kPartialBytes)),
           .x = static_cast<const __nv_bfloat16*>(x.data),
           .du = static_cast<const __nv_bfloat16*>(du.data),
           .x_stride = x.stride,
           .du_stride = du.stride,
           .first = 0,
           .rows = 0,
           .cols = static_cast<int>(x.cols),
           .ranks = static_cast<int>(da.rows),
           .rows_per_split = 0,
           .feature_blocks = static_cast<int>(ceil_div(x.cols, kFeatures)),
           .slices = 0,
           .slice = {},
           .mask = mask_args(masks)};
  const std::vector<RankSlice> slices = rank_slices(masks, da.rows);
  constexpr int kTableBytes = kMaxRows * static_cast<int>(sizeof(TableRow));
  auto* kernel = rank > 32 ? &lora_dropout_da_kernel<4> : &lora_dropout_da_kernel<2>;
  allow_shared_bytes(kernel, kStages * kStageBytes + kTableBytes);
  const RowGrid sums = row_grid(da.rows, x.cols / kChunk);
  const int64_t window = most_splits * kMaxRows;  // rows that one launch can take
  for (; p.first < x.rows; p.first += window) {
    p.rows = std::min(x.rows, p.first + window);
    const int64_t blocks = p.feature_blocks * static_cast<int64_t>(slices.size());
    const int splits = best_splits(p.rows - p.first, blocks, da.numel(), sm_count(), most_splits);
    p.rows_per_split = static_cast<int>(ceil_div(ceil_div(p.rows - p.first, splits), kRows) * kRows);
    const int bytes = kStages * kStageBytes + p.rows_per_split * static_cast<int>(sizeof(TableRow));
    for (size_t i = 0; i < slices.size(); i += static_cast<size_t>(p.slices)) {
      p.slices = static_cast<int>(std::min<size_t>(AdapterMasks::kMax, slices.size() - i));
      for (int k = 0; k < p.slices; ++k) p.slice[k] = slices[i + static_cast<size_t>(k)];
      kernel<<<static_cast<unsigned>(p.slices * p.feature_blocks * splits), kThreads, bytes, stream_>>>(p);
      CUDA_LAUNCHED();
    }
    auto* sum_kernel = aligned16(da) ? &sum_splits_kernel<true> : &sum_splits_kernel<false>;
    sum_kernel<<<sums.grid, sums.block, 0, stream_>>>(static_cast<float*>(da.data), da.stride, p.partial, splits,
                                                      da.rows, da.cols, p.mask.scale,
                                                      p.first == 0 ? static_cast<float>(beta) : 1.0f);
    CUDA_LAUNCHED();
  }
}

}  // namespace irq
