// What:   lora_dropout_fwd.cu on the warpgroup products of sm_90a.
// Math:   px = P x;  u_m = s sum_c mask_m[c] x[c] A_m[:, c] + beta1_m px, F32 sums, s = 1 / (1 - p) after the sum.
// Shapes: as there.
// Cost:   x and the masks once from DRAM, A once per 128 rows from L2. N = 8192, (h = 4096, R = 192): 67 + 13 MB and 100 MB, the
//         partial sums of two splits 34 MB: 45 us expected, 86 measured; (4096, 64) 28 and 50; (4096, 128) 36 and 64;
//         (11008, 64) 75 and 95 us.
// Tricky: x goes through registers, where an adapter's mask is three instructions for two elements: one shift, one byte
//         permutation, one "and". Those registers are the products' left operand, A stays in shared memory. Every adapter has
//         its own masked registers, so that one is masked while the products of the ones before run. Row sums for px are one more
//         product, with ones for the columns of slice t in result column t % 8.
#include "kernels/lora_dropout_fwd.cuh"
#include "kernels/sm90.cuh"

namespace irq {

using namespace lora_fwd;

namespace {

constexpr int kGroups = 2, kThreads = 128 * kGroups, kRows = 64 * kGroups;  // a warpgroup for 64 rows
constexpr int kDepth = 64, kPanelBytes = 64 * 128;                          // features of a stage

template <int kAdapters>
struct Config {
  static constexpr int kStages = 7 - kAdapters;
  static constexpr int kXBytes = kGroups * kPanelBytes, kWordBytes = kRows * 8;  // of one adapter's masks
  static constexpr int kStageBytes = kXBytes + kAdapters * (kPanelBytes + kWordBytes);
  static constexpr int kPitch = kFusedGroups + 1, kPooledBytes = kRows * kPitch * 4;
  static constexpr int kBytes = 1024 + kStages * kStageBytes + kPooledBytes;
  static_assert(kStageBytes % 1024 == 0 && kBytes <= 227 * 1024);
};

// A thread's share of every stage: one chunk of four rows of x and of two of each A, 32 rows apart.
template <int kAdapters>
struct StageLoader {
  using C = Config<kAdapters>;
  const FwdArgs& p;
  const __nv_bfloat16 *x, *a;
  int64_t first;
  int feature;  // of stage 0
  bool live[4];

  __device__ StageLoader(const FwdArgs& args, int64_t first_row, int first_feature)
      : p(args), first(first_row), feature(first_feature + static_cast<int>(threadIdx.x) % 8 * 8) {
    const int row = static_cast<int>(threadIdx.x) / 8;
    x = p.x + (first + row) * p.x_stride + feature, a = p.a + row * p.a_stride + feature;
#pragma unroll
    for (int i = 0; i < 4; ++i) live[i] = first + row + 32 * i < p.rows && p.mask.positions[first + row + 32 * i] >= 0;
  }
  __device__ __forceinline__ void load(uint32_t stage, int s) const {
    const int row = static_cast<int>(threadIdx.x) / 8, chunk = static_cast<int>(threadIdx.x) % 8;
    const bool inside = feature + s * kDepth < p.cols;
    const uint32_t to = stage + panel_byte(row, chunk);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool valid = inside && live[i];
      cp_async_16(to + i * 32 * 128, valid ? x + i * 32 * p.x_stride + s * kDepth : p.x, valid);
    }
#pragma unroll
    for (int m = 0; m < kAdapters; ++m) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const bool valid = inside && row + 32 * i < p.slice[m].width;
        cp_async_16(to + C::kXBytes + m * kPanelBytes + i * 32 * 128,
                    valid ? a + (p.slice[m].column + 32 * i) * p.a_stride + s * kDepth : p.a, valid);
      }
      load_words<kRows, 1, kThreads>(stage + C::kXBytes + kAdapters * kPanelBytes + m * C::kWordBytes, p.mask,
                                     p.slice[m].adapter, feature / kDepth + s, first, p.rows);
    }
  }
};

// y = x under the masks of the rows g and g + 8 (words): registers of mma's left operand for 64 features.
__device__ __forceinline__ void drop(uint32_t (&y)[4][4], const uint32_t (&x)[4][4], const uint2 (&words)[2], int q) {
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const uint32_t bits = (k < 2 ? words[half].x : words[half].y)
                            << (3 - q);  // pair q + 4 t: bits 3 + 4 t and 19 + 4 t
      y[k][half] = x[k][half] & spread_signs(bits << (12 - 8 * (k % 2)));
      y[k][half + 2] = x[k][half + 2] & spread_signs(bits << (8 - 8 * (k % 2)));
    }
}

template <int kAdapters>
__device__ __forceinline__ void store(const FwdArgs& p, const float (&acc)[kAdapters][8][4], const float* pooled,
                                      int64_t first) {
  using C = Config<kAdapters>;
  constexpr int kWidth = kPartialWidth<kAdapters>;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, g = lane / 4, q = lane % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = static_cast<int>(threadIdx.x) / kWarp * 16 + half * 8 + g;
    if (first + row >= p.rows) continue;
    float* partial = p.partial + (int64_t{blockIdx.y} * p.rows + first + row) * kWidth;
#pragma unroll
    for (int m = 0; m < kAdapters; ++m) {
      const RankSlice& slice = p.slice[m];
      const float beta1 = p.px && slice.beta1 ? *slice.beta1 : 0.0f;
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const int j = n * 8 + 2 * q;
        if (j >= slice.width) continue;
        const float* value = acc[m][n] + 2 * half;
        if (p.splits > 1) {
          *reinterpret_cast<float2*>(partial + m * kSliceRanks + j) = make_float2(value[0], value[1]);
          continue;
        }
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (j + e >= slice.width) continue;
          const int column = slice.first + j + e;
          float mean = 0;
          if (beta1 != 0)
            mean = p.pool ? pooled[row * C::kPitch + p.map.group(column)] / static_cast<float>(p.map.slice)
                          : to_f(p.px[(first + row) * p.px_stride + column]);
          p.u[(first + row) * p.u_stride + slice.column + j + e] =
              from_f<__nv_bfloat16>(p.mask.scale * value[e] + beta1 * mean);
        }
      }
    }
  }
  const int width = !p.pool ? 0 : p.splits > 1 ? p.map.groups : p.store_pool ? p.rank : 0;
  for (int i = static_cast<int>(threadIdx.x); i < kRows * width; i += kThreads) {
    const int row = i / width, j = i - row * width;
    if (first + row >= p.rows) break;
    if (p.splits > 1)
      p.partial[(int64_t{blockIdx.y} * p.rows + first + row) * kWidth + kAdapters * kSliceRanks + j] =
          pooled[row * C::kPitch + j];
    else
      p.px[(first + row) * p.px_stride + j] =
          from_f<__nv_bfloat16>(pooled[row * C::kPitch + p.map.group(j)] / static_cast<float>(p.map.slice));
  }
}

template <int kAdapters>
__global__ void __launch_bounds__(kThreads, 1) lora_dropout_fwd_sm90_kernel(FwdArgs p) {
  using C = Config<kAdapters>;
  extern __shared__ unsigned char unaligned_memory[];
  unsigned char* memory = unaligned_memory + (1024 - smem_address(unaligned_memory) % 1024) % 1024;
  float* pooled = reinterpret_cast<float*>(memory + C::kStages * C::kStageBytes);
  const int64_t first = int64_t{blockIdx.x} * kRows;
  const int first_feature = static_cast<int>(blockIdx.y) * p.features_per_split;
  const int count = (min(p.cols - first_feature, p.features_per_split) + kDepth - 1) / kDepth;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, g = lane / 4, q = lane % 4;
  const int warp_row = static_cast<int>(threadIdx.x) / kWarp * 16;
  const uint32_t stages = smem_address(memory);

  for (int i = static_cast<int>(threadIdx.x); i < kRows * C::kPitch; i += kThreads) pooled[i] = 0;
  const StageLoader<kAdapters> loader(p, first, first_feature);
  const auto load = [&](int s) {
    if (s < count) loader.load(stages + s % C::kStages * C::kStageBytes, s);
    cp_async_commit();
  };
  for (int s = 0; s < C::kStages - 1; ++s) load(s);
  float acc[kAdapters][8][4] = {};
  uint32_t masked[kAdapters][4][4];
  RowSums<C::kPitch> sums;
  sums.sums = pooled + warp_row * C::kPitch;
  int base = p.slice_of(first_feature);  // of the window of slices

  for (int s = 0; s < count; ++s) {
    cp_async_wait<C::kStages - 2>();
    publish_to_products();
    __syncthreads();  // stage s is there, and the products of stage s - 1, whose place the next load takes, are done
    load(s + C::kStages - 1);
    const uint32_t stage = stages + s % C::kStages * C::kStageBytes;
    const unsigned char* words = memory + s % C::kStages * C::kStageBytes + C::kXBytes + kAdapters * kPanelBytes;
    uint32_t x[4][4];
#pragma unroll
    for (int k = 0; k < 4; ++k)
      ldmatrix_x4(x[k], stage + warp_row / 64 * kPanelBytes + panel_byte(warp_row % 64 + lane % 16, 2 * k + lane / 16));
    if (p.pool) {
      const int begin = first_feature + s * kDepth;
      if (p.slice_of(begin + kDepth - 1) >= base + 8) {
        sums.flush(base, min(p.slice_of(begin - 1), p.map.groups - 1));
        base = p.slice_of(begin);
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const auto column = [&](int feature) { return (p.slice_of(feature) & 7) == g ? 0x3f803f80u : 0u; };
        mma_m16n8k16(sums.sum, x[k], column(begin + k * 16 + 2 * q), column(begin + k * 16 + 2 * q + 8));
      }
    }
#pragma unroll
    for (int m = 0; m < kAdapters; ++m) {
      const uint2* at = reinterpret_cast<const uint2*>(words + m * C::kWordBytes) + warp_row + g;
      const uint2 rows[2] = {at[0], at[8]};
      drop(masked[m], x, rows, q);
      operands_are_there(masked[m]);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; ++k)
        wgmma_registers<false>(acc[m], masked[m][k], panel_along(stage + C::kXBytes + m * kPanelBytes + k * 32));
      wgmma_commit();
    }
    wgmma_wait<0>();  // here, not later: the compiler keeps products apart whose end it does not see in the loop
#pragma unroll
    for (int m = 0; m < kAdapters; ++m) results_are_there(acc[m]);
  }
  if (p.pool) sums.flush(base, min(p.slice_of(first_feature + count * kDepth - 1), p.map.groups - 1));
  cp_async_wait<0>();
  __syncthreads();
  store(p, acc, pooled, first);
}

template <int kAdapters>
void launch(const FwdArgs& p, cudaStream_t stream) {
  using C = Config<kAdapters>;
  allow_shared_bytes(lora_dropout_fwd_sm90_kernel<kAdapters>, C::kBytes);
  const dim3 grid(static_cast<unsigned>(ceil_div(p.rows, kRows)), static_cast<unsigned>(p.splits));
  lora_dropout_fwd_sm90_kernel<kAdapters><<<grid, kThreads, C::kBytes, stream>>>(p);
  CUDA_LAUNCHED();
}

// Times in stages of a block. One that starts anew waits for about four, a second kernel for partial sums costs about six.
int64_t best_splits(const FwdArgs& p, int sm_count) {
  const int64_t tiles = ceil_div(p.rows, kRows), stages = ceil_div(p.cols, kDepth);
  const int64_t most = kPartialBytes / (p.rows * (p.slices * kSliceRanks + kFusedGroups) * 4);
  int64_t best = 1, best_time = INT64_MAX;
  for (int64_t s = 1; s <= stages && (s == 1 || s <= most); ++s) {
    const int64_t time = ceil_div(tiles * s, sm_count) * (ceil_div(stages, s) + 4) + (s > 1 ? 6 : 0);
    if (time < best_time) best = s, best_time = time;
  }
  return best;
}

}  // namespace

void lora_dropout_fwd_sm90(FwdArgs& p, int sm_count, cudaStream_t stream) {
  p.features_per_split = static_cast<int>(ceil_div(ceil_div(p.cols, kDepth), best_splits(p, sm_count))) * kDepth;
  p.splits = static_cast<int>(ceil_div(p.cols, p.features_per_split));
  if (p.slices == 1) launch<1>(p, stream);
  else if (p.slices == 2) launch<2>(p, stream);
  else launch<3>(p, stream);
}

}  // namespace irq
