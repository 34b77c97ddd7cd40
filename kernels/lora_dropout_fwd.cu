// What:   u = the A branch of every adapter of a group under its own dropout mask, plus the pooled branch; one pass over x.
// Math:   px = P x;  u_m = s sum_c mask_m[c] x[c] A_m[:, c] + beta1_m px, F32 sums, s = 1 / (1 - p) after the sum.
// Shapes: u (N, R), x (N, h), a (R, h), px (N, r) S; h a multiple of 8, rows of x and a 16-byte aligned, bf16; all else in
//         lora_dropout_simple.cu.
// Cost:   2 N h bytes and N h / 8 an adapter for the mask bits from DRAM, A once per 64 rows from L2 (2 R h N / 64 bytes), 2 N h R
//         FLOPs. N = 8192: (h = 4096, R = 192) 67 + 13 MB DRAM, 200 MB L2, 111 us measured on sm_90 (48 by
//         lora_dropout_fwd_sm90.cu); (4096, 64) 52 us; (11008, 64) 120 us.
// Tricky: 64 rows a block; a warp owns 32 of them, one adapter and one of kSplit ranges of the features. A lane reads 16
//         bytes of a row (eight features) from shared memory straight into an mma operand: K is permuted,
//         the same way for A. Row sums for px are one more mma, with ones for the columns of slice t in result column t % 8;
//         its result stays in registers while a window of eight slices lasts. More warps hide more latency, which is what
//         binds: 16 of them, or 12 for three adapters, are what the registers allow.
#include <algorithm>

#include "kernels/dependent_launch.cuh"
#include "kernels/kernel_choice.h"
#include "kernels/lora_dropout_fwd.cuh"

namespace irq {

using namespace lora_fwd;

namespace {

constexpr int kRows = 64;
constexpr int kSplitStages = 4;  // at least, of a block whose tile is shared

template <int kAdapters>
struct FwdConfig {
  // Warps that share a result, each with its own range of features.
  static constexpr int kSplit = kAdapters == 1 ? 8 : kAdapters == 2 ? 4 : 2;
  static constexpr int kParts = 2 * kAdapters, kWarps = kParts * kSplit, kThreads = kWarps * kWarp;
  static constexpr int kDepth = 32 * kSplit, kChunks = kDepth / 8;  // features of a stage
  static constexpr int kStages = kAdapters == 1 ? 2 : kAdapters == 2 ? 3 : 4;
  static constexpr int kTileRows = kRows + kAdapters * kSliceRanks;  // x, then the A of each adapter
  static constexpr int kStageBytes = kTileRows * kDepth * 2;
  static constexpr int kPoolPitch = kFusedGroups + kSplit + 1;
  static constexpr int kPoolBytes = kRows * kPoolPitch * 4;
  static constexpr int kSharedBytes = kStages * kStageBytes + kPoolBytes;
  static_assert(kSplit * kParts * 64 * kWarp * 4 <= kStages * kStageBytes, "results take the stages' place");
  static_assert(kSharedBytes <= 163 * 1024, "what a block of an sm_80 may have");
};

// Byte of a 16-byte chunk in a tile of rows of kChunks chunks: lanes of two neighbouring rows and four chunks meet no bank twice.
template <int kChunks>
__device__ __forceinline__ int tile_byte(int row, int chunk) {
  return (row * kChunks + (chunk ^ ((row & 1) << 2))) * 16;
}

// A thread's share of every stage: the same chunk of some rows of x and of A, kStep rows apart. What does not change from
// stage to stage is worked out once. Range r of the features starts at first_feature + r * range.
template <int kAdapters>
struct StageLoader {
  using Config = FwdConfig<kAdapters>;
  static constexpr int kChunks = Config::kChunks, kStep = Config::kThreads / kChunks;
  static constexpr int kCopies = (Config::kTileRows + kStep - 1) / kStep;
  static_assert(kStep % 2 == 0 && Config::kThreads % kChunks == 0,
                "tile_byte's swizzle is the same for all of a thread's rows");
  const __nv_bfloat16 *x, *a;
  int feature;          // of stage 0
  int offset[kCopies];  // of the row's chunk in x or a; -1: dead row or no rank, zeros

  __device__ StageLoader(const FwdArgs& p, int64_t first, int first_feature, int range)
      : x(p.x + first * p.x_stride), a(p.a) {
    const int chunk = static_cast<int>(threadIdx.x) % kChunks;
    feature = first_feature + chunk / 4 * range + chunk % 4 * 8;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int row = static_cast<int>(threadIdx.x) / kChunks + i * kStep;
      const RankSlice& s = p.slice[min(max(row - kRows, 0) / kSliceRanks, kAdapters - 1)];
      const int j = (row - kRows) % kSliceRanks;
      offset[i] = -1;
      if (row < kRows && first + row < p.rows && p.mask.positions[first + row] >= 0)
        offset[i] = row * static_cast<int>(p.x_stride) + feature;
      if (row >= kRows && row < Config::kTileRows && j < s.width)
        offset[i] = (s.column + j) * static_cast<int>(p.a_stride) + feature;
    }
  }
  // Starts copying stage s; features from `cols` on become zeros.
  __device__ __forceinline__ void load(uint32_t stage, int s, int cols) const {
    const int chunk = static_cast<int>(threadIdx.x) % kChunks, first_row = static_cast<int>(threadIdx.x) / kChunks;
    const bool inside = feature + s * 32 < cols;
    const uint32_t to = stage + tile_byte<kChunks>(first_row, chunk);
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      if ((i + 1) * kStep > Config::kTileRows && first_row + i * kStep >= Config::kTileRows) break;
      const bool valid = inside && offset[i] >= 0;
      const __nv_bfloat16* from = first_row + i * kStep < kRows ? x : a;
      cp_async_16(to + i * kStep * kChunks * 16, valid ? from + offset[i] + s * 32 : from, valid);
    }
  }
};

// Adds the splits and gives out u and px: a warp for a row.
constexpr int kFinishWarps = 4;
template <int kAdapters>
__global__ void __launch_bounds__(kFinishWarps* kWarp) finish_fwd_kernel(FwdArgs p) {
  constexpr int kWidth = kPartialWidth<kAdapters>, kQuads = kWidth / 4;
  __shared__ __align__(16) float sums[kFinishWarps][kWidth];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t row = int64_t{blockIdx.x} * kFinishWarps + threadIdx.x / kWarp;
  float* sum = sums[threadIdx.x / kWarp];
  // What needs no sums comes before the wait.
  constexpr int kPasses = kSliceRanks / kWarp;
  int group[kAdapters][kPasses];
  float beta1[kAdapters];
#pragma unroll
  for (int m = 0; m < kAdapters; ++m) {
    beta1[m] = p.px && p.slice[m].beta1 ? *p.slice[m].beta1 : 0.0f;
#pragma unroll
    for (int i = 0; i < kPasses; ++i)
      group[m][i] = kAdapters * kSliceRanks + p.map.group(min(p.slice[m].first + lane + i * kWarp, p.rank - 1));
  }
  const float inverse = 1 / static_cast<float>(p.map.slice);
  wait_for_previous_kernel();
  if (row >= p.rows) return;
#pragma unroll
  for (int quad = lane; quad < kQuads; quad += kWarp) {
    const float* at = p.partial + row * kWidth + quad * 4;
    float4 total{};
#pragma unroll 4
    for (int s = 0; s < p.splits; ++s) {
      const float4 part = *reinterpret_cast<const float4*>(at + s * p.rows * kWidth);
      total.x += part.x, total.y += part.y, total.z += part.z, total.w += part.w;
    }
    *reinterpret_cast<float4*>(sum + quad * 4) = total;
  }
  __syncwarp();
#pragma unroll
  for (int m = 0; m < kAdapters; ++m)
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const int j = lane + i * kWarp, column = p.slice[m].first + j;
      if (j >= p.slice[m].width) continue;
      float value = p.mask.scale * sum[m * kSliceRanks + j];
      if (beta1[m] != 0)
        value += beta1[m] * (p.pool ? sum[group[m][i]] * inverse : to_f(p.px[row * p.px_stride + column]));
      p.u[row * p.u_stride + p.slice[m].column + j] = from_f<__nv_bfloat16>(value);
    }
  if (p.store_pool)
    for (int j = lane; j < p.rank; j += kWarp)
      p.px[row * p.px_stride + j] = from_f<__nv_bfloat16>(sum[kAdapters * kSliceRanks + p.map.group(j)] * inverse);
}

// Adds what the ranges' warps left in `results` (ranges, parts, 64, 32 lanes), and gives it out: to u, or to p.partial where
// several blocks share the tile. Each warp takes its share of the 64 values of a lane.
template <int kAdapters>
__device__ __forceinline__ void store_results(const FwdArgs& p, const float* results, const float* pooled,
                                              int64_t first, int first_feature, int range) {
  using Config = FwdConfig<kAdapters>;
  constexpr int kWidth = kPartialWidth<kAdapters>, kShare = 64 / Config::kSplit;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, g = lane / 4, q = lane % 4;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, part = warp % Config::kParts, half = part % 2;
  const RankSlice& slice = p.slice[part / 2];
  const float beta1 = slice.beta1 ? *slice.beta1 : 0.0f;
#pragma unroll
  for (int k = 0; k < kShare; k += 2) {
    const int i = warp / Config::kParts * kShare + k;
    const int row = half * 32 + i / 32 * 16 + i / 2 % 2 * 8 + g, j = i / 4 % 8 * 8 + 2 * q;
    float sum[2] = {};
#pragma unroll
    for (int r = 0; r < Config::kSplit; ++r)
#pragma unroll
      for (int e = 0; e < 2; ++e) sum[e] += results[((r * Config::kParts + part) * 64 + i + e) * kWarp + lane];
    if (first + row >= p.rows || j >= slice.width) continue;
    if (p.splits > 1) {
      float* out = p.partial + (int64_t{blockIdx.y} * p.rows + first + row) * kWidth + part / 2 * kSliceRanks + j;
      *reinterpret_cast<float2*>(out) = make_float2(sum[0], sum[1]);
      continue;
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (j + e >= slice.width) continue;
      float value = p.mask.scale * sum[e];
      if (p.px && slice.beta1) {
        const int column = slice.first + j + e;
        const float mean = p.pool ? pooled_sum<Config::kSplit>(pooled + row * Config::kPoolPitch, p.map.group(column),
                                                               first_feature, range, p.map.slice) /
                                        static_cast<float>(p.map.slice)
                                  : to_f(p.px[(first + row) * p.px_stride + column]);
        value += beta1 * mean;
      }
      p.u[(first + row) * p.u_stride + slice.column + j + e] = from_f<__nv_bfloat16>(value);
    }
  }
}

// Writes px, or the block's share of the sums it is made of.
template <int kAdapters>
__device__ __forceinline__ void store_pooled(const FwdArgs& p, const float* pooled, int64_t first, int first_feature,
                                             int range) {
  using Config = FwdConfig<kAdapters>;
  constexpr int kWidth = kPartialWidth<kAdapters>;
  const int width = p.splits > 1 ? p.map.groups : p.store_pool ? p.rank : 0;
  for (int i = static_cast<int>(threadIdx.x); i < kRows * width; i += Config::kThreads) {
    const int row = i / width, j = i - row * width, t = p.splits > 1 ? j : p.map.group(j);
    if (first + row >= p.rows) continue;
    const float sum =
        pooled_sum<Config::kSplit>(pooled + row * Config::kPoolPitch, t, first_feature, range, p.map.slice);
    if (p.splits > 1)
      p.partial[(int64_t{blockIdx.y} * p.rows + first + row) * kWidth + kAdapters * kSliceRanks + t] = sum;
    else p.px[(first + row) * p.px_stride + j] = from_f<__nv_bfloat16>(sum / static_cast<float>(p.map.slice));
  }
}

template <int kAdapters>
__global__ void __launch_bounds__(FwdConfig<kAdapters>::kThreads, 1) lora_dropout_fwd_kernel(FwdArgs p) {
  using Config = FwdConfig<kAdapters>;
  constexpr int kChunks = Config::kChunks, kPitch = Config::kPoolPitch;
  constexpr int kTiles =
      kAdapters == 1 ? 2 : 1;  // of 16 rows that a warp adds up for px: the first two adapters share them
  extern __shared__ __align__(16) unsigned char shared_memory[];
  float* pooled = reinterpret_cast<float*>(shared_memory + Config::kStages * Config::kStageBytes);
  const int64_t first = int64_t{blockIdx.x} * kRows;
  const int first_feature = static_cast<int>(blockIdx.y) * p.features_per_split;
  const int range = p.features_per_split / Config::kSplit;  // of a warp, a multiple of 32
  const int lane = static_cast<int>(threadIdx.x) % kWarp, g = lane / 4, q = lane % 4;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int half = warp % 2, adapter = warp / 2 % kAdapters, split = warp / Config::kParts;
  const int width = p.slice[adapter].width;

  for (int i = static_cast<int>(threadIdx.x); i < kRows * kPitch; i += Config::kThreads) pooled[i] = 0;
  __syncthreads();
  const uint32_t stages = smem_address(shared_memory);
  const StageLoader<kAdapters> loader(p, first, first_feature, range);
  const int count = range / 32;
#pragma unroll
  for (int s = 0; s < Config::kStages - 1; ++s) {
    if (s < count) loader.load(stages + s * Config::kStageBytes, s, p.cols);
    cp_async_commit();
  }
  float acc[2][8][4] = {};
  RowSums<kPitch> row_sums[kTiles];
#pragma unroll
  for (int m = 0; m < kTiles; ++m)
    row_sums[m].sums = pooled + (half * 32 + (kAdapters == 1 ? m : min(adapter, 1)) * 16) * kPitch + split;
  const bool sums = p.pool && adapter < 2;
  const int warp_feature = first_feature + split * range;
  int base = p.slice_of(warp_feature);  // of the window of slices

  // The mask bits of the lane's rows for 32 features.
  const uint32_t* words =
      reinterpret_cast<const uint32_t*>(p.mask.block(p.slice[adapter].adapter, 0)) + 2 * (first + half * 32 + g);
  const auto fetch = [&](uint32_t(&w)[4], int feature) {
    const uint32_t* at = words + int64_t{feature / 64} * (2 * p.mask.pitch) + feature / 32 % 2;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      w[i] = feature < p.cols && first + half * 32 + i * 8 + g < p.rows ? __ldg(at + i * 16) : 0;
  };

  int slot = 0, free_slot = Config::kStages - 1;
  for (int s = 0; s < count; ++s) {
    uint32_t bits[4];
    fetch(bits, warp_feature + s * 32);  // on their way while the stage is waited for
    cp_async_wait<Config::kStages - 2>();
    __syncthreads();  // stage s is there, and every warp has left stage s - 1, whose place the next load takes
    if (s + Config::kStages - 1 < count)
      loader.load(stages + free_slot * Config::kStageBytes, s + Config::kStages - 1, p.cols);
    cp_async_commit();
    const unsigned char* tile = shared_memory + slot * Config::kStageBytes;
    free_slot = slot;
    slot = slot + 1 == Config::kStages ? 0 : slot + 1;

    const int chunk = split * 4 + q, c = warp_feature + s * 32 + q * 8;
    uint32_t x[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) load_shared_16(x[i], tile + tile_byte<kChunks>(half * 32 + i * 8 + g, chunk));
    if (sums) {
      const int last = warp_feature + s * 32 + 31;
      if (p.slice_of(last) >= base + 8) {
#pragma unroll
        for (int m = 0; m < kTiles; ++m) row_sums[m].flush(base, min(p.slice_of(last - 32), p.map.groups - 1));
        base = p.slice_of(last - 31);
      }
      uint32_t ones[4];
      slice_columns(ones, c, p.slice_of);
      if constexpr (kTiles == 2) {
        row_sums[0].add(x[0], x[1], ones), row_sums[1].add(x[2], x[3], ones);
      } else if (adapter == 0) row_sums[0].add(x[0], x[1], ones);
      else row_sums[0].add(x[2], x[3], ones);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) drop_chunk(x[i], chunk_bits(bits[i], q));
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
  if (sums) {
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
      row_sums[m].flush(base, min(p.slice_of(warp_feature + range - 1), p.map.groups - 1));
  }
  cp_async_wait<0>();
  __syncthreads();

  float* results = reinterpret_cast<float*>(shared_memory);  // in the stages' place
#pragma unroll
  for (int i = 0; i < 64; ++i) results[(warp * 64 + i) * kWarp + lane] = acc[i / 32][i / 4 % 8][i % 4];
  __syncthreads();
  if (p.pool) store_pooled<kAdapters>(p, pooled, first, first_feature, range);
  store_results<kAdapters>(p, results, pooled, first, first_feature, range);
}

template <int kAdapters>
void launch(FwdArgs p, bool hopper, int sm_count, cudaStream_t stream) {
  if (hopper) {
    lora_dropout_fwd_sm90(p, sm_count, stream);
  } else {
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
  }
  if (p.splits == 1) return;
  launch_early(&finish_fwd_kernel<kAdapters>, dim3(static_cast<unsigned>(ceil_div(p.rows, kFinishWarps))),
               kFinishWarps * kWarp, 0, stream, p);
}

}  // namespace

void CudaBackend::lora_dropout_fwd(Tensor u, Tensor px, Tensor x, Tensor a, AdapterScalars beta1, MaskBits masks,
                                   bool tile) {
  if (u.numel() == 0) return;
  const int64_t rank = u.cols / masks.count;
  const MaskArgs mask = mask_args(masks);
  const bool tiles = x.dtype == DType::BF16 && aligned16(x) && aligned16(a) && x.cols % 8 == 0 && x.cols > 0 &&
                     x.cols < INT32_MAX / 2 && kRows * x.stride < INT32_MAX && a.rows * a.stride < INT32_MAX &&
                     aligned16(masks.bits);
  const IecMap map(std::max<int64_t>(x.cols, 1), rank, tile);
  // Two features of one register must be of one slice, and the slices of 32 features fewer than eight.
  const bool pool = px && tiles && map.slice % 2 == 0 && map.slice >= 8 && map.groups <= kFusedGroups &&
                    x.cols + 32 * 16 < SliceOf::kMaxFeatures;  // what is computed beyond the row's end counts too
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
            .paired = false,
            .partial = static_cast<float*>(workspace(kPartialBytes)),
            .slice_of = SliceOf(std::max(map.slice, 2)),
            .map = map};
  const std::vector<RankSlice> slices = rank_slices(masks, u.cols, beta1);
  const bool hopper = runs_sm90_kernels(properties_.major, properties_.minor);
  for (size_t i = 0; i < slices.size(); i += static_cast<size_t>(p.slices)) {
    p.slices = static_cast<int>(std::min<size_t>(kMaxSlices, slices.size() - i));
    for (int k = 0; k < p.slices; ++k) p.slice[k] = slices[i + static_cast<size_t>(k)];
    if (p.slices == 1) launch<1>(p, hopper, sm_count(), stream_);
    else if (p.slices == 2) launch<2>(p, hopper, sm_count(), stream_);
    else launch<3>(p, hopper, sm_count(), stream_);
    p.store_pool = false;
  }
}

}  // namespace irq
