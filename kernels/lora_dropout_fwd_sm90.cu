// What:   lora_dropout_fwd.cu on the warpgroup products of sm_90a.
// Math:   px = P x;  u_m = s sum_c mask_m[c] x[c] A_m[:, c] + beta1_m px, F32 sums, s = 1 / (1 - p) after the sum.
// Shapes: as there.
// Cost:   x and the masks once from DRAM, A once per 128 rows from L2. N = 8192, (h = 4096, R = 192): 67 + 13 MB and 100 MB, the
//         partial sums of two splits 34 MB: 45 us expected; (4096, 64) 28; (4096, 128) 36; (11008, 64) 75 us.
// Tricky: x goes through registers, where an adapter's mask is three instructions for two elements: one shift, one byte
//         permutation, one "and". Those registers are the products' left operand, A stays in shared memory. Every adapter has
//         its own masked registers, so that one is masked while the products of the ones before run. Row sums for px are one more
//         product, with ones for the columns of slice t in result column t % 8.
#include "kernels/lora_dropout_fwd.cuh"
#include "kernels/sm90.cuh"

namespace irq {

using namespace lora_fwd;

namespace {

// Two roles: warpgroups of 64 rows each multiply, as many others copy the stages to shared memory and make masks.
constexpr int kGroups = 2, kThreads = 128 * kGroups, kRows = 64 * kGroups;  // of one role
constexpr int kDepth = 64, kPanelBytes = 64 * 128;                          // features of a stage
constexpr int kMultiplierRegisters = 184, kMakerRegisters = 72;
static_assert((kMultiplierRegisters + kMakerRegisters) * kThreads <= 65536);

template <int kAdapters>
struct Config {
  static constexpr int kStages = 7 - kAdapters;
  static constexpr int kXBytes = kGroups * kPanelBytes, kWordBytes = kRows * 8;  // of one adapter's masks
  static constexpr int kWords = kXBytes + kAdapters * kPanelBytes;               // offset in a stage: behind x and A
  static constexpr int kStageBytes = kWords + kAdapters * kWordBytes;
  static constexpr int kPitch = kFusedGroups + 1, kPooledBytes = kRows * kPitch * 4;
  static constexpr int kColumns = 8 * kAdapters;  // what a stage's chunks of eight features decide of their draws
  static constexpr int kColumnBytes = 2 * kColumns * static_cast<int>(sizeof(DropoutColumn));
  static constexpr int kBytes = 1024 + kStages * kStageBytes + kPooledBytes + kColumnBytes;
  static_assert(kStageBytes % 1024 == 0 && kBytes <= 227 * 1024);
};

__device__ __forceinline__ void all_wait() { meet(1, 2 * kThreads); }

// The role of copying and making masks. A thread has one chunk of four rows of x and of two of each A, 32 rows apart, of every
// stage; and half the words of one row's masks.
template <int kAdapters>
struct Maker {
  using C = Config<kAdapters>;
  const FwdArgs& p;
  unsigned char* memory;
  DropoutColumn* columns;  // of two stages
  const int64_t first;
  const int first_feature, count, thread;
  const __nv_bfloat16 *x, *a;
  bool live[4], own_live;
  DropoutRow row{};
  uint32_t seed[2];

  __device__ Maker(const FwdArgs& args, unsigned char* shared, DropoutColumn* table, int64_t first_row, int feature,
                   int stages)
      : p(args),
        memory(shared),
        columns(table),
        first(first_row),
        first_feature(feature),
        count(stages),
        thread(static_cast<int>(threadIdx.x) - kThreads) {
    const int r = thread / 8, c = first_feature + thread % 8 * 8;
    x = p.x + (first + r) * p.x_stride + c, a = p.a + r * p.a_stride + c;
#pragma unroll
    for (int i = 0; i < 4; ++i) live[i] = alive(first + r + 32 * i);
    const int64_t own = first + thread % kRows;
    own_live = alive(own);
    seed[0] = p.source.params->seed[0], seed[1] = p.source.params->seed[1];
    if (own_live) row = dropout_row(p.mask.positions[own], p.source.samples[own], seed);
  }
  __device__ __forceinline__ bool alive(int64_t n) const { return n < p.rows && p.mask.positions[n] >= 0; }
  __device__ __forceinline__ unsigned char* stage(int s) const { return memory + s % C::kStages * C::kStageBytes; }

  // Starts copying stage s.
  __device__ __forceinline__ void load(int s) const {
    if (s < count) {
      const int r = thread / 8, chunk = thread % 8;
      const bool inside = first_feature + s * kDepth + chunk * 8 < p.cols;
      const uint32_t to = smem_address(stage(s)) + panel_byte(r, chunk);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool valid = inside && live[i];
        cp_async_16(to + i * 32 * 128, valid ? x + i * 32 * p.x_stride + s * kDepth : p.x, valid);
      }
#pragma unroll
      for (int m = 0; m < kAdapters; ++m)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const bool valid = inside && r + 32 * i < p.slice[m].width;
          cp_async_16(to + C::kXBytes + m * kPanelBytes + i * 32 * 128,
                      valid ? a + (p.slice[m].column + 32 * i) * p.a_stride + s * kDepth : p.a, valid);
        }
      if (!p.make_bits) {
#pragma unroll
        for (int m = 0; m < kAdapters; ++m)
          if (thread < kRows / 2) {
            const bool valid = first + 2 * thread < p.rows;
            const uint2* from = p.mask.block(p.slice[m].adapter, first_feature / kDepth + s) + first + 2 * thread;
            cp_async_16(smem_address(stage(s)) + C::kWords + m * C::kWordBytes + thread * 16,
                        valid ? from : p.mask.bits, valid);
          }
      }
    }
    cp_async_commit();
  }
  // What the features of stage s decide; two stages before its words are made, and a barrier between.
  __device__ __forceinline__ void make_columns(int s) const {
    if (thread < C::kColumns)
      columns[s % 2 * C::kColumns + thread] =
          dropout_column(first_feature + s * kDepth + thread % 8 * 8, p.source.id[thread / 8], seed);
  }
  __device__ __forceinline__ void make_words(int s) const {
    const int half = thread / kRows;  // of 32 features
    const uint32_t kept = own_live ? within_row(p.cols - first_feature - s * kDepth - half * 32) : 0;
#pragma unroll
    for (int m = 0; m < kAdapters; ++m) {
      const DropoutColumn* c = columns + s % 2 * C::kColumns + m * 8 + half * 4;
      const uint32_t bits = half_word<true>(row, c, seed, p.source.lift) & kept;
      reinterpret_cast<uint32_t*>(stage(s) + C::kWords + m * C::kWordBytes)[thread % kRows * 2 + half] = bits;
    }
  }
  // The words of a finished stage, for the products of backward.
  __device__ __forceinline__ void store_words(int s) const {
    if (thread >= kRows / 2 || first + 2 * thread >= p.rows) return;
#pragma unroll
    for (int m = 0; m < kAdapters; ++m)
      *reinterpret_cast<uint4*>(p.mask.block(p.slice[m].adapter, first_feature / kDepth + s) + first + 2 * thread) =
          *reinterpret_cast<const uint4*>(stage(s) + C::kWords + m * C::kWordBytes + thread * 16);
  }
  __device__ __forceinline__ void run() const {
    if (p.make_bits) make_columns(0), make_columns(1);
    for (int s = 0; s < C::kStages - 1; ++s) load(s);
    all_wait();
    if (p.make_bits) make_words(0);
    for (int s = 0;; ++s) {
      cp_async_wait<C::kStages - 2>();
      publish_to_products();
      all_wait();  // stage s is there, and the products of stage s - 1, whose place the next load takes, are done
      if (s == count) break;
      load(s + C::kStages - 1);
      if (!p.make_bits) continue;
      store_words(s);
      make_columns(s + 2);
      if (s + 1 < count) make_words(s + 1);
    }
    cp_async_wait<0>();
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

// The role of multiplying.
template <int kAdapters>
__device__ __forceinline__ void multiply(const FwdArgs& p, const unsigned char* memory, float* pooled, int64_t first,
                                         int first_feature, int count) {
  using C = Config<kAdapters>;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, g = lane / 4, q = lane % 4;
  const int warp_row = static_cast<int>(threadIdx.x) / kWarp * 16;
  const uint32_t stages = smem_address(memory);
  float acc[kAdapters][8][4] = {};
  uint32_t masked[kAdapters][4][4];
  RowSums<C::kPitch> sums;
  sums.sums = pooled + warp_row * C::kPitch;
  int base = p.slice_of(first_feature);  // of the window of slices

  for (int i = static_cast<int>(threadIdx.x); i < kRows * C::kPitch; i += kThreads) pooled[i] = 0;
  all_wait();
  all_wait();
  for (int s = 0; s < count; ++s) {
    const uint32_t stage = stages + s % C::kStages * C::kStageBytes;
    const unsigned char* words = memory + s % C::kStages * C::kStageBytes + C::kWords;
    uint32_t x[4][4];
#pragma unroll
    for (int k = 0; k < 4; ++k)
      ldmatrix_x4(x[k], stage + warp_row / 64 * kPanelBytes + panel_byte(warp_row % 64 + lane % 16, 2 * k + lane / 16));
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
    if (p.pool) {  // while the products run
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
    wgmma_wait<0>();  // here, not later: the compiler keeps products apart whose end it does not see in the loop
#pragma unroll
    for (int m = 0; m < kAdapters; ++m) results_are_there(acc[m]);
    all_wait();
  }
  if (p.pool) sums.flush(base, min(p.slice_of(first_feature + count * kDepth - 1), p.map.groups - 1));
  meet(2, kThreads);
  store(p, acc, pooled, first);
}

template <int kAdapters>
__global__ void __launch_bounds__(2 * kThreads, 1) lora_dropout_fwd_sm90_kernel(FwdArgs p) {
  using C = Config<kAdapters>;
  extern __shared__ unsigned char unaligned_memory[];
  unsigned char* memory = unaligned_memory + (1024 - smem_address(unaligned_memory) % 1024) % 1024;
  float* pooled = reinterpret_cast<float*>(memory + C::kStages * C::kStageBytes);
  const int64_t first = int64_t{blockIdx.x} * kRows;
  const int first_feature = static_cast<int>(blockIdx.y) * p.features_per_split;
  const int count = (min(p.cols - first_feature, p.features_per_split) + kDepth - 1) / kDepth;
  if (threadIdx.x < kThreads) {
    take_registers<kMultiplierRegisters>();
    multiply<kAdapters>(p, memory, pooled, first, first_feature, count);
  } else {
    give_up_registers<kMakerRegisters>();
    DropoutColumn* columns = reinterpret_cast<DropoutColumn*>(pooled + kRows * C::kPitch);
    Maker<kAdapters>(p, memory, columns, first, first_feature, count).run();
  }
}

template <int kAdapters>
void launch(const FwdArgs& p, cudaStream_t stream) {
  using C = Config<kAdapters>;
  allow_shared_bytes(lora_dropout_fwd_sm90_kernel<kAdapters>, C::kBytes);
  const dim3 grid(static_cast<unsigned>(ceil_div(p.rows, kRows)), static_cast<unsigned>(p.splits));
  lora_dropout_fwd_sm90_kernel<kAdapters><<<grid, 2 * kThreads, C::kBytes, stream>>>(p);
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
