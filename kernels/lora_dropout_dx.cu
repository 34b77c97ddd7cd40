// What:   the A branches' share of dx: every adapter's gradient goes back through its own dropout mask; one pass over dx.
// Math:   dx = beta dx + s sum_m mask_m * (du_m A_m), F32 sums, s = 1 / (1 - p), rounded once.
// Shapes: dx (N, h), du (N, R), a (R, h) S; bf16 with rows aligned to 16 bytes, h and the rank multiples of 8; all else in
//         lora_dropout_simple.cu.
// Cost:   2 N h bytes written, as many read if beta != 0; N h / 8 bytes of mask bits an adapter, a test and an addition for each
//         element and adapter; 2 N h R FLOPs. N = 8192, beta = 0: (h = 4096, R = 192) 67 + 13 MB, 25 us expected, 70 measured
//         on sm_90 (43 by lora_dropout_dx_sm90.cu); (4096, 64) 24 and 33 us, (11008, 64) 62 and 80 us. With beta = 1 and R = 192:
//         102 us.
// Tricky: A stays in registers: a warp owns 32 features and walks down the rows, 16 at a time. Its columns are permuted (on
//         their way through shared memory) so that a lane's results are eight neighbouring features of a row: one shift
//         of a word of mask bits and one 16-byte access.
#include "kernels/kernel_choice.h"
#include "kernels/lora_dropout_dx.cuh"

namespace irq {

using namespace lora_dx;

namespace {

constexpr int kThreads = 256, kFeatures = kThreads;  // 32 features a warp
constexpr int kRows = 32, kStages = 4;               // rows of du of a stage
constexpr int kTilePitch = kFeatures * 2 + 16;       // of a slice's A on its way to the registers

template <int kSlices>
struct DxConfig {
  static constexpr int kBlocks = kSlices == 1 ? 2 : 1;  // of a multiprocessor
  static constexpr int kDuBytes = kRows * kSlices * kSliceRanks * 2;
  static constexpr int kWordBytes = kRows * (kFeatures / 64) * 8;  // of a slice's masks
  static constexpr int kStageBytes = kDuBytes + kSlices * kWordBytes;
  static constexpr int kTileBytes = kSliceRanks * kTilePitch;
  static constexpr int kFixedBytes =
      kStages * kStageBytes > kTileBytes ? kStages* kStageBytes : kTileBytes;  // A comes first
};

// Byte of ranks [8 chunk, +8) of a row in a stage: eight rows of one chunk, which ldmatrix reads at once, meet no bank twice.
template <int kSlices>
__device__ __forceinline__ int du_byte(int row, int slice, int chunk) {
  return ((row * kSlices + slice) * 8 + (chunk ^ (row & 7))) * 16;
}

template <int kSlices>
__device__ __forceinline__ void load_stage(uint32_t stage, const DxArgs& p, int64_t first, int row, int feature) {
  static_assert(kThreads == kRows * 8, "one chunk of every slice a thread");
  const int r = static_cast<int>(threadIdx.x) / 8, chunk = static_cast<int>(threadIdx.x) % 8;
  const bool inside = first + row + r < p.rows;  // du of dead rows counts nowhere: they have no mask bits
  const __nv_bfloat16* from = p.du + (first + row + r) * p.du_stride + chunk * 8;
#pragma unroll
  for (int s = 0; s < kSlices; ++s) {
    const bool valid = inside && chunk * 8 < p.slice[s].width;
    cp_async_16(stage + du_byte<kSlices>(r, s, chunk), valid ? from + p.slice[s].column : p.du, valid);
    load_words<kRows, kFeatures / 64, kThreads>(stage + DxConfig<kSlices>::kDuBytes + s * DxConfig<kSlices>::kWordBytes,
                                                p.mask, p.slice[s].adapter, feature / 64, first + row, p.rows);
  }
}

// a[kb][j]: the operands of ranks 32 kb + 0..15 and 32 kb + 16..31 and, for result tile j, column 2 q' + e: feature
// 8 q' + 2 j + e of the warp's 32. In shared memory pairs of features lie so that the eight columns of a tile are neighbours.
__device__ __forceinline__ void load_adapter(uint32_t (&a)[2][4][4], unsigned char* tile, const DxArgs& p,
                                             const RankSlice& slice, int feature) {
  constexpr int kChunks = kFeatures / 8;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < kSliceRanks * kChunks; i += kThreads) {
    const int rank = i / kChunks, chunk = i % kChunks;
    uint4 v{};
    if (rank < slice.width && feature + chunk * 8 < p.cols)
      v = *reinterpret_cast<const uint4*>(p.a + (slice.column + rank) * p.a_stride + feature + chunk * 8);
    uint32_t* to = reinterpret_cast<uint32_t*>(tile + rank * kTilePitch) + chunk / 4 * 16 + chunk % 4;
    to[0] = v.x, to[4] = v.y, to[8] = v.z, to[12] = v.w;
  }
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const uint32_t from = smem_address(tile) + lane * kTilePitch + warp * 64;
#pragma unroll
  for (int kb = 0; kb < 2; ++kb)
#pragma unroll
    for (int j = 0; j < 4; ++j) ldmatrix_x4_trans(a[kb][j], from + kb * 32 * kTilePitch + j * 16);
  __syncthreads();
}

// sum[half]: eight features of row g + 8 half.  sum += mask * (du A). du: the stage's address at this warp's 16 rows.
template <int kSlices>
__device__ __forceinline__ void add_masked(float (&sum)[2][8], const uint32_t (&a)[2][4][4], uint32_t du, int s,
                                           const uint32_t (&bits)[2]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float acc[4][4] = {};
#pragma unroll
  for (int kk = 0; kk < kSliceRanks / 16; ++kk) {
    uint32_t part[4];
    ldmatrix_x4(part, du + du_byte<kSlices>(lane % 16, s, 2 * kk + lane / 16));
#pragma unroll
    for (int j = 0; j < 4; ++j) mma_m16n8k16(acc[j], part, a[kk / 2][j][kk % 2 * 2], a[kk / 2][j][kk % 2 * 2 + 1]);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      add_kept(sum[half][2 * j], sum[half][2 * j + 1], acc[j][2 * half], acc[j][2 * half + 1], bits[half], j);
  }
}

template <int kSlices>
__global__ void __launch_bounds__(kThreads, DxConfig<kSlices>::kBlocks) lora_dropout_dx_kernel(DxArgs p) {
  using Config = DxConfig<kSlices>;
  extern __shared__ __align__(16) unsigned char shared_memory[];
  const int block = static_cast<int>(blockIdx.x), feature = block % p.feature_blocks * kFeatures;
  const int64_t first = int64_t{block / p.feature_blocks} * p.rows_per_block;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, g = lane / 4, q = lane % 4;
  const int c = feature + static_cast<int>(threadIdx.x) / kWarp * 32 + q * 8;

  uint32_t a[kSlices][2][4][4];
#pragma unroll
  for (int s = 0; s < kSlices; ++s) load_adapter(a[s], shared_memory, p, p.slice[s], feature);  // ends with a barrier
  const uint32_t stages = smem_address(shared_memory);
  const int count = p.rows_per_block / kRows;
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < count) load_stage<kSlices>(stages + s * Config::kStageBytes, p, first, s * kRows, feature);
    cp_async_commit();
  }
  for (int stage = 0; stage < count; ++stage) {
    cp_async_wait<kStages - 2>();
    __syncthreads();  // the stage is there, and every warp has left the one before it, whose place the next load takes
    if (const int next = stage + kStages - 1; next < count)
      load_stage<kSlices>(stages + next % kStages * Config::kStageBytes, p, first, next * kRows, feature);
    cp_async_commit();
    const uint32_t du = stages + stage % kStages * Config::kStageBytes;
    const uint32_t* words =
        reinterpret_cast<const uint32_t*>(shared_memory + stage % kStages * Config::kStageBytes + Config::kDuBytes) +
        static_cast<int>(threadIdx.x) / 64 * (2 * kRows) + static_cast<int>(threadIdx.x) / kWarp % 2;
#pragma unroll 1
    for (int row = 0; row < kRows; row += 16) {
      Pack<__nv_bfloat16> old[2];
      __nv_bfloat16* out[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = stage * kRows + row + half * 8 + g;
        out[half] = first + r < p.rows && c < p.cols ? p.dx + (first + r) * p.dx_stride + c : nullptr;
        if (out[half] && p.beta != 0) old[half] = *reinterpret_cast<const Pack<__nv_bfloat16>*>(out[half]);
      }
      float sum[2][8] = {};
#pragma unroll
      for (int s = 0; s < kSlices; ++s) {
        const uint32_t* at = words + s * (Config::kWordBytes / 4) + 2 * (row + g);
        const uint32_t bits[2] = {chunk_bits(at[0], q), chunk_bits(at[16], q)};
        add_masked<kSlices>(sum, a[s], du + du_byte<kSlices>(row, 0, 0), s, bits);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (!out[half]) continue;
        Pack<__nv_bfloat16> pack;
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[half][i] *= p.mask.scale;
        if (p.beta != 0) {
#pragma unroll
          for (int i = 0; i < 8; ++i) sum[half][i] += p.beta * to_f(old[half].v[i]);
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) pack.v[i] = from_f<__nv_bfloat16>(sum[half][i]);
        *reinterpret_cast<Pack<__nv_bfloat16>*>(out[half]) = pack;
      }
    }
  }
  cp_async_wait<0>();
}

template <int kSlices>
void launch(DxArgs p, int sm_count, cudaStream_t stream) {
  using Config = DxConfig<kSlices>;
  auto* kernel = &lora_dropout_dx_kernel<kSlices>;
  allow_shared_bytes(kernel, Config::kFixedBytes);
  const int64_t places =
      std::max<int64_t>(1, int64_t{sm_count} * Config::kBlocks / p.feature_blocks);  // one wave, if it can be
  p.rows_per_block = static_cast<int>(ceil_div(ceil_div(p.rows, places), kRows) * kRows);
  const auto blocks = static_cast<unsigned>(ceil_div(p.rows, p.rows_per_block) * p.feature_blocks);
  kernel<<<blocks, kThreads, Config::kFixedBytes, stream>>>(p);
  CUDA_LAUNCHED();
}

}  // namespace

void CudaBackend::lora_dropout_dx(Tensor dx, Tensor du, Tensor a, MaskBits masks, double beta) {
  if (dx.numel() == 0) return;
  const bool tiles = dx.dtype == DType::BF16 && aligned16(dx) && aligned16(du) && aligned16(a) && dx.cols % 8 == 0 &&
                     dx.cols < INT32_MAX && du.cols > 0 && du.cols / masks.count % 8 == 0 && aligned16(masks.bits);
  if (!tiles) return lora_dropout_dx_simple(dx, du, a, masks, beta, stream_);
  DxArgs p{.dx = static_cast<__nv_bfloat16*>(dx.data),
           .du = static_cast<const __nv_bfloat16*>(du.data),
           .a = static_cast<const __nv_bfloat16*>(a.data),
           .dx_stride = dx.stride,
           .du_stride = du.stride,
           .a_stride = a.stride,
           .rows = dx.rows,
           .cols = static_cast<int>(dx.cols),
           .rows_per_block = 0,
           .feature_blocks = static_cast<int>(ceil_div(dx.cols, kFeatures)),
           .slice = {},
           .mask = mask_args(masks),
           .beta = static_cast<float>(beta)};
  const std::vector<RankSlice> slices = rank_slices(masks, du.cols);
  const bool sm90 = runs_sm90_kernels(properties_.major, properties_.minor);
  for (size_t i = 0; i < slices.size(); i += kMaxSlices) {
    const size_t count = std::min<size_t>(kMaxSlices, slices.size() - i);
    for (size_t k = 0; k < count; ++k) p.slice[k] = slices[i + k];
    if (sm90) lora_dropout_dx_sm90(p, static_cast<int>(count), sm_count(), stream_);
    else if (count == 1) launch<1>(p, sm_count(), stream_);
    else if (count == 2) launch<2>(p, sm_count(), stream_);
    else launch<3>(p, sm_count(), stream_);
    p.beta = 1;
  }
}

}  // namespace irq
