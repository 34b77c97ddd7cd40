// What:   lora_dropout_dx.cu on the warpgroup products of sm_90a.
// Math:   dx = beta dx + s sum_m mask_m * (du_m A_m), F32 sums, s = 1 / (1 - p), rounded once.
// Shapes: as there.
// Cost:   as there. N = 8192, beta = 0: (h = 4096, R = 128) 42 us measured, R = 64 31 us, (11008, 64) 77 us.
// Tricky: A warpgroup owns 64 features, whose A stays in shared memory for all of the block's rows, and takes 64 rows of du at
//         a time. The columns of A are permuted on their way in, so that a lane's results are eight neighbouring features of a
//         row: one shift of a word of mask bits and one 16-byte access. One adapter's product runs while the last one's is masked.
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

__device__ __forceinline__ void store_row(const DxArgs& p, __nv_bfloat16* out, const float (&value)[8]) {
  float x[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = value[i] * p.mask.scale;
  if (p.beta != 0) {
    const auto old = *reinterpret_cast<const Pack<__nv_bfloat16>*>(out);
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] += p.beta * to_f(old.v[i]);
  }
  *reinterpret_cast<uint4*>(out) =
      make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7]));
}

template <int kSlices>
__global__ void __launch_bounds__(kThreads, 1) lora_dropout_dx_sm90_kernel(DxArgs p) {
  using C = Config<kSlices>;
  extern __shared__ unsigned char unaligned_memory[];
  unsigned char* memory = unaligned_memory + (1024 - smem_address(unaligned_memory) % 1024) % 1024;
  const int block = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x), group = thread / 128;
  const int64_t first = int64_t{block / p.feature_blocks} * p.rows_per_block;
  const int first_block = block % p.feature_blocks * kGroups, feature = (first_block + group) * 64;
  const int lane = thread % kWarp, q = lane % 4, warp_row = thread % 128 / kWarp * 16 + lane / 4;
  const uint32_t adapters = smem_address(memory) + group * kSlices * kPanelBytes;
  const uint32_t stages = smem_address(memory) + kGroups * kSlices * kPanelBytes;
#pragma unroll
  for (int m = 0; m < kSlices; ++m) load_adapter(memory + (group * kSlices + m) * kPanelBytes, p, p.slice[m], feature);
  __syncthreads();
  const int count = p.rows_per_block / kRows;
  const auto load = [&](int s) {
    if (s < count) {
      const int row = thread / 8, chunk = thread % 8;
      const bool inside = first + s * kRows + row < p.rows;  // du of dead rows counts nowhere: they have no mask bits
      const __nv_bfloat16* from = p.du + (first + s * kRows + row) * p.du_stride + chunk * 8;
#pragma unroll
      for (int m = 0; m < kSlices; ++m) {
        const bool valid = inside && chunk * 8 < p.slice[m].width;
        cp_async_16(stages + s % kStages * C::kStageBytes + m * kPanelBytes + panel_byte(row, chunk),
                    valid ? from + p.slice[m].column : p.du, valid);
        load_words<kRows, kGroups, kThreads>(stages + s % kStages * C::kStageBytes + C::kDuBytes + m * kWordBytes,
                                             p.mask, p.slice[m].adapter, first_block, first + s * kRows, p.rows);
      }
    }
    cp_async_commit();
  };
  for (int s = 0; s < kStages - 1; ++s) load(s);

  for (int s = 0; s < count; ++s) {
    cp_async_wait<kStages - 2>();
    publish_to_products();
    __syncthreads();  // stage s is there, and the products of stage s - 1, whose place the next load takes, are done
    load(s + kStages - 1);
    const uint32_t du = stages + s % kStages * C::kStageBytes;
    float acc[2][8][4], sum[8][4] = {};
    const auto start = [&](int m) {
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kSliceRanks / 16; ++k)
        wgmma_along_down(acc[m % 2], panel_along(du + m * kPanelBytes + k * 32),
                         panel_down(adapters + m * kPanelBytes + k * 2048, 0), k > 0);
      wgmma_commit();
    };
    start(0);
    const unsigned char* words =
        memory + C::kBytes - 1024 - kStages * C::kStageBytes + s % kStages * C::kStageBytes + C::kDuBytes;
#pragma unroll
    for (int m = 0; m < kSlices; ++m) {
      if (m + 1 < kSlices) {
        start(m + 1);
        wgmma_wait<1>();
      } else {
        wgmma_wait<0>();
      }
      results_are_there(acc[m % 2]);
      const uint2* at = reinterpret_cast<const uint2*>(words + m * kWordBytes) + group * kRows + warp_row;
      const uint2 rows[2] = {at[0], at[8]};
      add_masked(sum, acc[m % 2], rows, q);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        const int64_t row = first + s * kRows + warp_row + half * 8;
        const int c = feature + b * 32 + q * 8;
        float value[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) value[i] = sum[4 * b + i / 2][2 * half + i % 2];
        if (row < p.rows && c < p.cols) store_row(p, p.dx + row * p.dx_stride + c, value);
      }
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
  lora_dropout_dx_sm90_kernel<kSlices><<<blocks, kThreads, C::kBytes, stream>>>(p);
  CUDA_LAUNCHED();
}

}  // namespace

void lora_dropout_dx_sm90(DxArgs p, int slices, int sm_count, cudaStream_t stream) {
  if (slices == 1) launch<1>(p, sm_count, stream);
  else launch<2>(p, sm_count, stream);
}

}  // namespace irq
