// What:   dA of every adapter of a group under its own dropout mask, without a masked copy of x.
// Math:   da_m = beta da_m + s sum_n du_m[n] (mask_m[n] x[n])^T, F32 sums, s = 1 / (1 - p) after the sum.
// Shapes: da (R, h) M, du (N, R), x (N, h) S; bf16 with rows of x and du aligned to 16 bytes, h and the rank multiples of 8;
//         all else in lora_dropout_simple.cu.
// Cost:   x once from DRAM (2 N h bytes) and once per adapter from L2, du once per 256 features, N h / 8 bytes of mask bits an
//         adapter; partial sums of S row ranges, 8 S R h bytes through L2; 2 N h R FLOPs. N = 8192: (h = 4096, R = 192) about
//         310 MB through L2, 115 us measured on sm_90 (46 by lora_dropout_da_sm90.cu); (4096, 64) 43 us; (11008, 64) 100 us.
// Tricky: the sum runs over rows, so mma wants two rows in a register where mask bits and loads cover features of one. A
//         lane takes four rows of one chunk, masks them, and swaps halves: its eight registers per pair of rows are column g
//         of eight result tiles (feature 8 g + f in tile f). Rows are permuted the same way for du, by ldmatrix addresses.
//         Row ranges are summed in order by a second kernel: the same bits every time.
#include "kernels/dependent_launch.cuh"
#include "kernels/kernel_choice.h"
#include "kernels/lora_dropout_da.cuh"

namespace irq {

using namespace lora_da;

namespace {

constexpr int64_t kPartialBytes = int64_t{48} << 20;

// What a quarter of a warp reads of du at once (ldmatrix), the rows 4 i and 4 i + 1 of one chunk, lies in different banks.
__device__ __forceinline__ int du_byte(int row, int chunk) {
  return kRows * kChunks * 16 + (row * kRankChunks + (chunk ^ ((row & 1) | (row >> 2 & 3) << 1))) * 16;
}

// Starts copying rows [row, row + kRows) of the block's range; dead ones become zeros.
__device__ __forceinline__ void load_stage(uint32_t stage, const DaArgs& p, const RankSlice& slice,
                                           const uint32_t* live, int64_t first, int row, int feature) {
  const int thread = static_cast<int>(threadIdx.x);
  load_x(stage, p, live, first, row, feature);
  load_words<kRows, kFeatures / 64, kThreads>(stage + kTileBytes, p.mask, slice.adapter, feature / 64, first + row,
                                              p.rows);
  static_assert(kThreads == kRows * kRankChunks, "one chunk of du a thread");
  const int r = thread / kRankChunks, chunk = thread % kRankChunks;
  const bool valid = chunk * 8 < slice.width && live[row + r];
  cp_async_16(stage + du_byte(r, chunk),
              valid ? p.du + (first + row + r) * p.du_stride + slice.column + chunk * 8 : p.du, valid);
}

// acc[m][n]: features 8 g + 2 m and 8 g + 2 m + 1 of the warp's 64 (rows g and g + 8 of mma's result), ranks 8 n + 2 q + {0, 1}.
__device__ __forceinline__ void accumulate(float (&acc)[4][8][4], const unsigned char* stage, uint32_t stage_address,
                                           int row, int chunk, int width) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, q = lane % 4;
  const uint32_t* words =
      reinterpret_cast<const uint32_t*>(stage + kTileBytes) + chunk / 8 * (2 * kRows) + chunk / 4 % 2;
  uint32_t x[4][4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    load_shared_16(x[i], stage + x_byte(row + 4 * q + i, chunk));
    drop_chunk(x[i], chunk_bits(words[2 * (row + 4 * q + i)], chunk % 4));
  }
  uint32_t a[4][4];
  transpose_rows(a, x);
  const int i = lane % 8, du_row = row + i / 2 * 4 + i % 2 + (lane / 8 & 1) * 2;
  // Unrolled without a way out, so that the loads of later ranks run ahead of the products.
  const auto multiply = [&](int n) {
    uint32_t b[4];
    ldmatrix_x4_trans(b, stage_address + du_byte(du_row, 2 * n + lane / 16));
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      mma_m16n8k16(acc[m][2 * n], a[m], b[0], b[1]);
      mma_m16n8k16(acc[m][2 * n + 1], a[m], b[2], b[3]);
    }
  };
  multiply(0), multiply(1);
  if (width > 32) multiply(2), multiply(3);
}

__global__ void __launch_bounds__(kThreads, 1) lora_dropout_da_kernel(DaArgs p) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  uint32_t* live = reinterpret_cast<uint32_t*>(shared_memory + kStages * kStageBytes);
  const int block = static_cast<int>(blockIdx.x);  // the slices of one piece of x side by side: they share it in L2
  const RankSlice& slice = p.slice[block % p.slices];
  const int feature = block / p.slices % p.feature_blocks * kFeatures;
  const int split = block / p.slices / p.feature_blocks;
  const int64_t first = p.first + int64_t{split} * p.rows_per_split;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, g = lane / 4;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, group = warp % kGroups, row = warp / kGroups * 16;

  fill_live_rows(live, first, p.rows_per_split, p.rows, p.mask);
  __syncthreads();
  const uint32_t stages = smem_address(shared_memory);
  const int count = p.rows_per_split / kRows;
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < count) load_stage(stages + s * kStageBytes, p, slice, live, first, s * kRows, feature);
    cp_async_commit();
  }
  const int chunk = group * 8 + g;
  float acc[4][8][4] = {};
  for (int s = 0; s < count; ++s) {
    cp_async_wait<kStages - 2>();
    __syncthreads();  // stage s is there, and every warp has left stage s - 1, whose place the next load takes
    if (const int next = s + kStages - 1; next < count)
      load_stage(stages + next % kStages * kStageBytes, p, slice, live, first, next * kRows, feature);
    cp_async_commit();
    const int at = s % kStages * kStageBytes;
    accumulate(acc, shared_memory + at, stages + at, row, chunk, slice.width);
  }
  cp_async_wait<0>();
  __syncthreads();
  store_da(p, acc, shared_memory, feature, split, slice);
}

// da = beta * da + scale * (sum over the splits, in order).
template <bool kVector>
__global__ void sum_splits_kernel(float* da, int64_t stride, const float* partial, int splits, int64_t ranks,
                                  int64_t cols, float scale, float beta) {
  const int64_t c = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kChunk;
  wait_for_previous_kernel();
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

void CudaBackend::lora_dropout_da(Tensor da, Tensor du, Tensor x, MaskBits masks, double beta) {
  if (da.numel() == 0) return;
  const int64_t most_splits = kPartialBytes / (da.numel() * int64_t{sizeof(float)}), rank = da.rows / masks.count;
  const bool tiles = x.dtype == DType::BF16 && aligned16(x) && aligned16(du) && x.cols % 8 == 0 && x.cols < INT32_MAX &&
                     rank % 8 == 0 && most_splits >= 1 && x.rows > 0 && aligned16(masks.bits);
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
           .mask = mask_args(masks),
           .da = static_cast<float*>(da.data),
           .da_stride = da.stride,
           .beta = static_cast<float>(beta),
           .vector = aligned16(da),
           .splits = 1,
           .paired = false};
  const std::vector<RankSlice> slices = rank_slices(masks, da.rows);
  const RowGrid sums = row_grid(da.rows, x.cols / kChunk);
  const auto add_up = [&](int splits, double old) {
    auto* kernel = aligned16(da) ? &sum_splits_kernel<true> : &sum_splits_kernel<false>;
    launch_early(kernel, sums.grid, sums.block, 0, stream_, static_cast<float*>(da.data), da.stride, p.partial, splits,
                 da.rows, da.cols, p.mask.scale, static_cast<float>(old));
  };
  if (runs_sm90_kernels(properties_.major, properties_.minor)) {
    p.rows = x.rows;
    const int splits = lora_dropout_da_sm90(p, slices, static_cast<int>(most_splits), sm_count(), stream_);
    if (splits > 1) add_up(splits, beta);
    return;
  }
  constexpr int kLiveBytes = kMaxRows * 4;
  allow_shared_bytes(lora_dropout_da_kernel, kStages * kStageBytes + kLiveBytes);
  const int64_t window = most_splits * kMaxRows;  // rows that one launch can take
  for (; p.first < x.rows; p.first += window) {
    p.rows = std::min(x.rows, p.first + window);
    const int64_t blocks = p.feature_blocks * static_cast<int64_t>(slices.size());
    const int splits = best_splits(p.rows - p.first, blocks, da.numel(), sm_count(), most_splits);
    p.rows_per_split = static_cast<int>(ceil_div(ceil_div(p.rows - p.first, splits), kRows) * kRows);
    const int bytes = kStages * kStageBytes + p.rows_per_split * 4;
    for (size_t i = 0; i < slices.size(); i += static_cast<size_t>(p.slices)) {
      p.slices = static_cast<int>(std::min<size_t>(AdapterMasks::kMax, slices.size() - i));
      for (int k = 0; k < p.slices; ++k) p.slice[k] = slices[i + static_cast<size_t>(k)];
      const auto grid = static_cast<unsigned>(p.slices * p.feature_blocks * splits);
      lora_dropout_da_kernel<<<grid, kThreads, bytes, stream_>>>(p);
      CUDA_LAUNCHED();
    }
    add_up(splits, p.first == 0 ? beta : 1.0);
  }
}

}  // namespace irq
