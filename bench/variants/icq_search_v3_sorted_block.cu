// What  : variant 3 of icq_search: the block is sorted once, then each candidate asks where the thresholds lie in it.
// Math  : as variant 1, bit for bit: fl(w - tau) and the product with a positive factor ascend with w, so the codes ascend
//         along the sorted block, and the counts are the distances between the 15 places where a threshold is first
//         exceeded.
// Shapes: as variant 1. Blocks whose weights lie so close or so far apart that 1/absmax leaves fp32's normal range are not
//         provided for (the production kernel counts them plainly).
// Cost  : per candidate 15 binary searches of seven steps of six instructions, and 15 terms: 720. With sorting 153,000 per
//         warp of 32 blocks, 22,016 warps: 3.4e9 instructions, 4 ms.
// Tricky: a lane has a block again, but now as a column of shared memory ([rank][lane]): whatever rank a lane reads, it is
//         in the lane's own bank. The warp loads whole lines and turns them; the odd pitch keeps that free of conflicts
//         too.
// Change: 64 weights x 15 thresholds become 15 x 7 comparisons; roles change from a warp per block to a lane per block.
// Predicted: 50 -> 6 ms.
// Measured: 4.42 ms (8.43x).
#include "bench/variants/icq.cuh"

namespace irq {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp, kPitch = SortedColumns::kPitch;

// The number of weights at or below a threshold, 0..64.
__device__ __forceinline__ int rank_of(const float* w, float tau, float rcp, float threshold) {
  int rank = 0;
#pragma unroll
  for (int step = kBlock / 2; step > 0; step /= 2)
    if (!is_above(w[(rank + step - 1) * kPitch], tau, rcp, threshold)) rank += step;
  return rank + (is_above(w[rank * kPitch], tau, rcp, threshold) ? 0 : 1);
}
__device__ __forceinline__ int64_t sum_of_terms(const float* w, float tau, const Codebook& book,
                                                const IcqShared& shared) {
  const float a = largest_shifted(w[0], w[(kBlock - 1) * kPitch], tau), rcp = __fdiv_rn(1.0f, a);
  if (a == 0.0f) return shared.term[kBlock];
  int64_t sum = 0;
  int below = 0;
#pragma unroll
  for (int c = 0; c < kThresholds; ++c) {
    const int rank = rank_of(w, tau, rcp, book.threshold[c]);
    sum += shared.term[rank - below];
    below = rank;
  }
  return sum + shared.term[kBlock - below];
}

__global__ void __launch_bounds__(kThreads) search(IcqArgs a) {
  __shared__ IcqShared shared;
  __shared__ SortedColumns columns[kWarps];
  fill(shared, a);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int first = (blockIdx.x * kWarps + warp) * kWarp, b = first + lane;
  if (first >= a.blocks) return;
  load_sorted(columns[warp], a.w, first, a.blocks);
  if (b >= a.blocks) return;
  const float* w = columns[warp].weight + lane;
  const float tau0 = __fadd_rn(w[(kBlock - 1) / 2 * kPitch], 0.0f);
  const float scale0 = largest_shifted(w[0], w[(kBlock - 1) * kPitch], tau0);
  int64_t best = INT64_MAX;
  float best_tau = 0;
#pragma unroll 1
  for (int i = 0; i < kCandidates; ++i) {
    const float tau = candidate(shared.factor[i], scale0, tau0);
    const int64_t sum = sum_of_terms(w, tau, a.book, shared);
    if (sum < best) best = sum, best_tau = tau;
  }
  a.tau[b] = best_tau;
  a.plain[b] = entropy_bits(sum_of_terms(w, 0.0f, a.book, shared), kBlock, shared.term[kBlock]);
  a.best[b] = entropy_bits(best, kBlock, shared.term[kBlock]);
}

void run(Backend& backend, const std::vector<Tensor>& t) { launch_icq<kThreads>(search, kThreads, backend, t); }
[[maybe_unused]] const bool added = add_variant({"icq_search", "v3_sorted_block", run});

}  // namespace
}  // namespace irq
