// What the variants of icq_search share: arguments, tables in shared memory, the candidates, and how a kernel is launched.
#pragma once
#include "bench/variants/variant.cuh"
#include "kernels/icq_grid.h"

namespace irq {

constexpr int kCandidates = 201, kLevels = 16, kThresholds = kLevels - 1;

struct IcqArgs {
  float *tau, *plain, *best;  // one each per block
  const float* w;             // 64 per block
  int blocks;
  Codebook book;
  EntropyTables tables;
  IcqGrid grid;
};

struct IcqShared {
  int64_t term[kBlock + 1];  // T[c]: the smaller the sum over the counts, the higher the entropy
  float factor[kCandidates];
};
// By all threads of a block, barrier included. The candidates are laid out in fp64, the last one is forced (fidelity 3.2).
__device__ __forceinline__ void fill(IcqShared& shared, const IcqArgs& a) {
  for (int c = threadIdx.x; c <= kBlock; c += blockDim.x) shared.term[c] = a.tables.term[c];
  for (int i = threadIdx.x; i < kCandidates; i += blockDim.x)
    shared.factor[i] = __double2float_rn(
        i == kCandidates - 1 ? a.grid.last : __dadd_rn(__dmul_rn(static_cast<double>(i), a.grid.step), a.grid.start));
  __syncthreads();
}
__device__ __forceinline__ float candidate(float factor, float scale0, float tau0) {
  return __fadd_rn(__fmul_rn(factor, scale0), tau0);
}
// max |fl(w - tau)| of a block: fl(w - tau) ascends with w, so it is at one of the ends.
__device__ __forceinline__ float largest_shifted(float smallest, float largest, float tau) {
  return fmaxf(fabsf(__fsub_rn(smallest, tau)), fabsf(__fsub_rn(largest, tau)));
}
__device__ __forceinline__ bool is_above(float w, float tau, float rcp, float threshold) {
  return __fmul_rn(__fsub_rn(w, tau), rcp) > threshold;
}

// 32 blocks per warp, one per lane, each a sorted column: [rank][lane], conflict-free along a row and, by the odd pitch, down a
// column. The last row holds infinities.
struct SortedColumns {
  static constexpr int kPitch = kWarp + 1;
  float weight[(kBlock + 1) * kPitch];
};
// Loads blocks [first, first + 32) (as far as there are any) in whole lines and sorts each lane's by Batcher's network: which
// pairs are compared does not depend on the weights, so that all lanes do the same.
__device__ inline void load_sorted(SortedColumns& columns, const float* w, int first, int blocks) {
  constexpr int kPitch = SortedColumns::kPitch;
  const int lane = threadIdx.x % kWarp, count = min(kWarp, blocks - first);
  for (int i = lane; i < count * kBlock; i += kWarp)
    columns.weight[i % kBlock * kPitch + i / kBlock] = w[static_cast<int64_t>(first) * kBlock + i];
  float* mine = columns.weight + lane;
  mine[kBlock * kPitch] = INFINITY;
  __syncwarp();
  if (lane >= count) return;
#pragma unroll 1
  for (int m = 0; m < 6; ++m)  // runs of 2^m are merged
#pragma unroll 1
    for (int d = m; d >= 0; --d) {
      const int apart = 1 << d, skipped = d == m ? 0 : apart;
#pragma unroll 4
      for (int low = skipped; low < kBlock - apart; ++low) {
        const int high = low + apart;
        if (((low - skipped) >> d & 1) != 0 || low >> (m + 1) != high >> (m + 1)) continue;
        const float x = mine[low * kPitch], y = mine[high * kPitch];
        mine[low * kPitch] = fminf(x, y), mine[high * kPitch] = fmaxf(x, y);
      }
    }
}

// per_block: blocks of weights that a block of kThreads threads takes.
template <int kThreads>
void launch_icq(void (*kernel)(IcqArgs), int per_block, Backend& backend, const std::vector<Tensor>& t) {
  IRQ_CHECK(t[3].numel() % kBlock == 0, "the variants take whole blocks, not %ld weights", t[3].numel());
  const int blocks = static_cast<int>(t[3].numel() / kBlock);
  const IcqArgs args{t[0].as<float>(), t[1].as<float>(), t[2].as<float>(), t[3].as<float>(),
                     blocks,           nf_codebook(4),   entropy_tables(), icq_grid({})};
  kernel<<<static_cast<unsigned>(ceil_div(blocks, per_block)), kThreads, 0, stream_of(backend)>>>(args);
  CUDA_LAUNCHED();
}

}  // namespace irq
