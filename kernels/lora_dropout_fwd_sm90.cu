// What:   lora_dropout_fwd.cu on the warpgroup products of sm_90a.
// Math:   px = P x;  u_m = s sum_c mask_m[c] x[c] A_m[:, c] + beta1_m px, F32 sums, s = 1 / (1 - p) after the sum.
// Shapes: as there.
// Cost:   x and the masks once from DRAM, A once per 128 rows from L2. N = 8192, (h = 4096, R = 192): 67 + 13 MB and 100 MB: 27 us
//         at 3 TB/s of DRAM, 48 measured; (4096, 128) 25 and 40; (4096, 64) 24 and 34; (11008, 64) 64 and 71 us. N = 2048: 25, 22,
//         19 and 28 us (the second kernel alone 6 to 9).
// Tricky: instructions bind before bytes do, so one warpgroup does nothing but copy and has all the addresses. x goes through
//         registers, where an adapter's mask is at most three instructions for two elements: a shift, a byte permutation, an
//         "and". Those registers are the products' left operand, A stays in shared memory. Every adapter has its own masked
//         registers, so that one is masked while the products of the ones before run. Row sums for px are one more product, with
//         ones for the columns of slice t in result column t % 8. Results leave through shared memory, in loops: straight from
//         the registers they were 11,000 instructions, whose fetching took a fifth of the time. Two blocks that share rows are a
//         cluster and add up there; with clusters of 8, N = 2048 took half as long again.
#include "kernels/dependent_launch.cuh"
#include "kernels/lora_dropout_fwd.cuh"
#include "kernels/sm90.cuh"

namespace irq {

using namespace lora_fwd;

namespace {

// A warpgroup multiplies for 64 rows; one more only copies.
constexpr int kGroups = 2, kThreads = 128 * kGroups, kRows = 64 * kGroups, kCopiers = 128;
constexpr int kMultiplierRegisters = 216, kCopierRegisters = 72;  // of 168 that the launch gives each thread
static_assert(kGroups * kMultiplierRegisters + kCopierRegisters <= (kGroups + 1) * 168);
constexpr int kDepth = 64, kPanelBytes = 64 * 128;  // features of a stage

template <int kAdapters>
struct Config {
  static constexpr int kStages = 7 - kAdapters;
  static constexpr int kXBytes = kGroups * kPanelBytes, kWordBytes = kRows * 8;  // of one adapter's masks
  static constexpr int kStageBytes = kXBytes + kAdapters * (kPanelBytes + kWordBytes);
  static constexpr int kPitch = kFusedGroups + 4, kPooledBytes = kRows * kPitch * 4;
  static constexpr int kBytes = 1024 + kStages * kStageBytes + kPooledBytes;
  static_assert(kStageBytes % 1024 == 0 && kBytes <= 227 * 1024);
};

// A copying thread's share of every stage: one chunk of eight rows of x and of four of each A, 16 rows apart, and the words of two
// rows. Its addresses move along with the stages; those of copies that are not valid are never used.
template <int kAdapters>
struct StageLoader {
  using C = Config<kAdapters>;
  static constexpr int kXPieces = 8, kAPieces = 4, kWordThreads = kRows / 2;  // the last of an adapter
  static constexpr int kWordPasses = (kAdapters * kWordThreads + kCopiers - 1) / kCopiers;
  static constexpr uint32_t kAll = (1u << (kXPieces + kAPieces * kAdapters)) - 1;
  const __nv_bfloat16 *x, *a[kAdapters];
  const uint2* words[kWordPasses];
  int64_t x_step, a_step, word_step;  // 16 rows of x, of A; a block of features
  int left;                           // features from the chunk of the next stage on
  int blocks[kWordPasses];            // the same for its words
  uint32_t valid;                     // a bit for each copy of x and A
  uint32_t to, words_to;              // in a stage

  __device__ StageLoader(const FwdArgs& p, int64_t first, int first_feature, int thread) {
    const int row = thread / 8, chunk = thread % 8, feature = first_feature + chunk * 8;
    x = p.x + (first + row) * p.x_stride + feature;
    x_step = 16 * p.x_stride, a_step = 16 * p.a_stride;
    valid = 0;
#pragma unroll
    for (int i = 0; i < kXPieces; ++i)
      if (first + row + 16 * i < p.rows && p.mask.positions[first + row + 16 * i] >= 0) valid |= 1u << i;
#pragma unroll
    for (int m = 0; m < kAdapters; ++m) {
      a[m] = p.a + (p.slice[m].column + row) * p.a_stride + feature;
#pragma unroll
      for (int i = 0; i < kAPieces; ++i)
        if (row + 16 * i < p.slice[m].width) valid |= 1u << (kXPieces + kAPieces * m + i);
    }
    left = p.cols - feature;
    word_step = p.mask.pitch;
#pragma unroll
    for (int i = 0; i < kWordPasses; ++i) {
      const int m = (thread + i * kCopiers) / kWordThreads, r = thread % kWordThreads * 2;
      words[i] = p.mask.bits, blocks[i] = 0;
      if (m < kAdapters && first + r < p.rows)
        words[i] = p.mask.block(p.slice[m].adapter, first_feature / kDepth) + first + r,
        blocks[i] = p.mask.blocks - first_feature / kDepth;
    }
    to = panel_byte(row, chunk), words_to = C::kXBytes + kAdapters * kPanelBytes + thread * 16;
  }
  template <bool kWhole>
  __device__ __forceinline__ void copy(uint32_t stage, uint32_t copies) const {
    const __nv_bfloat16* from = x;
#pragma unroll
    for (int i = 0; i < kXPieces; ++i, from += x_step)
      cp_async_16(stage + to + i * 16 * 128, from, kWhole || copies & 1u << i);
#pragma unroll
    for (int m = 0; m < kAdapters; ++m) {
      from = a[m];
#pragma unroll
      for (int i = 0; i < kAPieces; ++i, from += a_step)
        cp_async_16(stage + to + C::kXBytes + m * kPanelBytes + i * 16 * 128, from,
                    kWhole || copies & 1u << (kXPieces + kAPieces * m + i));
    }
  }
  __device__ __forceinline__ void load(uint32_t stage, int thread) {
    const uint32_t copies = left > 0 ? valid : 0;
    if (copies == kAll) copy<true>(stage, copies);
    else copy<false>(stage, copies);
    x += kDepth, left -= kDepth;
#pragma unroll
    for (int m = 0; m < kAdapters; ++m) a[m] += kDepth;
#pragma unroll
    for (int i = 0; i < kWordPasses; ++i, thread += kCopiers) {
      if (thread < kAdapters * kWordThreads) cp_async_16(stage + words_to + i * kCopiers * 16, words[i], blocks[i] > 0);
      words[i] += word_step, --blocks[i];
    }
  }
};

// A slot is full when every copying thread's copies are there, empty when every multiplying warp is done with it. Each side
// keeps a ring of its own and goes through the slots in turn.
template <int kStages>
struct StageRing {
  uint32_t barriers;  // 2 kStages
  int slot = 0, phase = 0;
  __device__ __forceinline__ uint32_t full() const { return barriers + slot * 8; }
  __device__ __forceinline__ uint32_t empty() const { return barriers + (kStages + slot) * 8; }
  __device__ __forceinline__ void next() {
    if (++slot == kStages) slot = 0, phase ^= 1;
  }
  // By the whole block; a barrier must follow.
  __device__ __forceinline__ void init(int warps) const {
    const int i = static_cast<int>(threadIdx.x);
    if (i < 2 * kStages) barrier_init(barriers + i * 8, i < kStages ? kCopiers : warps);
  }
  // load(slot) starts this copying thread's copies of the next stage; called `count` times.
  template <class Load>
  __device__ __forceinline__ void fill(int count, const Load& load) {
#pragma unroll 1
    for (int s = 0; s < count; ++s, next()) {
      barrier_wait(empty(), phase + 1);
      load(slot);
      barrier_arrive_after_copies(full());
    }
    cp_async_commit();
    cp_async_wait<0>();
  }
  __device__ __forceinline__ void wait_full() const {
    barrier_wait(full(), phase);
    publish_to_products();
  }
  // By a whole warp.
  __device__ __forceinline__ void leave() {
    if (threadIdx.x % kWarp == 0) barrier_arrive(empty());
    next();
  }
};

// y = x under the masks of the rows g and g + 8 (words): registers of mma's left operand for 64 features. Pair q + 4 t of half
// a word has the bits 3 + 4 t and 19 + 4 t once it is shifted by 3 - q: signs of bytes for odd t, four places on for even ones.
__device__ __forceinline__ void drop(uint32_t (&y)[4][4], const uint32_t (&x)[4][4], const uint2 (&words)[2], int q) {
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int k = 0; k < 4; k += 2) {
      const uint32_t odd = (k < 2 ? words[half].x : words[half].y) << (3 - q), even = odd << 4;
      y[k][half] = x[k][half] & spread_low_signs(even);
      y[k][half + 2] = x[k][half + 2] & spread_low_signs(odd);
      y[k + 1][half] = x[k + 1][half] & spread_signs(even);
      y[k + 1][half + 2] = x[k + 1][half + 2] & spread_signs(odd);
    }
}

// The block's sums go through shared memory, where the stages were, row by row; those of a tile's other blocks are read there.
template <int kAdapters>
struct Sums {
  using C = Config<kAdapters>;
  static constexpr int kPitch = kAdapters * kSliceRanks + 8;  // floats: eight rows and four lanes meet 32 banks
  static_assert(kRows * kPitch * 4 <= C::kStages * C::kStageBytes);
  const FwdArgs& p;
  float *values, *pooled;
  int64_t first;

  __device__ __forceinline__ void put(const float (&acc)[kAdapters][8][4]) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, row = static_cast<int>(threadIdx.x) / kWarp * 16 + lane / 4;
    float* to = values + row * kPitch + 2 * (lane % 4);
#pragma unroll
    for (int i = 0; i < kAdapters * 16; ++i)
      *reinterpret_cast<float2*>(to + i % 2 * 8 * kPitch + i / 2 * 8) =
          make_float2(acc[i / 16][i / 2 % 8][i % 2 * 2], acc[i / 16][i / 2 % 8][i % 2 * 2 + 1]);
  }
  // A pair of blocks adds up in shared memory: this block the rows [begin, end).
  __device__ __forceinline__ int begin() const { return p.paired ? static_cast<int>(blockIdx.y) % 2 * (kRows / 2) : 0; }
  __device__ __forceinline__ int end() const {
    return static_cast<int>(min(int64_t{begin() + (p.paired ? kRows / 2 : kRows)}, p.rows - first));
  }
  __device__ __forceinline__ float4 total(const float* of) const {
    return p.paired ? sum_of_pair(of) : *reinterpret_cast<const float4*>(of);
  }
  // For the second kernel.
  __device__ __forceinline__ void leave() const {
    constexpr int kWidth = kPartialWidth<kAdapters>, kQuads = kWidth / 4;
    float* to = p.partial + (int64_t{p.paired ? blockIdx.y / 2 : blockIdx.y} * p.rows + first) * kWidth;
#pragma unroll 2
    for (int i = begin() * kQuads + static_cast<int>(threadIdx.x); i < end() * kQuads; i += kThreads) {
      const int row = i / kQuads, j = i % kQuads * 4;
      *reinterpret_cast<float4*>(to + row * kWidth + j) =
          total(j < kAdapters * kSliceRanks ? values + row * kPitch + j
                                            : pooled + row * C::kPitch + j - kAdapters * kSliceRanks);
    }
  }
  // u and px.
  __device__ __forceinline__ void finish() const {
    constexpr int kQuads = kAdapters * 16, kAtOnce = kThreads / kQuads;  // of a row; rows
    const int begin = this->begin(), end = this->end(), thread = static_cast<int>(threadIdx.x);
    if (p.pool) {
      const float inverse = 1 / static_cast<float>(p.map.slice);
#pragma unroll 2
      for (int i = begin * 16 + thread; i < end * 16; i += kThreads) {
        float* at = pooled + i / 16 * C::kPitch + i % 16 * 4;  // only this block reads the rows of its share
        const float4 sum = total(at);
        *reinterpret_cast<float4*>(at) =
            make_float4(sum.x * inverse, sum.y * inverse, sum.z * inverse, sum.w * inverse);
      }
      meet(1, kThreads);
    }
    const int m = thread % kQuads / 16, j = thread % 16 * 4;
    const RankSlice& slice = p.slice[m];
    const int width = thread < kAtOnce * kQuads ? slice.width - j : 0;
    const float beta1 = p.px && slice.beta1 && width > 0 ? *slice.beta1 : 0.0f;
    int group[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) group[e] = p.map.group(min(slice.first + j + e, p.rank - 1));
    if (width > 0) {
#pragma unroll 2
      for (int row = begin + thread / kQuads; row < end; row += kAtOnce) {
        const float4 sum = total(values + row * kPitch + m * kSliceRanks + j);
        float value[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          value[e] *= p.mask.scale;
          if (beta1 != 0 && e < width)
            value[e] += beta1 * (p.pool ? pooled[row * C::kPitch + group[e]]
                                        : to_f(p.px[(first + row) * p.px_stride + slice.first + j + e]));
        }
        __nv_bfloat16* to = p.u + (first + row) * p.u_stride + slice.column + j;
        if (reinterpret_cast<uintptr_t>(to) % 8 == 0 && width >= 4) {
          *reinterpret_cast<uint2*>(to) = make_uint2(pack_bf16(value[0], value[1]), pack_bf16(value[2], value[3]));
        } else {
#pragma unroll
          for (int e = 0; e < 4; ++e)
            if (e < width) to[e] = from_f<__nv_bfloat16>(value[e]);
        }
      }
    }
    if (!p.store_pool) return;
    for (int k = thread % kWarp; k < p.rank; k += kWarp) {
      const int of = p.map.group(k);
      for (int row = begin + thread / kWarp; row < end; row += kThreads / kWarp)
        p.px[(first + row) * p.px_stride + k] = from_f<__nv_bfloat16>(pooled[row * C::kPitch + of]);
    }
  }
};

template <int kAdapters>
__device__ __forceinline__ void multiply(const FwdArgs& p, unsigned char* memory,
                                         StageRing<Config<kAdapters>::kStages> ring, int64_t first, int first_feature,
                                         int count) {
  using C = Config<kAdapters>;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, g = lane / 4, q = lane % 4;
  const int warp_row = static_cast<int>(threadIdx.x) / kWarp * 16;
  const uint32_t stages = smem_address(memory);
  float* pooled = reinterpret_cast<float*>(memory + C::kStages * C::kStageBytes);
  for (int i = lane; i < 16 * C::kPitch; i += kWarp) pooled[warp_row * C::kPitch + i] = 0;
  __syncwarp();
  float acc[kAdapters][8][4] = {};
  uint32_t masked[kAdapters][4][4];
  RowSums<C::kPitch> sums;
  sums.sums = pooled + warp_row * C::kPitch;
  int base = p.slice_of(first_feature), begin = first_feature;  // of the window of slices; of the stage
  const uint32_t x_row = warp_row / 64 * kPanelBytes + (warp_row % 64 + lane % 16) * 128;

  wait_for_previous_kernel();
#pragma unroll 1
  for (int s = 0; s < count; ++s, begin += kDepth) {
    ring.wait_full();
    const uint32_t stage = stages + ring.slot * C::kStageBytes;
    const unsigned char* words = memory + ring.slot * C::kStageBytes + C::kXBytes + kAdapters * kPanelBytes;
    const uint64_t panels = panel_along(stage + C::kXBytes);
    uint32_t x[4][4];
#pragma unroll
    for (int k = 0; k < 4; ++k) ldmatrix_x4(x[k], stage + x_row + ((2 * k + lane / 16) ^ (lane & 7)) * 16);
    const auto start = [&](int m) {
      const uint2* at = reinterpret_cast<const uint2*>(words + m * C::kWordBytes) + warp_row + g;
      const uint2 rows[2] = {at[0], at[8]};
      drop(masked[m], x, rows, q);
      operands_are_there(masked[m]);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; ++k)
        wgmma_registers<false>(acc[m], masked[m][k], panels + (m * kPanelBytes + k * 32) / 16);
      wgmma_commit();
    };
#pragma unroll
    for (int m = 0; m < kAdapters; ++m) start(m);
    if (p.pool) {  // beside the products
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
    ring.leave();
  }
  if (p.pool) sums.flush(base, min(p.slice_of(begin - 1), p.map.groups - 1));
  meet(1, kThreads);  // nobody needs the stages any more
  const Sums<kAdapters> result{p, reinterpret_cast<float*>(memory), pooled, first};
  result.put(acc);
  if (p.paired) meet_cluster();
  else meet(1, kThreads);
  let_next_kernel_begin();
  if (p.splits > (p.paired ? 2 : 1)) result.leave();
  else result.finish();
  if (p.paired) meet_cluster_again();  // nobody leaves while others read
}

template <int kAdapters>
__global__ void __launch_bounds__(kThreads + kCopiers, 1) lora_dropout_fwd_sm90_kernel(FwdArgs p) {
  using C = Config<kAdapters>;
  extern __shared__ unsigned char unaligned_memory[];
  __shared__ uint64_t barriers[2 * C::kStages];
  unsigned char* memory = unaligned_memory + (1024 - smem_address(unaligned_memory) % 1024) % 1024;
  const int64_t first = int64_t{blockIdx.x} * kRows;
  const int first_feature = static_cast<int>(blockIdx.y) * p.features_per_split;
  const int count = max(min(p.cols - first_feature, p.features_per_split) + kDepth - 1, 0) / kDepth;
  StageRing<C::kStages> ring{smem_address(barriers)};
  ring.init(kThreads / kWarp);
  __syncthreads();
  if (threadIdx.x >= kThreads) {
    give_up_registers<kCopierRegisters>();
    const int thread = static_cast<int>(threadIdx.x) - kThreads;
    const uint32_t stages = smem_address(memory);
    wait_for_previous_kernel();
    StageLoader<kAdapters> loader(p, first, first_feature, thread);
    ring.fill(count, [&](int slot) { loader.load(stages + slot * C::kStageBytes, thread); });
    if (p.paired) meet_cluster(), meet_cluster_again();
  } else {
    take_registers<kMultiplierRegisters>();
    multiply<kAdapters>(p, memory, ring, first, first_feature, count);
  }
}

template <int kAdapters>
void launch(const FwdArgs& p, cudaStream_t stream) {
  using C = Config<kAdapters>;
  allow_shared_bytes(lora_dropout_fwd_sm90_kernel<kAdapters>, C::kBytes);
  launch_early_in_clusters(lora_dropout_fwd_sm90_kernel<kAdapters>,
                           dim3(static_cast<unsigned>(ceil_div(p.rows, kRows)), static_cast<unsigned>(p.splits)),
                           dim3(kThreads + kCopiers), C::kBytes, dim3(1, p.paired ? 2 : 1), stream, p);
}

// Times in us, a stage taken for one. A block that starts anew waits for about four. An even number of blocks to a tile makes
// pairs, whose sums are one; for several sums a second kernel is needed, and a float takes 8 bytes of about 4 MB a us.
void choose_splits(FwdArgs& p, int sm_count) {
  const int64_t tiles = ceil_div(p.rows, kRows), stages = ceil_div(p.cols, kDepth);
  const int64_t floats = p.rows * (p.slices * kSliceRanks + kFusedGroups), most = kPartialBytes / (floats * 4);
  int64_t best = 1;
  double best_time = 0;
  for (int64_t s = 1; s <= stages && (s <= 2 || s / 2 <= most); ++s) {
    const int64_t sums = s % 2 == 0 ? s / 2 : s;
    if (sums > std::max(most, int64_t{1})) continue;
    const double time = static_cast<double>(ceil_div(tiles * s, sm_count) * (ceil_div(stages, s) + 4)) +
                        (s % 2 == 0 ? 1 : 0) + (sums > 1 ? 3 + static_cast<double>(sums * floats) * 8 / 4e6 : 0);
    if (s == 1 || time < best_time) best = s, best_time = time;
  }
  p.features_per_split = static_cast<int>(ceil_div(stages, best)) * kDepth;
  p.splits = static_cast<int>(best), p.paired = best % 2 == 0;
}

}  // namespace

void lora_dropout_fwd_sm90(FwdArgs& p, int sm_count, cudaStream_t stream) {
  choose_splits(p, sm_count);
  if (p.slices == 1) launch<1>(p, stream);
  else if (p.slices == 2) launch<2>(p, stream);
  else launch<3>(p, stream);
  if (p.paired) p.splits /= 2;  // sums that are left
}

}  // namespace irq
