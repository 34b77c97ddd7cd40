// What:   lora_dropout_dx.cu on the warpgroup products of sm_90a.
// Math:   dx = beta dx + s sum_m mask_m * (du_m A_m), F32 sums, s = 1 / (1 - p), rounded once.
// Shapes: as there.
// Cost:   as there. N = 8192, beta = 0: (h = 4096, R = 192) 43 us measured, R = 128 37, R = 64 29, (11008, 64) 75 us; beta = 1 and
//         R = 192: 91 us. N = 2048, beta = 0: 19, 16, 11 and 21 us.
// Tricky: A warpgroup owns 64 features, whose A stays in shared memory for all of the block's rows, and takes 64 rows of du at
//         a time. The columns of A are permuted on their way in, so that a lane's results are eight neighbouring features of a
//         row: one shift of a word of mask bits and one 16-byte access. Of two adapters, one's product runs while the other's is
//         masked; three have registers for one product at a time. A single adapter's results are masked as bf16, in pairs.
#include "kernels/dependent_launch.cuh"
#include "kernels/lora_dropout_dx.cuh"
#include "kernels/sm90.cuh"

namespace irq {

using namespace lora_dx;

namespace {

constexpr int kGroups = 4, kThreads = 128 * kGroups;  // a warpgroup for 64 features
constexpr int kRows = 64, kStages = 3, kPanelBytes = 64 * 128;
constexpr int kWordBytes = kRows * kGroups * 8;  // of one adapter's masks in a stage
static_assert(kSliceRanks == 64 && kThreads == kRows * 8);

template <int kSlices>
struct Config {
  static constexpr int kDuBytes = kSlices * kPanelBytes;  // of each adapter
  static constexpr int kStageBytes = kDuBytes + (kSlices * kWordBytes + 1023) / 1024 * 1024;
  static constexpr int kBytes = 1024 + kSlices * kGroups * kPanelBytes + kStages * kStageBytes;  // A, then the stages
  static_assert(kBytes <= 227 * 1024);
};

// A of one adapter for the group's 64 features: rows are ranks, and of 32 features, feature 8 q + 2 j + e is column 8 j + 2 q + e.
__device__ __forceinline__ void load_adapter(unsigned char* panel, const DxArgs& p, const RankSlice& slice,
                                             int feature) {
  for (int i = static_cast<int>(threadIdx.x) % 128; i < kSliceRanks * 8; i += 128) {
    const int rank = i / 8, chunk = i % 8, q = chunk % 4;
    uint4 v{};
    if (rank < slice.width && feature + chunk * 8 < p.cols)
      v = *reinterpret_cast<const uint4*>(p.a + (slice.column + rank) * p.a_stride + feature + chunk * 8);
    const uint32_t word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int j = 0; j < 4; ++j)
      *reinterpret_cast<uint32_t*>(panel + panel_byte(rank, chunk / 4 * 4 + j) + q * 4) = word[j];
  }
}

// A thread's share of every stage: a chunk of a row of each du and the words of two rows. Its addresses move along with the
// stages; those of copies that are not valid are never used.
template <int kSlices>
struct StageLoader {
  using C = Config<kSlices>;
  static constexpr int kWordThreads = kGroups * kRows / 2;  // of an adapter
  static_assert(kSlices * kWordThreads <= kThreads);
  const __nv_bfloat16* du[kSlices];
  const uint2* words;
  int rows, word_rows;  // left from the next stage's first one on
  uint32_t wide;        // the adapters that have this chunk
  uint32_t to, words_to;

  __device__ StageLoader(const DxArgs& p, int64_t first, int first_block) {
    const int thread = static_cast<int>(threadIdx.x), row = thread / 8, chunk = thread % 8;
    const int left = static_cast<int>(min(p.rows - first, int64_t{1} << 30));
    rows = left - row, wide = 0;
#pragma unroll
    for (int m = 0; m < kSlices; ++m) {
      du[m] = kept(p.du + (first + row) * p.du_stride + p.slice[m].column + chunk * 8);
      if (chunk * 8 < p.slice[m].width) wide |= 1u << m;
    }
    to = panel_byte(row, chunk);
    const int m = thread / kWordThreads, block = first_block + thread % kWordThreads / (kRows / 2);
    const int r = thread % (kRows / 2) * 2;
    words = p.mask.bits, word_rows = 0;
    if (m < kSlices && block < p.mask.blocks)
      words = kept(p.mask.block(p.slice[m].adapter, block) + first + r), word_rows = left - r;
    words_to = C::kDuBytes + thread * 16;
  }
  __device__ __forceinline__ void load(uint32_t stage, int64_t du_stride) {
    const uint32_t copies = rows > 0 ? wide : 0;  // du of dead rows counts nowhere: they have no mask bits
#pragma unroll
    for (int m = 0; m < kSlices; ++m) {
      cp_async_16(stage + to + m * kPanelBytes, du[m], copies & 1u << m);
      du[m] += kRows * du_stride;
    }
    if (threadIdx.x < kSlices * kWordThreads) cp_async_16(stage + words_to, words, word_rows > 0);
    words += kRows, rows -= kRows, word_rows -= kRows;
  }
};

// Results of 64 rows and 64 features: tile 4 b + j holds, of the b-th 32 features, 8 q + 2 j + {0, 1}.
// sum += mask * acc; words: of the rows g and g + 8.
__device__ __forceinline__ void add_masked(float (&sum)[8][4], const float (&acc)[8][4], const uint2 (&words)[2],
                                           int q) {
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const uint32_t bits = chunk_bits(b == 0 ? words[half].x : words[half].y, q);
#pragma unroll
      for (int j = 0; j < 4; ++j)
        add_kept(sum[4 * b + j][2 * half], sum[4 * b + j][2 * half + 1], acc[4 * b + j][2 * half],
                 acc[4 * b + j][2 * half + 1], bits, j);
    }
}

// The part of tiles 4 b to 4 b + 3 in row g + 8 half, scaled, as bf16.
__device__ __forceinline__ void put_row(const DxArgs& p, __nv_bfloat16* out, const float (&sum)[8][4], int half,
                                        int b) {
  float x[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = sum[4 * b + i / 2][2 * half + i % 2] * p.mask.scale;
  if (p.beta != 0) {
    const auto old = *reinterpret_cast<const Pack<__nv_bfloat16>*>(out);
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] += p.beta * to_f(old.v[i]);
  }
  *reinterpret_cast<uint4*>(out) =
      make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7]));
}

// The same of one adapter's product with nothing to add: its mask zeroes pairs of results.
__device__ __forceinline__ void put_masked_row(const DxArgs& p, __nv_bfloat16* out, const float (&acc)[8][4],
                                               uint2 words, int q, int half, int b) {
  uint32_t x[4];
#pragma unroll
  for (int j = 0; j < 4; ++j)
    x[j] = pack_bf16(acc[4 * b + j][2 * half] * p.mask.scale, acc[4 * b + j][2 * half + 1] * p.mask.scale);
  drop_chunk(x, chunk_bits(b == 0 ? words.x : words.y, q));
  *reinterpret_cast<uint4*>(out) = make_uint4(x[0], x[1], x[2], x[3]);
}

template <int kSlices>
__global__ void __launch_bounds__(kThreads, 1) lora_dropout_dx_sm90_kernel(DxArgs p) {
  using C = Config<kSlices>;
  constexpr int kProducts = kSlices == 2 ? 2 : 1;  // in registers at a time
  extern __shared__ unsigned char unaligned_memory[];
  unsigned char* memory = unaligned_memory + (1024 - smem_address(unaligned_memory) % 1024) % 1024;
  const int block = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x), group = thread / 128;
  const int64_t first = int64_t{block / p.feature_blocks} * p.rows_per_block;
  const int first_block = block % p.feature_blocks * kGroups, feature = (first_block + group) * 64;
  const int lane = thread % kWarp, q = lane % 4, warp_row = thread % 128 / kWarp * 16 + lane / 4;
  const uint32_t adapters = smem_address(memory) + group * kSlices * kPanelBytes;
  const uint32_t stages = smem_address(memory) + kGroups * kSlices * kPanelBytes;
  const int count = static_cast<int>((min(p.rows - first, int64_t{p.rows_per_block}) + kRows - 1) / kRows);
  wait_for_previous_kernel();
  StageLoader<kSlices> loader(p, first, first_block);
  int free_slot = 0, slot = 0;
  const auto load = [&](int s) {
    if (s < count) loader.load(stages + free_slot * C::kStageBytes, p.du_stride);
    cp_async_commit();
    free_slot = free_slot + 1 == kStages ? 0 : free_slot + 1;
  };
#pragma unroll 1
  for (int s = 0; s < kStages - 1; ++s) load(s);
#pragma unroll
  for (int m = 0; m < kSlices; ++m) load_adapter(memory + (group * kSlices + m) * kPanelBytes, p, p.slice[m], feature);
  __nv_bfloat16* out = p.dx + (first + warp_row) * p.dx_stride + feature + q * 8;
  int rows = static_cast<int>(min(p.rows - first, int64_t{1} << 30)) - warp_row;
  const bool inside[2] = {feature + q * 8 < p.cols, feature + 32 + q * 8 < p.cols};

#pragma unroll 1
  for (int s = 0; s < count; ++s) {
    cp_async_wait<kStages - 2>();
    publish_to_products();
    __syncthreads();  // stage s is there, and the products of stage s - 1, whose place the next load takes, are done
    const uint64_t du = panel_along(stages + slot * C::kStageBytes), a = panel_down(adapters, 0);
    const unsigned char* words =
        memory + C::kBytes - 1024 - kStages * C::kStageBytes + slot * C::kStageBytes + C::kDuBytes;
    slot = slot + 1 == kStages ? 0 : slot + 1;
    float acc[kProducts][8][4];
    const auto start = [&](int m) {
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kSliceRanks / 16; ++k)
        wgmma_along_down(acc[m % kProducts], du + (m * kPanelBytes + k * 32) / 16,
                         a + (m * kPanelBytes + k * 2048) / 16, k > 0);
      wgmma_commit();
    };
    const auto words_of = [&](int m, int half) {
      return reinterpret_cast<const uint2*>(words + m * kWordBytes)[group * kRows + warp_row + 8 * half];
    };
    const auto put = [&](const auto& row) {
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int b = 0; b < 2; ++b)
          if (8 * half < rows && inside[b]) row(out + half * 8 * p.dx_stride + b * 32, half, b);
    };
    start(0);
    load(s + kStages - 1);  // beside the product
    if constexpr (kSlices == 1) {
      const uint2 bits[2] = {words_of(0, 0), words_of(0, 1)};
      wgmma_wait<0>();
      results_are_there(acc[0]);
      if (p.beta == 0) {
        put([&](__nv_bfloat16* to, int half, int b) { put_masked_row(p, to, acc[0], bits[half], q, half, b); });
      } else {
        float sum[8][4] = {};
        add_masked(sum, acc[0], bits, q);
        put([&](__nv_bfloat16* to, int half, int b) { put_row(p, to, sum, half, b); });
      }
    } else {
      float sum[8][4] = {};
#pragma unroll
      for (int m = 0; m < kSlices; ++m) {
        if (kProducts == 2 && m + 1 < kSlices) {
          start(m + 1);
          wgmma_wait<1>();
        } else {
          wgmma_wait<0>();
        }
        results_are_there(acc[m % kProducts]);
        const uint2 bits[2] = {words_of(m, 0), words_of(m, 1)};
        add_masked(sum, acc[m % kProducts], bits, q);
        if (kProducts == 1 && m + 1 < kSlices) start(m + 1);
      }
      put([&](__nv_bfloat16* to, int half, int b) { put_row(p, to, sum, half, b); });
    }
    out += kRows * p.dx_stride, rows -= kRows;
  }
  cp_async_wait<0>();
}

template <int kSlices>
void launch(DxArgs p, int sm_count, cudaStream_t stream) {
  using C = Config<kSlices>;
  const int64_t places = std::max<int64_t>(1, sm_count / p.feature_blocks);  // one wave, if it can be
  p.rows_per_block = static_cast<int>(ceil_div(ceil_div(p.rows, places), kRows) * kRows);
  const auto blocks = static_cast<unsigned>(ceil_div(p.rows, p.rows_per_block) * p.feature_blocks);
  allow_shared_bytes(lora_dropout_dx_sm90_kernel<kSlices>, C::kBytes);
  launch_early(lora_dropout_dx_sm90_kernel<kSlices>, dim3(blocks), dim3(kThreads), C::kBytes, stream, p);
}

}  // namespace

void lora_dropout_dx_sm90(DxArgs p, int slices, int sm_count, cudaStream_t stream) {
  if (slices == 1) launch<1>(p, sm_count, stream);
  else if (slices == 2) launch<2>(p, sm_count, stream);
  else launch<3>(p, sm_count, stream);
}

}  // namespace irq
