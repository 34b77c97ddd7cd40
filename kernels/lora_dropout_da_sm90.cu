// What:   lora_dropout_da.cu on the warpgroup products of sm_90a.
// Math:   da_m = beta da_m + s sum_n du_m[n] (mask_m[n] x[n])^T, F32 sums, s = 1 / (1 - p) after the sum.
// Shapes: as there.
// Cost:   x once from DRAM, du once per 128 features (256 for one adapter) from L2. N = 8192, (h = 4096, R = 192): 67 + 13 MB and
//         100 MB, two sums in memory 13 MB: 46 us measured; (4096, 128) 41; (4096, 64) 35; (11008, 64) 73 us (the second kernel
//         alone 5 to 7). N = 2048: 22, 20, 19 and 25 us.
// Tricky: all adapters read one tile of x. ldmatrix turns it on its way to registers, which are the products' left operand: features
//         are rows, rows of x the terms of the sum. A register holds two rows of x, so the bytes of their words are put side by
//         side first. Row ranges are blocks; each two of them are a cluster and add up in shared memory, in order. Clusters
//         of 4 and 8 took up to 83 us where pairs took 50, and a warpgroup that only copies gained nothing here.
#include "kernels/dependent_launch.cuh"
#include "kernels/lora_dropout_da.cuh"
#include "kernels/sm90.cuh"

namespace irq {

using lora_da::DaArgs;

namespace {

constexpr int kRows = 64, kPanelBytes = kRows * 128;  // of a stage
static_assert(kSliceRanks == 64);

template <int kAdapters>
struct Config {
  static constexpr int kGroups =
      kAdapters == 1 ? 4 : 2;  // warpgroups, each for 64 features: as many as their sums let in
  static constexpr int kThreads = 128 * kGroups, kFeatures = 64 * kGroups, kStages = kAdapters == 2 ? 5 : 4;
  static constexpr int kXBytes = kGroups * kPanelBytes, kDuBytes = kAdapters * kPanelBytes;
  static constexpr int kWordBytes = kGroups * kRows * 8;  // of one adapter's masks
  static constexpr int kStageBytes = kXBytes + kDuBytes + kAdapters * kWordBytes;
  static constexpr int kPitch =
      kFeatures + 4;  // floats of a rank's sums: eight features and four pairs of ranks meet 32 banks
  static constexpr int kBytes = 1024 + kStages * kStageBytes;
  static_assert(kStageBytes % 1024 == 0 && kBytes <= 227 * 1024);
  static_assert(kAdapters * kSliceRanks * kPitch * 4 <= kStages * kStageBytes);
};

// A thread's share of every stage: one chunk of four rows of x, one of one or two rows of each du, the words of two rows. Its
// addresses move along with the stages; those of copies that are not valid are never used.
template <int kAdapters>
struct StageLoader {
  using C = Config<kAdapters>;
  static constexpr int kDuPasses = kRows * 8 / C::kThreads, kDuStep = C::kThreads / 8;
  static constexpr int kWordThreads = C::kGroups * kRows / 2;  // of an adapter
  static_assert(kAdapters * kWordThreads <= C::kThreads);
  const __nv_bfloat16 *x, *du[kAdapters];
  const uint2* words;
  const int* positions;
  int64_t x_step, du_step;       // 16 rows of x, kDuStep rows of du
  int rows, du_rows, word_rows;  // left from the next stage's first one on
  int position[kDuPasses];       // of the next stage's rows: du of dead ones may be anything
  uint32_t wide;                 // the adapters that have this chunk
  uint32_t to, du_to, words_to;

  __device__ StageLoader(const DaArgs& p, int64_t first, int feature) {
    const int thread = static_cast<int>(threadIdx.x);
    const int left = static_cast<int>(min(p.rows - first, int64_t{1} << 30));
    const int row = thread / (8 * C::kGroups), chunk = thread % (8 * C::kGroups);
    x = kept(p.x + (first + row) * p.x_stride + feature + chunk * 8), x_step = 16 * p.x_stride;
    rows = feature + chunk * 8 < p.cols ? left - row : 0;
    to = chunk / 8 * kPanelBytes + panel_byte(row, chunk % 8);
    const int du_row = thread / 8, du_chunk = thread % 8;
    du_rows = left - du_row, du_step = kDuStep * p.du_stride, wide = 0;
#pragma unroll
    for (int m = 0; m < kAdapters; ++m) {
      du[m] = kept(p.du + (first + du_row) * p.du_stride + p.slice[m].column + du_chunk * 8);
      if (du_chunk * 8 < p.slice[m].width) wide |= 1u << m;
    }
    du_to = C::kXBytes + panel_byte(du_row, du_chunk);
    positions = kept(p.mask.positions + first + du_row);
    look_ahead();
    const int m = thread / kWordThreads, block = feature / 64 + thread % kWordThreads / (kRows / 2);
    const int r = thread % (kRows / 2) * 2;
    words = p.mask.bits, word_rows = 0;
    if (m < kAdapters && block < p.mask.blocks)
      words = kept(p.mask.block(p.slice[m].adapter, block) + first + r), word_rows = left - r;
    words_to = C::kXBytes + C::kDuBytes + thread * 16;
  }
  __device__ __forceinline__ void look_ahead() {
#pragma unroll
    for (int i = 0; i < kDuPasses; ++i) position[i] = i * kDuStep < du_rows ? positions[i * kDuStep] : -1;
  }
  __device__ __forceinline__ void load(uint32_t stage) {
    const __nv_bfloat16* from = x;
#pragma unroll
    for (int i = 0; i < 4; ++i, from += x_step) cp_async_16(stage + to + i * 16 * 128, from, i * 16 < rows);
    x = from;
#pragma unroll
    for (int m = 0; m < kAdapters; ++m)
#pragma unroll
      for (int i = 0; i < kDuPasses; ++i, du[m] += du_step)
        cp_async_16(stage + du_to + m * kPanelBytes + i * kDuStep * 128, du[m], position[i] >= 0 && (wide & 1u << m));
    if (threadIdx.x < kAdapters * kWordThreads) cp_async_16(stage + words_to, words, word_rows > 0);
    words += kRows, positions += kRows, rows -= kRows, du_rows -= kRows, word_rows -= kRows;
    look_ahead();
  }
};

// y = x under the masks of its rows, for 16 features and 64 rows: registers of mma's left operand. words: of row 2 q, the half
// that has the features. byte: which one of it, twice for a row's neighbour; shift brings feature g + 8 to its sign.
__device__ __forceinline__ void drop(uint32_t (&y)[4][4], const uint32_t (&x)[4][4], const uint32_t* words,
                                     uint32_t byte, int shift) {
#pragma unroll
  for (int k = 0; k < 4; ++k)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t* at = words + 2 * (16 * k + 8 * half);
      const uint32_t high = __byte_perm(at[0], at[2], byte) << shift;
      y[k][2 * half] = x[k][2 * half] & spread_signs(high << 4);
      y[k][2 * half + 1] = x[k][2 * half + 1] & spread_signs(high);
    }
}

// The block's sums in shared memory, a rank after the other, on their way out.
template <int kAdapters>
struct Sums {
  using C = Config<kAdapters>;
  static constexpr int kQuads = C::kFeatures / 4;
  const DaArgs& p;
  float* values;
  int feature;

  __device__ __forceinline__ void put(const float (&acc)[kAdapters][8][4]) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, g = lane / 4, q = lane % 4;
    float* to = values + 2 * q * C::kPitch + static_cast<int>(threadIdx.x) / kWarp * 16 + g;
#pragma unroll
    for (int i = 0; i < kAdapters * 32; ++i)
      to[(i / 4 * 8 + i % 2) * C::kPitch + i / 2 % 2 * 8] = acc[i / 32][i / 4 % 8][i % 4];
  }
  // To da, or to `partial` where several sums are left. A pair of blocks adds up in shared memory, each half of the ranks.
  __device__ __forceinline__ void give_out() const {
    const int ranks = kAdapters * kSliceRanks / (p.paired ? 2 : 1);
    const int begin = p.paired ? static_cast<int>(blockIdx.y) % 2 * ranks : 0;
    const bool leaves = p.splits > (p.paired ? 2 : 1);
    float* partial = p.partial + int64_t{p.paired ? blockIdx.y / 2 : blockIdx.y} * p.ranks * p.cols;
#pragma unroll 2
    for (int i = begin * kQuads + static_cast<int>(threadIdx.x); i < (begin + ranks) * kQuads; i += C::kThreads) {
      const int j = i / kQuads, f = i % kQuads * 4, r = j % kSliceRanks;
      const RankSlice& slice = p.slice[j / kSliceRanks];
      if (r >= slice.width || feature + f >= p.cols) continue;
      const float* at = values + j * C::kPitch + f;
      const float4 sum = p.paired ? sum_of_pair(at) : *reinterpret_cast<const float4*>(at);
      if (leaves) {
        *reinterpret_cast<float4*>(partial + int64_t{slice.column + r} * p.cols + feature + f) = sum;
        continue;
      }
      float* to = p.da + (slice.column + r) * p.da_stride + feature + f;
      float value[4] = {p.mask.scale * sum.x, p.mask.scale * sum.y, p.mask.scale * sum.z, p.mask.scale * sum.w};
      if (p.beta != 0) {
#pragma unroll
        for (int e = 0; e < 4; ++e) value[e] += p.beta * to[e];
      }
      if (p.vector) *reinterpret_cast<float4*>(to) = make_float4(value[0], value[1], value[2], value[3]);
      else
#pragma unroll
        for (int e = 0; e < 4; ++e) to[e] = value[e];
    }
  }
};

// Block (features, range of rows).
template <int kAdapters>
__global__ void __launch_bounds__(Config<kAdapters>::kThreads, 1) lora_dropout_da_sm90_kernel(DaArgs p) {
  using C = Config<kAdapters>;
  extern __shared__ unsigned char unaligned_memory[];
  unsigned char* memory = unaligned_memory + (1024 - smem_address(unaligned_memory) % 1024) % 1024;
  const int feature = static_cast<int>(blockIdx.x) * C::kFeatures;
  const int64_t first = int64_t{blockIdx.y} * p.rows_per_split;
  const int count =
      static_cast<int>(max(min(p.rows - first, int64_t{p.rows_per_split}) + kRows - 1, int64_t{0}) / kRows);
  const int lane = static_cast<int>(threadIdx.x) % kWarp, g = lane / 4, q = lane % 4;
  const int group = static_cast<int>(threadIdx.x) / 128, warp = static_cast<int>(threadIdx.x) / kWarp % 4;
  const uint32_t stages = smem_address(memory);

  wait_for_previous_kernel();
  StageLoader<kAdapters> loader(p, first, feature);
  int free_slot = 0, slot = 0;
  const auto load = [&](int s) {
    if (s < count) loader.load(stages + free_slot * C::kStageBytes);
    cp_async_commit();
    free_slot = free_slot + 1 == C::kStages ? 0 : free_slot + 1;
  };
#pragma unroll 1
  for (int s = 0; s < C::kStages - 1; ++s) load(s);
  float acc[kAdapters][8][4] = {};
  uint32_t masked[kAdapters][4][4];
  const uint32_t x_at = group * kPanelBytes + panel_byte(lane % 8 + lane / 16 * 8, 2 * warp + lane / 8 % 2);
  const uint32_t words_at = C::kXBytes + C::kDuBytes + group * kRows * 8 + 2 * q * 8 + warp / 2 * 4;
  const uint32_t from_byte = g % 2 * 2 + warp % 2, byte = from_byte * 0x11 + (from_byte + 4) * 0x1100;

#pragma unroll 1
  for (int s = 0; s < count; ++s) {
    cp_async_wait<C::kStages - 2>();
    publish_to_products();
    __syncthreads();  // stage s is there, and the products of stage s - 1, whose place the next load takes, are done
    const uint32_t stage = stages + slot * C::kStageBytes;
    const unsigned char* words = memory + slot * C::kStageBytes + words_at;
    const uint64_t panels = panel_down(stage + C::kXBytes, 0);
    slot = slot + 1 == C::kStages ? 0 : slot + 1;
    uint32_t x[4][4];
#pragma unroll
    for (int k = 0; k < 4; ++k) ldmatrix_x4_trans(x[k], stage + x_at + k * 16 * 128);
#pragma unroll
    for (int m = 0; m < kAdapters; ++m) {
      drop(masked[m], x, reinterpret_cast<const uint32_t*>(words + m * C::kWordBytes), byte, 3 - g / 2);
      operands_are_there(masked[m]);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; ++k) wgmma_registers(acc[m], masked[m][k], panels + (m * kPanelBytes + k * 2048) / 16);
      wgmma_commit();
    }
    load(s + C::kStages - 1);  // beside the products
    wgmma_wait<0>();  // here, not later: the compiler keeps products apart whose end it does not see in the loop
#pragma unroll
    for (int m = 0; m < kAdapters; ++m) results_are_there(acc[m]);
  }
  cp_async_wait<0>();
  __syncthreads();
  const Sums<kAdapters> result{p, reinterpret_cast<float*>(memory), feature};
  result.put(acc);
  if (p.paired) meet_cluster();
  else __syncthreads();
  let_next_kernel_begin();
  result.give_out();
  if (p.paired) meet_cluster_again();  // nobody leaves while others read
}

template <int kAdapters>
void launch(const DaArgs& p, cudaStream_t stream) {
  using C = Config<kAdapters>;
  allow_shared_bytes(lora_dropout_da_sm90_kernel<kAdapters>, C::kBytes);
  launch_early_in_clusters(lora_dropout_da_sm90_kernel<kAdapters>,
                           dim3(static_cast<unsigned>(ceil_div(p.cols, C::kFeatures)), static_cast<unsigned>(p.splits)),
                           dim3(C::kThreads), C::kBytes, dim3(1, p.paired ? 2 : 1), stream, p);
}

// Times in us, a stage taken for one. A block that starts anew waits for about three. An even number of row ranges makes pairs,
// whose sums are one; for several sums a second kernel is needed, and a float takes 8 bytes of about 4 MB a us.
void choose_splits(DaArgs& p, int features, int most, int sm_count) {
  const int64_t blocks = ceil_div(p.cols, features), stages = ceil_div(p.rows, kRows);
  const double floats = static_cast<double>(p.ranks) * p.cols;
  int64_t best = 1;
  double best_time = 0;
  for (int64_t s = 1; s <= stages && (s <= 2 || s / 2 <= most); ++s) {
    const int64_t sums = s % 2 == 0 ? s / 2 : s;
    if (sums > std::max(most, 1)) continue;
    const double time = static_cast<double>(ceil_div(blocks * s, sm_count) * (ceil_div(stages, s) + 3)) +
                        (s % 2 == 0 ? 1 : 0) + (sums > 1 ? 3 + static_cast<double>(sums) * floats * 8 / 4e6 : 0);
    if (s == 1 || time < best_time) best = s, best_time = time;
  }
  p.rows_per_split = static_cast<int>(ceil_div(stages, best)) * kRows;
  p.splits = static_cast<int>(best), p.paired = best % 2 == 0;
}

}  // namespace

int lora_dropout_da_sm90(DaArgs p, const std::vector<RankSlice>& slices, int most_splits, int sm_count,
                         cudaStream_t stream) {
  const size_t together = slices.size() == 4 ? 2 : std::min<size_t>(slices.size(), 3);
  choose_splits(p, together == 1 ? Config<1>::kFeatures : Config<2>::kFeatures, most_splits, sm_count);
  for (size_t i = 0; i < slices.size(); i += together) {
    const size_t count = std::min(together, slices.size() - i);
    for (size_t k = 0; k < count; ++k) p.slice[k] = slices[i + k];
    if (count == 1) launch<1>(p, stream);
    else if (count == 2) launch<2>(p, stream);
    else launch<3>(p, stream);
  }
  return p.paired ? p.splits / 2 : p.splits;
}

}  // namespace irq
