// What:   lora_dropout_da.cu's first stage on the warpgroup products of sm_90a.
// Math:   partial_m = sum_n du_m[n] (mask_m[n] x[n])^T over a range of rows, F32 sums.
// Shapes: as there.
// Cost:   as there. N = 8192, (h = 4096, R = 192): about 310 MB through L2, 83 us measured: 3.8 TB/s; (4096, 64) 37 us,
//         (11008, 64) 89 us.
// Tricky: A thread masks chunks of 16 bytes in shared memory, in place, by the bits of their word; products of a whole warpgroup
//         read them there, down the rows (the terms of the sum), so that nothing is transposed or permuted and no thread waits
//         for a product: those of a stage run while the next one is masked.
#include "kernels/lora_dropout_da.cuh"
#include "kernels/sm90.cuh"

namespace irq {

using lora_da::DaArgs;

namespace {

constexpr int kPanels = 4, kThreads = 128 * kPanels;  // a warpgroup for 64 features
constexpr int kFeatures = 64 * kPanels, kChunks = kFeatures / 8, kRows = 64, kStages = 4;
constexpr int kPanelBytes = kRows * 128, kTileBytes = (kPanels + 1) * kPanelBytes;  // x, then du
constexpr int kStageBytes = kTileBytes + kRows * kPanels * 8;                       // then the masks' words
constexpr int kPasses = kRows * kChunks / kThreads, kStep = kRows / kPasses;        // a thread's rows of a stage
static_assert(kSliceRanks == 64 && kStageBytes % 1024 == 0 && kStep % 8 == 0 && kThreads == kRows * 8);
static_assert(kFeatures == lora_da::kFeatures && lora_da::kMaxRows % kRows == 0, "one grid for both kernels");

__global__ void __launch_bounds__(kThreads, 1) lora_dropout_da_sm90_kernel(DaArgs p) {
  extern __shared__ unsigned char unaligned_memory[];
  unsigned char* shared_memory = unaligned_memory + (1024 - smem_address(unaligned_memory) % 1024) % 1024;
  uint32_t* live = reinterpret_cast<uint32_t*>(shared_memory + kStages * kStageBytes);
  const int block = static_cast<int>(blockIdx.x);  // the slices of one piece of x side by side: they share it in L2
  const RankSlice slice = p.slice[block % p.slices];
  const int feature = block / p.slices % p.feature_blocks * kFeatures, split = block / p.slices / p.feature_blocks;
  const int64_t first = p.first + int64_t{split} * p.rows_per_split;
  const int thread = static_cast<int>(threadIdx.x), group = thread / 128;
  const int row = thread / kChunks, chunk = thread % kChunks, c = feature + chunk * 8;
  const int x_byte = chunk / 8 * kPanelBytes + panel_byte(row, chunk % 8);
  const int du_row = thread / 8, du_chunk = thread % 8;

  const int count = (p.rows_per_split + kRows - 1) / kRows;
  const int rows = static_cast<int>(min(p.rows - first, int64_t{p.rows_per_split}));
  fill_live_rows(live, first, count * kRows, first + rows, p.mask);
  __syncthreads();
  const uint32_t stages = smem_address(shared_memory);
  const __nv_bfloat16* x = p.x + (first + row) * p.x_stride + c;
  const __nv_bfloat16* du = p.du + (first + du_row) * p.du_stride + slice.column + du_chunk * 8;
  const bool x_inside = c < p.cols, du_inside = du_chunk * 8 < slice.width;
  const auto load = [&](int s) {
    const uint32_t stage = stages + s % kStages * kStageBytes;
    if (s < count) {
#pragma unroll
      for (int i = 0; i < kPasses; ++i) {
        const bool valid = x_inside && s * kRows + row + i * kStep < rows;
        cp_async_16(stage + x_byte + i * kStep * 128, valid ? x + i * kStep * p.x_stride : p.x, valid);
      }
      {
        const bool valid = du_inside && live[s * kRows + du_row];
        cp_async_16(stage + kPanels * kPanelBytes + panel_byte(du_row, du_chunk), valid ? du : p.du, valid);
      }
      load_words<kRows, kPanels, kThreads>(stage + kTileBytes, p.mask, slice.adapter, feature / 64, first + s * kRows,
                                           p.rows);
      x += kRows * p.x_stride, du += kRows * p.du_stride;
    }
    cp_async_commit();
  };
  for (int s = 0; s < kStages - 2; ++s) load(s);
  const auto mask = [&](int s) {
    unsigned char* stage = shared_memory + s % kStages * kStageBytes;
    const uint32_t* words =
        reinterpret_cast<const uint32_t*>(stage + kTileBytes) + chunk / 8 * (2 * kRows) + 2 * row + chunk / 4 % 2;
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      uint32_t v[4];
      load_shared_16(v, stage + x_byte + i * kStep * 128);
      drop_chunk(v, chunk_bits(words[2 * i * kStep], chunk % 4));
      *reinterpret_cast<uint4*>(stage + x_byte + i * kStep * 128) = make_uint4(v[0], v[1], v[2], v[3]);
    }
  };
  float acc[8][4] = {};
  cp_async_wait<kStages - 3>();  // this thread's part of stage 0 is there
  __syncthreads();               // and everybody's
  load(kStages - 2);
  mask(0);
  for (int s = 1; s <= count; ++s) {
    cp_async_wait<kStages - 3>();
    wgmma_wait<0>();
    publish_to_products();
    __syncthreads();  // stage s is there, stage s - 1 is masked, and the products of stage s - 2 are done: the next load's place
    const uint32_t done = stages + (s - 1) % kStages * kStageBytes;
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kRows / 16; ++k)
      wgmma_panels_down(acc, panel_down(done + group * kPanelBytes + k * 2048, 0),
                        panel_down(done + kPanels * kPanelBytes + k * 2048, 0), true);
    wgmma_commit();
    load(s + kStages - 2);
    if (s < count) mask(s);
  }
  wgmma_wait<0>();
  results_are_there(acc);
  cp_async_wait<0>();

  // acc: features 16 w + g and 16 w + g + 8 of the group's 64, ranks 8 n + 2 q + {0, 1}.
  const int lane = thread % kWarp, g = lane / 4, q = lane % 4, out = feature + thread / kWarp * 16 + g;
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const int j = i / 4 * 8 + 2 * q + i % 2, f = out + i / 2 % 2 * 8;
    if (j < slice.width && f < p.cols)
      p.partial[(int64_t{split} * p.ranks + slice.column + j) * p.cols + f] = acc[i / 4][i % 4];
  }
}

}  // namespace

void lora_dropout_da_sm90(const DaArgs& p, unsigned blocks, cudaStream_t stream) {
  constexpr int kFixed = 1024 + kStages * kStageBytes;
  allow_shared_bytes(lora_dropout_da_sm90_kernel, kFixed + lora_da::kMaxRows * 4);
  lora_dropout_da_sm90_kernel<<<blocks, kThreads,
                                kFixed + static_cast<int>(ceil_div(p.rows_per_split, kRows) * kRows) * 4, stream>>>(p);
}

}  // namespace irq
