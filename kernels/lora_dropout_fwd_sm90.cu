// What:   lora_dropout_fwd.cu on the warpgroup products of sm_90a.
// Math:   px = P x;  u_m = s sum_c mask_m[c] x[c] A_m[:, c] + beta1_m px, F32 sums, s = 1 / (1 - p) after the sum.
// Shapes: as there.
// Cost:   as there. The threads do nothing but masks; see lora_dropout_da_sm90.cu for what a Philox call costs. N = 8192:
//         (h = 4096, R = 192) 745 calls of a warp on each scheduler, about 100 cycles each with the masking: 43 us; (4096, 64)
//         and (11008, 64) are bound by DRAM, 27 and 70 us (expected, not measured).
// Tricky: A thread owns one row and one chunk of 16 bytes of every panel of 64 features. It masks what it has copied itself,
//         once for each adapter, into a panel of the adapter's own, where the products of warpgroup m find adapter m's while
//         the next stage is masked. The last warpgroup multiplies x itself by a panel with ones where a feature belongs to
//         a slice: the sums for px are one more result of 64 columns.
#include "kernels/lora_dropout_fwd.cuh"
#include "kernels/sm90.cuh"

namespace irq {

using namespace lora_fwd;

namespace {

constexpr int kThreads = 512, kPoolGroup = 3, kPanelBytes = kRows * 128;
constexpr int kPoolPitch = kFusedGroups + 1;
static_assert(kFusedGroups == 64 && kThreads == kRows * 8 && kRows == kSliceRanks && kMaxSlices <= kPoolGroup);

template <int kAdapters>
struct Config {
  static constexpr int kPanels = kAdapters == 1 ? 2 : 1, kDepth = 64 * kPanels;  // features of a stage
  static constexpr int kStages = kAdapters == 2 ? 6 : kAdapters == 1 ? 5 : 4;
  static constexpr int kCopies = (1 + kAdapters) * kPanels;  // panels of a stage: x, then A of each adapter
  static constexpr int kStageBytes = kCopies * kPanelBytes, kMaskedBytes = kAdapters * kPanels * kPanelBytes;
  static constexpr int kOnesBytes = kPanels * kPanelBytes;
  static constexpr int kMasked = kStages * kStageBytes, kOnes = kMasked + 2 * kMaskedBytes;  // offsets; two of each
  static constexpr int kSharedBytes = 1024 + kOnes + 2 * kOnesBytes;
  static_assert(kSharedBytes <= 227 * 1024);
};

// One chunk of a panel whose row t has ones for the features of slice t: `set`, or cleared again.
__device__ __forceinline__ void write_ones(unsigned char* panel, int feature, int chunk, bool set, const SliceOf& slice_of) {
#pragma unroll
  for (int end = 0; end < 2; ++end) {  // eight features belong to two slices at most
    const int t = slice_of(feature + 7 * end);
    uint32_t v[4];
#pragma unroll
    for (int w = 0; w < 4; ++w) v[w] = set && slice_of(feature + 2 * w) == t ? 0x3f803f80u : 0u;
    if (t < kFusedGroups)
      *reinterpret_cast<uint4*>(panel + panel_byte(t, chunk)) = make_uint4(v[0], v[1], v[2], v[3]);
  }
}

// Gives out the block's results: to u and px, or to p.partial where several blocks share the tile of rows.
template <int kAdapters>
__device__ __forceinline__ void store_u(const FwdArgs& p, const float (&acc)[8][4], const float* pooled, int64_t first) {
  constexpr int kWidth = kAdapters * kSliceRanks + kFusedGroups;
  const int thread = static_cast<int>(threadIdx.x), adapter = thread / 128, lane = thread % kWarp;
  const RankSlice slice = p.slice[adapter];
  const float beta1 = slice.beta1 ? *slice.beta1 : 0.0f;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = thread % 128 / kWarp * 16 + half * 8 + lane / 4;
    const int64_t n = first + row;
    if (n >= p.rows) continue;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int j = i / 2 * 8 + lane % 4 * 2 + i % 2;
      const float sum = acc[i / 2][half * 2 + i % 2];
      if (j >= slice.width) continue;
      if (p.splits > 1) {
        p.partial[(int64_t{blockIdx.y} * p.rows + n) * kWidth + adapter * kSliceRanks + j] = sum;
        continue;
      }
      float value = p.mask.scale * sum;
      if (p.px && slice.beta1) {
        const int column = slice.first + j;
        value += beta1 * (p.pool ? pooled[row * kPoolPitch + p.map.group(column)] /
                                       static_cast<float>(p.map.slice)
                                 : to_f(p.px[n * p.px_stride + column]));
      }
      p.u[n * p.u_stride + slice.column + j] = from_f<__nv_bfloat16>(value);
    }
  }
}
template <int kAdapters>
__device__ __forceinline__ void store_px(const FwdArgs& p, const float* pooled, int64_t first) {
  constexpr int kWidth = kAdapters * kSliceRanks + kFusedGroups;
  const int width = p.splits > 1 ? p.map.groups : p.store_pool ? p.rank : 0;
  for (int i = static_cast<int>(threadIdx.x); i < kRows * width; i += kThreads) {
    const int row = i / width, j = i - row * width;
    if (first + row >= p.rows) continue;
    if (p.splits > 1)
      p.partial[(int64_t{blockIdx.y} * p.rows + first + row) * kWidth + kAdapters * kSliceRanks + j] =
          pooled[row * kPoolPitch + j];
    else
      p.px[(first + row) * p.px_stride + j] =
          from_f<__nv_bfloat16>(pooled[row * kPoolPitch + p.map.group(j)] / static_cast<float>(p.map.slice));
  }
}

template <int kAdapters>
__global__ void __launch_bounds__(kThreads, 1) lora_dropout_fwd_sm90_kernel(FwdArgs p) {
  using C = Config<kAdapters>;
  extern __shared__ unsigned char unaligned_memory[];
  unsigned char* memory = unaligned_memory + (1024 - smem_address(unaligned_memory) % 1024) % 1024;
  const uint32_t stages = smem_address(memory);
  const int64_t first = int64_t{blockIdx.x} * kRows;
  const int first_feature = static_cast<int>(blockIdx.y) * p.features_per_split;
  const int thread = static_cast<int>(threadIdx.x), group = thread / 128, row = thread / 8, chunk = thread % 8;
  const int place = panel_byte(row, chunk);
  for (int i = thread; i < 2 * C::kOnesBytes / 16; i += kThreads)
    reinterpret_cast<uint4*>(memory + C::kOnes)[i] = uint4{0, 0, 0, 0};
  __syncthreads();

  const uint32_t seed[2] = {p.mask.params->seed[0], p.mask.params->seed[1]};
  const bool live = first + row < p.rows && p.mask.positions[first + row] >= 0;
  DropoutRow mask_row{};
  if (live) mask_row = dropout_row(p.mask.positions[first + row], p.mask.samples[first + row], seed);
  const __nv_bfloat16* x = live ? p.x + (first + row) * p.x_stride : nullptr;
  const __nv_bfloat16* a[kAdapters];
#pragma unroll
  for (int m = 0; m < kAdapters; ++m)
    a[m] = row < p.slice[m].width ? p.a + (p.slice[m].column + row) * p.a_stride : nullptr;
  const int count = p.features_per_split / C::kDepth;
  const auto load = [&](int s) {
    if (s < count) {
#pragma unroll
      for (int i = 0; i < C::kCopies; ++i) {
        const int c = first_feature + s * C::kDepth + i % C::kPanels * 64 + chunk * 8;
        const __nv_bfloat16* from = i < C::kPanels ? x : a[max(i / C::kPanels - 1, 0)];
        const bool valid = from != nullptr && c < p.cols;
        cp_async_16(stages + s % C::kStages * C::kStageBytes + i * kPanelBytes + place, valid ? from + c : p.x, valid);
      }
    }
    cp_async_commit();
  };
  for (int s = 0; s < C::kStages - 2; ++s) load(s);

  float acc[8][4] = {};  // of u, or of the sums over slices
  const bool sums = group == kPoolGroup && p.pool;
  for (int s = 0; s <= count; ++s) {
    cp_async_wait<C::kStages - 3>();  // this thread's chunks of stage s are there
    wgmma_wait<0>();
    publish_to_products();
    __syncthreads();  // stage s - 1 is masked; the products of stage s - 2, whose place the next load takes, are done
    if (s > 0 && (group < kAdapters || sums)) {
      const uint32_t stage = stages + (s - 1) % C::kStages * C::kStageBytes;
      const uint32_t left =
          sums ? stage : stages + C::kMasked + (s - 1) % 2 * C::kMaskedBytes + group * C::kPanels * kPanelBytes;
      const uint32_t right =
          sums ? stages + C::kOnes + (s - 1) % 2 * C::kOnesBytes : stage + (1 + group) * C::kPanels * kPanelBytes;
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < C::kDepth / 16; ++k) {
        const uint32_t at = k / 4 * kPanelBytes + k % 4 * 32;
        wgmma_panels(acc, panel_along(left + at), panel_along(right + at), true);
      }
      wgmma_commit();
    }
    load(s + C::kStages - 2);
    if (s == count) break;
    const unsigned char* tile = memory + s % C::kStages * C::kStageBytes + place;
    unsigned char* masked = memory + C::kMasked + s % 2 * C::kMaskedBytes + place;
#pragma unroll
    for (int i = 0; i < C::kPanels; ++i) {
      uint32_t v[4];
      load_shared_16(v, tile + i * kPanelBytes);
#pragma unroll
      for (int m = 0; m < kAdapters; ++m) {
        uint32_t kept[4] = {v[0], v[1], v[2], v[3]};
        const DropoutColumn column =
            dropout_column(first_feature + s * C::kDepth + i * 64 + chunk * 8, p.slice[m].id, seed);
        drop_chunk(kept, mask_row, column, seed, p.mask.kept);
        *reinterpret_cast<uint4*>(masked + (m * C::kPanels + i) * kPanelBytes) =
            make_uint4(kept[0], kept[1], kept[2], kept[3]);
      }
    }
    if (p.pool && thread < C::kPanels * 8) {
      unsigned char* panel = memory + C::kOnes + s % 2 * C::kOnesBytes + thread / 8 * kPanelBytes;
      const int c = first_feature + s * C::kDepth + thread * 8;
      if (s >= 2) write_ones(panel, c - 2 * C::kDepth, chunk, false, p.slice_of);
      write_ones(panel, c, chunk, true, p.slice_of);
    }
  }
  wgmma_wait<0>();
  results_are_there(acc);
  cp_async_wait<0>();
  __syncthreads();
  float* pooled = reinterpret_cast<float*>(memory);  // in the stages' place
  if (sums) {
    const int lane = thread % kWarp;
    float* out = pooled + (thread % 128 / kWarp * 16 + lane / 4) * kPoolPitch + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 32; ++i) out[i / 2 % 2 * 8 * kPoolPitch + i / 4 * 8 + i % 2] = acc[i / 4][i % 4];
  }
  __syncthreads();
  if (p.pool) store_px<kAdapters>(p, pooled, first);
  if (group < kAdapters) store_u<kAdapters>(p, acc, pooled, first);
}

template <int kAdapters>
void launch(const FwdArgs& p, cudaStream_t stream) {
  using C = Config<kAdapters>;
  const dim3 grid(static_cast<unsigned>(ceil_div(p.rows, kRows)), static_cast<unsigned>(p.splits));
  allow_shared_bytes(lora_dropout_fwd_sm90_kernel<kAdapters>, C::kSharedBytes);
  lora_dropout_fwd_sm90_kernel<kAdapters><<<grid, kThreads, C::kSharedBytes, stream>>>(p);
}

}  // namespace

int lora_dropout_fwd_sm90_depth(int adapters) { return adapters == 1 ? Config<1>::kDepth : Config<2>::kDepth; }

void lora_dropout_fwd_sm90(const FwdArgs& p, cudaStream_t stream) {
  if (p.slices == 1) launch<1>(p, stream);
  else if (p.slices == 2) launch<2>(p, stream);
  else launch<3>(p, stream);
}

}  // namespace irq
