// What:   u = the A branch of every adapter of a group under its own dropout mask, plus the pooled branch; one pass over x.
// Math:   px = P x;  u_m = s sum_c mask_m[c] x[c] A_m[:, c] + beta1_m px, F32 sums, s = 1 / (1 - p) after the sum.
// Shapes: u (N, R), x (N, h), a (R, h), px (N, r) S; h a multiple of 8, rows of x and a 16-byte aligned, bf16; all else in
//         lora_dropout_simple.cu.
// Cost:   2 N h bytes from DRAM, A once per 64 rows from L2 (2 R h N / 64 bytes), one Philox call of about 60 instructions
//         per 8 elements and adapter, 2 N h R FLOPs. N = 8192: (h = 4096, R = 192) 67 MB DRAM, 260 MB L2, 12.6 M calls:
//         about 48 us; (4096, 64) 27 us; (11008, 64) 180 MB: 70 us. Expected, not measured.
// Tricky: 64 rows a block; a warp owns 32 of them, one adapter and every kSplit-th 32 features. A lane reads 16 bytes of a
//         row (eight features = one Philox call) from shared memory straight into an mma operand: K is permuted, the same
//         way for A. Row sums for px are one more mma, with ones for the columns of slice t in result column t % 8.
#include <algorithm>

#include "kernels/iec.h"
#include "kernels/lora_dropout.cuh"

namespace irq {
namespace {

constexpr int kRows = 64;
constexpr int kMaxSlices = 3;
constexpr int kFusedGroups = 64;  // of px in shared memory
constexpr int kSplitStages = 4;   // at least, of a block whose tile is shared
constexpr int64_t kPartialBytes = int64_t{48} << 20;

struct FwdArgs {
  __nv_bfloat16 *u, *px;
  const __nv_bfloat16 *x, *a;
  int64_t u_stride, px_stride, x_stride, a_stride, rows;
  int cols, slices;
  RankSlice slice[kMaxSlices];
  MaskArgs mask;
  bool pool;        // px is computed here; else it is read, if there is one
  bool store_pool;  // by this launch
  int rank;         // columns of px
  // Few rows leave multiprocessors idle: then `splits` blocks share a tile of rows, each with its own features, and leave
  // their sums in partial (splits, rows, kAdapters * 64 + kFusedGroups) for a second kernel.
  int splits, features_per_split;
  float* partial;
  float inv_slice;
  IecMap map;
};

template <int kAdapters>
struct FwdConfig {
  static constexpr int kSplit = kAdapters == 1 ? 4 : 2;  // warps that share a result, each with its own features
  static constexpr int kWarps = 2 * kAdapters * kSplit, kThreads = kWarps * kWarp;
  static constexpr int kDepth = 32 * kSplit, kChunks = kDepth / 8;  // features of a stage
  static constexpr int kStages = kAdapters == 1 ? 3 : 4;
  static constexpr int kTileRows = kRows + kAdapters * kSliceRanks;  // x, then the A of each adapter
  static constexpr int kStageBytes = kTileRows * kDepth * 2;
  static constexpr int kPoolPitch = kFusedGroups + 1;
  static constexpr int kTableBytes = kRows * static_cast<int>(sizeof(TableRow));
  static constexpr int kPoolBytes = kSplit * kRows * kPoolPitch * 4;
  static constexpr int kSharedBytes = kStages * kStageBytes + kTableBytes + kPoolBytes;
  static_assert((kSplit - 1) * 2 * kAdapters * 64 * kWarp * 4 <= kStages * kStageBytes,
                "partial results take the stages' place");
};

// Byte of a 16-byte chunk in a tile of rows of kChunks chunks: lanes of two neighbouring rows and four chunks meet no bank twice.
template <int kChunks>
__device__ __forceinline__ int tile_byte(int row, int chunk) {
  return (row * kChunks + (chunk ^ ((row & 1) << 2))) * 16;
}

// A thread's share of every stage: the same chunk of some rows of x and of A, kStep rows apart. What does not change from
// stage to stage is worked out once.
template <int kAdapters>
struct StageLoader {
  using Config = FwdConfig<kAdapters>;
  static constexpr int kChunks = Config::kChunks, kStep = Config::kThreads / kChunks;
  static constexpr int kCopies = (Config::kTileRows + kStep - 1) / kStep;
  static_assert(kStep % 2 == 0 && Config::kThreads % kChunks == 0,
                "tile_byte's swizzle is the same for all of a thread's rows");
  const __nv_bfloat16 *x, *a;
  int offset[kCopies];  // of the row's chunk in x or a; -1: dead row or no rank, zeros

  __device__ StageLoader(const FwdArgs& p, const TableRow* table, int64_t first) : x(p.x + first * p.x_stride), a(p.a) {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int row = static_cast<int>(threadIdx.x) / kChunks + i * kStep,
                chunk = static_cast<int>(threadIdx.x) % kChunks;
      const RankSlice& s = p.slice[min(max(row - kRows, 0) / kSliceRanks, kAdapters - 1)];
      const int j = (row - kRows) % kSliceRanks;
      offset[i] = -1;
      if (row < kRows && table[row].live) offset[i] = row * static_cast<int>(p.x_stride) + chunk * 8;
      if (row >= kRows && row < Config::kTileRows && j < s.width)
        offset[i] = (s.column + j) * static_cast<int>(p.a_stride) + chunk * 8;
    }
  }
  // Starts copying features [k, k + kDepth); those from `cols` on become zeros.
  __device__ __forceinline__ void load(uint32_t stage, int k, int cols) const {
    const int chunk = static_cast<int>(threadIdx.x) % kChunks, first_row = static_cast<int>(threadIdx.x) / kChunks;
    const bool inside = k + chunk * 8 < cols;
    const uint32_t to = stage + tile_byte<kChunks>(first_row, chunk);
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      if ((i + 1) * kStep > Config::kTileRows && first_row + i * kStep >= Config::kTileRows) break;
      const bool valid = inside && offset[i] >= 0;
      const __nv_bfloat16* from = first_row + i * kStep < kRows ? x : a;
      cp_async_16(to + i * kStep * kChunks * 16, valid ? from + offset[i] + k : from, valid);
    }
  }
};

// Adds the sums of x over the slices that features [c, c + 8) of the four lanes of a row belong to: x holds 16 rows.
// sums (16 rows, groups) is this warp's own.
__device__ __forceinline__ void add_row_sums(float* sums, int pitch, const uint32_t (&low)[4],
                                             const uint32_t (&high)[4], int c, const FwdArgs& p) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, g = lane / 4, q = lane % 4;
  const auto slice_of = [&](int feature) {  // exact below 2^21 features
    return min(static_cast<int>((static_cast<float>(feature) + 0.5f) * p.inv_slice), p.map.groups - 1);
  };
  uint32_t ones[4];  // in result column g: the features of a slice t with t % 8 = g
#pragma unroll
  for (int w = 0; w < 4; ++w) ones[w] = (slice_of(c + 2 * w) & 7) == g ? 0x3f803f80u : 0u;
  float sum[4] = {};
  mma_m16n8k16(sum, {low[0], high[0], low[1], high[1]}, ones[0], ones[1]);
  mma_m16n8k16(sum, {low[2], high[2], low[3], high[3]}, ones[2], ones[3]);
  const int begin = slice_of(c - q * 8), end = slice_of(c - q * 8 + 31);
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int t = begin + ((2 * q + e - begin) & 7);
    if (t > end) continue;
    sums[g * pitch + t] += sum[e];
    sums[(g + 8) * pitch + t] += sum[2 + e];
  }
}

// Leaves the block's share of the sums behind; `partial` and `pooled` hold those of its warps.
template <int kAdapters>
__device__ __forceinline__ void store_partial(const FwdArgs& p, float (&acc)[2][8][4], const float* partial,
                                              const float* pooled, int64_t first) {
  using Config = FwdConfig<kAdapters>;
  constexpr int kWidth = kAdapters * kSliceRanks + kFusedGroups;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, g = lane / 4, q = lane % 4;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, half = warp % 2, adapter = warp / 2 % kAdapters;
  float* out = p.partial + int64_t{blockIdx.y} * p.rows * kWidth;
  if (p.pool)
    for (int i = static_cast<int>(threadIdx.x); i < kRows * p.map.groups; i += Config::kThreads) {
      const int row = i / p.map.groups, t = i - row * p.map.groups;
      if (first + row < p.rows)
        out[(first + row) * kWidth + kAdapters * kSliceRanks + t] = pooled[row * Config::kPoolPitch + t];
    }
  if (warp >= 2 * kAdapters) return;
#pragma unroll
  for (int i = 0; i < 64; i += 2) {
    const int row = half * 32 + i / 32 * 16 + i / 2 % 2 * 8 + g, j = i / 4 % 8 * 8 + 2 * q;
    if (first + row >= p.rows || j >= p.slice[adapter].width) continue;
    float sum[2] = {acc[i / 32][i / 4 % 8][i % 4], acc[i / 32][i / 4 % 8][i % 4 + 1]};
#pragma unroll
    for (int s = 1; s < Config::kSplit; ++s)
#pragma unroll
      for (int e = 0; e < 2; ++e) sum[e] += partial[((s - 1) * 2 * kAdapters * 64 + i + e) * kWarp];
    *reinterpret_cast<float2*>(out + (first + row) * kWidth + adapter * kSliceRanks + j) = make_float2(sum[0], sum[1]);
  }
}

// Adds the splits in order. Grid: rows. Block: any number of threads.
template <int kAdapters>
__global__ void finish_fwd_kernel(FwdArgs p) {
  constexpr int kWidth = kAdapters * kSliceRanks + kFusedGroups;
  const int64_t row = blockIdx.x;
  const float* sums = p.partial + row * kWidth;
  const auto total = [&](int column) {
    float sum = 0;
    for (int s = 0; s < p.splits; ++s) sum += sums[s * p.rows * kWidth + column];
    return sum;
  };
  const auto mean = [&](int column) {
    return total(kAdapters * kSliceRanks + p.map.group(column)) / static_cast<float>(p.map.slice);
  };
  for (int i = static_cast<int>(threadIdx.x); i < kAdapters * kSliceRanks; i += static_cast<int>(blockDim.x)) {
    const RankSlice& slice = p.slice[i / kSliceRanks];
    const int j = i % kSliceRanks, column = slice.first + j;
    if (j >= slice.width) continue;
    float value = p.mask.scale * total(i);
    if (p.px && slice.beta1) value += *slice.beta1 * (p.pool ? mean(column) : to_f(p.px[row * p.px_stride + column]));
    p.u[row * p.u_stride + slice.column + j] = from_f<__nv_bfloat16>(value);
  }
  if (p.store_pool)
    for (int j = static_cast<int>(threadIdx.x); j < p.rank; j += static_cast<int>(blockDim.x))
      p.px[row * p.px_stride + j] = from_f<__nv_bfloat16>(mean(j));
}

template <int kAdapters>
__global__ void __launch_bounds__(FwdConfig<kAdapters>::kThreads, 1) lora_dropout_fwd_kernel(FwdArgs p) {
  using Config = FwdConfig<kAdapters>;
  constexpr int kChunks = Config::kChunks, kSplit = Config::kSplit, kPitch = Config::kPoolPitch;
  extern __shared__ __align__(16) unsigned char shared_memory[];
  TableRow* table = reinterpret_cast<TableRow*>(shared_memory + Config::kStages * Config::kStageBytes);
  float* pooled = reinterpret_cast<float*>(shared_memory + Config::kStages * Config::kStageBytes + Config::kTableBytes);
  const int64_t first = int64_t{blockIdx.x} * kRows;
  const int first_feature = static_cast<int>(blockIdx.y) * p.features_per_split;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, g = lane / 4, q = lane % 4;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int half = warp % 2, adapter = warp / 2 % kAdapters, split = warp / (2 * kAdapters);
  const int id = p.slice[adapter].id, width = p.slice[adapter].width;

  fill_row_table(table, first, kRows, p.rows, p.mask);
  for (int i = static_cast<int>(threadIdx.x); i < kSplit * kRows * kPitch; i += Config::kThreads) pooled[i] = 0;
  __syncthreads();
  const uint32_t stages = smem_address(shared_memory);
  const StageLoader<kAdapters> loader(p, table, first);
  const int count = (min(p.cols - first_feature, p.features_per_split) + Config::kDepth - 1) / Config::kDepth;
#pragma unroll
  for (int s = 0; s < Config::kStages - 1; ++s) {
    if (s < count) loader.load(stages + s * Config::kStageBytes, first_feature + s * Config::kDepth, p.cols);
    cp_async_commit();
  }
  const uint32_t seed[2] = {p.mask.params->seed[0], p.mask.params->seed[1]};
  DropoutRow rows[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) rows[i] = table[half * 32 + i * 8 + g].mask;
  float acc[2][8][4] = {};

  int slot = 0, free_slot = Config::kStages - 1;
  for (int s = 0; s < count; ++s) {
    cp_async_wait<Config::kStages - 2>();
    __syncthreads();  // stage s is there, and every warp has left stage s - 1, whose place the next load takes
    if (s + Config::kStages - 1 < count)
      loader.load(stages + free_slot * Config::kStageBytes, first_feature + (s + Config::kStages - 1) * Config::kDepth,
                  p.cols);
    cp_async_commit();
    const unsigned char* tile = shared_memory + slot * Config::kStageBytes;
    free_slot = slot;
    slot = slot + 1 == Config::kStages ? 0 : slot + 1;

    const int chunk = split * 4 + q, c = first_feature + s * Config::kDepth + chunk * 8;
    uint32_t x[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) load_shared_16(x[i], tile + tile_byte<kChunks>(half * 32 + i * 8 + g, chunk));
    if (p.pool) {
#pragma unroll
      for (int m = 0; m < 2; ++m)
        if (m % kAdapters == adapter)
          add_row_sums(pooled + (split * kRows + half * 32 + m * 16) * kPitch, kPitch, x[2 * m], x[2 * m + 1], c, p);
    }
    const DropoutColumn column = dropout_column(c, id, seed);
#pragma unroll
    for (int i = 0; i < 4; ++i) drop_chunk(x[i], rows[i], column, seed, p.mask.kept);
    // Unrolled without a way out, so that the loads of later ranks run ahead of the products.
    const auto multiply = [&](int n) {
      uint32_t b[4];
      load_shared_16(b, tile + tile_byte<kChunks>(kRows + adapter * kSliceRanks + n * 8 + g, chunk));
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        mma_m16n8k16(acc[m][n], {x[2 * m][0], x[2 * m + 1][0], x[2 * m][1], x[2 * m + 1][1]}, b[0], b[1]);
        mma_m16n8k16(acc[m][n], {x[2 * m][2], x[2 * m + 1][2], x[2 * m][3], x[2 * m + 1][3]}, b[2], b[3]);
      }
    };
#pragma unroll
    for (int n = 0; n < 4; ++n) multiply(n);
    if (width > 32) {
#pragma unroll
      for (int n = 4; n < 8; ++n) multiply(n);
    }
  }
  cp_async_wait<0>();
  __syncthreads();

  // The splits meet: acc in the stages' place, the row sums in the first split's.
  float* partial = reinterpret_cast<float*>(shared_memory) + warp % (2 * kAdapters) * 64 * kWarp + lane;
  if (split > 0) {
    float* mine = partial + (split - 1) * 2 * kAdapters * 64 * kWarp;
#pragma unroll
    for (int i = 0; i < 64; ++i) mine[i * kWarp] = acc[i / 32][i / 4 % 8][i % 4];
  }
  if (p.pool)
    for (int i = static_cast<int>(threadIdx.x); i < kRows * kPitch; i += Config::kThreads) {
      float sum = pooled[i];
#pragma unroll
      for (int s = 1; s < kSplit; ++s) sum += pooled[s * kRows * kPitch + i];
      pooled[i] = p.splits > 1 ? sum : sum / static_cast<float>(p.map.slice);
    }
  __syncthreads();
  if (p.splits > 1) return store_partial<kAdapters>(p, acc, partial, pooled, first);
  if (p.store_pool)
    for (int i = static_cast<int>(threadIdx.x); i < kRows * p.rank; i += Config::kThreads) {
      const int row = i / p.rank, j = i - row * p.rank;
      if (first + row < p.rows)
        p.px[(first + row) * p.px_stride + j] = from_f<__nv_bfloat16>(pooled[row * kPitch + p.map.group(j)]);
    }
  if (split > 0) return;
#pragma unroll
  for (int s = 1; s < kSplit; ++s)
#pragma unroll
    for (int i = 0; i < 64; ++i) acc[i / 32][i / 4 % 8][i % 4] += partial[((s - 1) * 2 * kAdapters * 64 + i) * kWarp];
  const RankSlice& slice = p.slice[adapter];
  const float beta1 = slice.beta1 ? *slice.beta1 : 0.0f;
#pragma unroll
  for (int i = 0; i < 64; ++i) {
    const int row = half * 32 + i / 32 * 16 + i / 2 % 2 * 8 + g, j = i / 4 % 8 * 8 + 2 * q + i % 2;
    if (first + row >= p.rows || j >= width) continue;
    float value = p.mask.scale * acc[i / 32][i / 4 % 8][i % 4];
    if (p.px && slice.beta1) {
      const int column = slice.first + j;
      const float mean =
          p.pool ? pooled[row * kPitch + p.map.group(column)] : to_f(p.px[(first + row) * p.px_stride + column]);
      value += beta1 * mean;
    }
    p.u[(first + row) * p.u_stride + slice.column + j] = from_f<__nv_bfloat16>(value);
  }
}

template <int kAdapters>
void launch(FwdArgs p, int sm_count, cudaStream_t stream) {
  using Config = FwdConfig<kAdapters>;
  allow_shared_bytes(lora_dropout_fwd_kernel<kAdapters>, Config::kSharedBytes);
  // A block has a multiprocessor to itself: as many splits as there are multiprocessors for, each worth its start.
  const int64_t tiles = ceil_div(p.rows, kRows), stages = ceil_div(p.cols, Config::kDepth);
  const int64_t splits = std::clamp<int64_t>(sm_count / tiles, 1, std::max<int64_t>(stages / kSplitStages, 1));
  p.features_per_split = static_cast<int>(ceil_div(stages, splits)) * Config::kDepth;
  p.splits = static_cast<int>(ceil_div(p.cols, p.features_per_split));
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(p.splits));
  lora_dropout_fwd_kernel<kAdapters><<<grid, Config::kThreads, Config::kSharedBytes, stream>>>(p);
  CUDA_LAUNCHED();
  if (p.splits == 1) return;
  finish_fwd_kernel<kAdapters><<<static_cast<unsigned>(p.rows), kAdapters * kSliceRanks, 0, stream>>>(p);
  CUDA_LAUNCHED();
}

}  // namespace

void CudaBackend::lora_dropout_fwd(Tensor u, Tensor px, Tensor x, Tensor a, AdapterScalars beta1, AdapterMasks masks,
                                   bool tile) {
  if (u.numel() == 0) return;
  const int64_t rank = u.cols / masks.count;
  const MaskArgs mask = mask_args(masks);
  const bool tiles = x.dtype == DType::BF16 && aligned16(x) && aligned16(a) && x.cols % 8 == 0 && x.cols > 0 &&
                     x.cols < (1 << 21) && kRows * x.stride < INT32_MAX && a.rows * a.stride < INT32_MAX;
  const IecMap map(std::max<int64_t>(x.cols, 1), rank, tile);
  // Two features of one register must be of one slice, and the slices of 32 features fewer than eight.
  const bool pool = px && tiles && map.slice % 2 == 0 && map.slice >= 8 && map.groups <= kFusedGroups;
  if (px && !pool) lora_pool_simple(px, x, mask, tile, stream_);
  if (!tiles) return lora_dropout_fwd_simple(u, px, x, a, beta1, masks, stream_);
  FwdArgs p{.u = static_cast<__nv_bfloat16*>(u.data),
            .px = static_cast<__nv_bfloat16*>(px.data),
            .x = static_cast<const __nv_bfloat16*>(x.data),
            .a = static_cast<const __nv_bfloat16*>(a.data),
            .u_stride = u.stride,
            .px_stride = px.stride,
            .x_stride = x.stride,
            .a_stride = a.stride,
            .rows = x.rows,
            .cols = static_cast<int>(x.cols),
            .slices = 0,
            .slice = {},
            .mask = mask,
            .pool = pool,
            .store_pool = pool,
            .rank = static_cast<int>(rank),
            .splits = 1,
            .features_per_split = static_cast<int>(x.cols),
            .partial = static_cast<float*>(workspace(kPartialBytes)),
            .inv_slice = 1.0f / static_cast<float>(map.slice),
            .map = map};
  const std::vector<RankSlice> slices = rank_slices(masks, u.cols, beta1);
  for (size_t i = 0; i < slices.size(); i += static_cast<size_t>(p.slices)) {
    p.slices = static_cast<int>(std::min<size_t>(kMaxSlices, slices.size() - i));
    for (int k = 0; k < p.slices; ++k) p.slice[k] = slices[i + static_cast<size_t>(k)];
    if (p.slices == 1) launch<1>(p, sm_count(), stream_);
    else if (p.slices == 2) launch<2>(p, sm_count(), stream_);
    else launch<3>(p, sm_count(), stream_);
    p.store_pool = false;
  }
}

}  // namespace irq
