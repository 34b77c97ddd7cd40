// What:   lora_dropout_da.cu's first stage on the warpgroup products of sm_90a.
// Math:   partial_m = sum_n du_m[n] (mask_m[n] x[n])^T over a range of rows, F32 sums.
// Shapes: as there.
// Cost:   as there; the time is that of Philox: 64 of its 70 cycles a call on one of an SM's four schedulers are the sixteen wide
//         multiplications. mma.sync (6 cycles) and those do not overlap: 4 calls and 32 mma take 500 cycles, measured alone.
// Tricky: A warpgroup is four warps of 64 features each; instruction m takes tile m of all of them, 64 columns of dA^T at once,
//         from registers, and du from shared memory, where row 4 q + 2 b + e of 16 lies at place 8 b + 2 q + e, so that the
//         terms of both operands agree. While it runs the threads make the next stage's operand.
#include "kernels/lora_dropout_da.cuh"
#include "kernels/sm90.cuh"

namespace irq {

using namespace lora_da;

namespace {

constexpr int kXBytes = kRows * kChunks * 16;
static_assert(kSliceRanks == 64 && kXBytes % 1024 == 0 && kStageBytes % 1024 == 0 && kThreads == kRows * kRankChunks);

__device__ __forceinline__ void load_stage(uint32_t stage, const DaArgs& p, const RankSlice& slice, const TableRow* table,
                                           int64_t first, int row, int feature) {
  load_x(stage, p, table, first, row, feature);
  const int r = static_cast<int>(threadIdx.x) / kRankChunks, chunk = static_cast<int>(threadIdx.x) % kRankChunks;
  const int place = (r & ~15) | (r & 2) << 2 | (r & 12) >> 1 | (r & 1);
  const bool valid = chunk * 8 < slice.width && table[row + r].live;
  cp_async_16(stage + kXBytes + panel_byte(place, chunk),
              valid ? p.du + (first + row + r) * p.du_stride + slice.column + chunk * 8 : p.du, valid);
}

// The lane's four rows of one chunk.
__device__ __forceinline__ void masked_rows(uint32_t (&x)[4][4], const unsigned char* x_stage, const TableRow* table, int row,
                                            int chunk, const DropoutColumn& column, const uint32_t (&seed)[2],
                                            DropoutThreshold kept) {
  const int q = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    load_shared_16(x[i], x_stage + x_byte(row + 4 * q + i, chunk));
    drop_chunk(x[i], table[row + 4 * q + i].mask, column, seed, kept);
  }
}

__global__ void __launch_bounds__(kThreads, 1) lora_dropout_da_sm90_kernel(DaArgs p) {
  extern __shared__ unsigned char unaligned_memory[];
  unsigned char* shared_memory = unaligned_memory + (1024 - smem_address(unaligned_memory) % 1024) % 1024;
  TableRow* table = reinterpret_cast<TableRow*>(shared_memory + kStages * kStageBytes);
  const int block = static_cast<int>(blockIdx.x);  // the slices of one piece of x side by side: they share it in L2
  const RankSlice& slice = p.slice[block % p.slices];
  const int feature = block / p.slices % p.feature_blocks * kFeatures;
  const int split = block / p.slices / p.feature_blocks;
  const int64_t first = p.first + int64_t{split} * p.rows_per_split;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int row = warp / kGroups * 16, chunk = warp % kGroups * 8 + lane / 4;

  fill_row_table(table, first, p.rows_per_split, p.rows, p.mask);
  __syncthreads();
  const uint32_t stages = smem_address(shared_memory);
  const int count = p.rows_per_split / kRows;
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < count) load_stage(stages + s * kStageBytes, p, slice, table, first, s * kRows, feature);
    cp_async_commit();
  }
  const uint32_t seed[2] = {p.mask.params->seed[0], p.mask.params->seed[1]};
  const DropoutColumn column = dropout_column(feature + chunk * 8, slice.id, seed);
  float acc[4][8][4] = {};
  uint32_t x[4][4], operand[4][4];
  cp_async_wait<kStages - 2>();
  __syncthreads();
  masked_rows(x, shared_memory, table, row, chunk, column, seed, p.mask.kept);
  for (int s = 0; s < count; ++s) {
    cp_async_wait<kStages - 3>();
    publish_to_products();
    __syncthreads();  // stage s + 1 is there, and the products of stage s - 1, whose place the next load takes, are done
    if (const int load = s + kStages - 1; load < count)
      load_stage(stages + load % kStages * kStageBytes, p, slice, table, first, load * kRows, feature);
    cp_async_commit();
    const uint64_t du = panel_down(stages + s % kStages * kStageBytes + kXBytes + row * 128, 0);
    transpose_rows(operand, x);  // not while products may still read it
    operands_are_there(operand);
    wgmma_fence();
#pragma unroll
    for (int m = 0; m < 4; ++m) wgmma_registers(acc[m], operand[m], du);
    wgmma_commit();
    const int ahead = min(s + 1, count - 1);  // behind the last stage: made once more, and not used
    masked_rows(x, shared_memory + ahead % kStages * kStageBytes, table + ahead * kRows, row, chunk, column, seed, p.mask.kept);
    wgmma_wait<0>();
  }
#pragma unroll
  for (int m = 0; m < 4; ++m) results_are_there(acc[m]);
  cp_async_wait<0>();
  __syncthreads();
  store_da(p, acc, shared_memory, feature, split, slice);
}

}  // namespace

void lora_dropout_da_sm90(const DaArgs& p, unsigned blocks, cudaStream_t stream) {
  constexpr int kFixed = 1024 + kStages * kStageBytes;
  allow_shared_bytes(lora_dropout_da_sm90_kernel, kFixed + kMaxRows * static_cast<int>(sizeof(TableRow)));
  lora_dropout_da_sm90_kernel<<<blocks, kThreads, kFixed + p.rows_per_split * static_cast<int>(sizeof(TableRow)), stream>>>(p);
}

}  // namespace irq
