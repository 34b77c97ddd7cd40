// What  : variant 2 of icq_search: a warp per block, the weights in registers, the lanes count together.
// Math  : as variant 1, bit for bit.
// Shapes: as variant 1.
// Cost  : per candidate 15 thresholds of two comparisons, two votes and two population counts, which run at a quarter of
//         the rate or less: about 300 issue cycles, 201 times, for 704,512 blocks: 4.2e10 cycles of 528 schedulers, 47 ms.
// Tricky: codes are never made. The number of weights above threshold j is a vote of the warp, and neighbouring differences
//         of these numbers are the counts: lane c keeps count c, looks up its term, and a shuffle tree adds 64-bit
//         integers. Absmax comes from the smallest and the largest weight alone, since fl(w - tau) ascends with w. Where it
//         is 0, 0 times infinity exceeds no threshold: one level has all weights, as it should.
// Change: memory is read once, in whole lines, and nothing is indexed at run time; the same comparisons, shared by 32
//         lanes.
// Predicted: 110 -> 50 ms: the memory is gone, the instructions are not fewer.
// Measured: 37.3 ms (2.28x).
#include "bench/variants/icq.cuh"

namespace irq {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;

__device__ __forceinline__ int64_t warp_total(int64_t x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    x += __shfl_xor_sync(kFullWarp, static_cast<long long>(x), offset);
  return x;
}

struct Block {
  float first, second;  // this lane's two weights
  float smallest, largest;

  // The lower median: a lane's weight that 31 others precede; `second` of lane l counts as number 32 + l.
  __device__ float median() const {
    const int lane = threadIdx.x % kWarp;
    int before_first = 0, before_second = 0;
    for (int l = 0; l < kWarp; ++l) {
      const float a = __shfl_sync(kFullWarp, first, l), b = __shfl_sync(kFullWarp, second, l);
      before_first += (a < first || (a == first && l < lane)) + (b < first);
      before_second += (a <= second) + (b < second || (b == second && l < lane));
    }
    constexpr int kRank = (kBlock - 1) / 2;
    const unsigned in_first = __ballot_sync(kFullWarp, before_first == kRank);
    const unsigned in_second = __ballot_sync(kFullWarp, before_second == kRank);
    return in_first ? __shfl_sync(kFullWarp, first, __ffs(in_first) - 1)
                    : __shfl_sync(kFullWarp, second, __ffs(in_second) - 1);
  }
  __device__ int64_t sum_of_terms(float tau, const Codebook& book, const IcqShared& shared) const {
    const int lane = threadIdx.x % kWarp;
    const float rcp = __fdiv_rn(1.0f, largest_shifted(smallest, largest, tau));
    const float x = __fmul_rn(__fsub_rn(first, tau), rcp), y = __fmul_rn(__fsub_rn(second, tau), rcp);
    int above = kBlock, count = 0;  // weights above the threshold below level c; lane c's count
#pragma unroll
    for (int c = 0; c < kLevels; ++c) {
      int higher = 0;
      if (c < kThresholds)
        higher = __popc(__ballot_sync(kFullWarp, x > book.threshold[c])) +
                 __popc(__ballot_sync(kFullWarp, y > book.threshold[c]));
      if (lane == c) count = above - higher;
      above = higher;
    }
    return warp_total(lane < kLevels ? shared.term[count] : 0);
  }
};

__global__ void __launch_bounds__(kThreads) search(IcqArgs a) {
  __shared__ IcqShared shared;
  fill(shared, a);
  const int b = blockIdx.x * kWarps + threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (b >= a.blocks) return;
  const float* w = a.w + static_cast<int64_t>(b) * kBlock + lane;
  Block block{w[0], w[kWarp], 0, 0};
  block.largest = warp_max(fmaxf(block.first, block.second));
  block.smallest = -warp_max(-fminf(block.first, block.second));
  const float tau0 = __fadd_rn(block.median(), 0.0f), scale0 = largest_shifted(block.smallest, block.largest, tau0);
  int64_t best = INT64_MAX;
  float best_tau = 0;
#pragma unroll 1
  for (int i = 0; i < kCandidates; ++i) {
    const float tau = candidate(shared.factor[i], scale0, tau0);
    const int64_t sum = block.sum_of_terms(tau, a.book, shared);
    if (sum < best) best = sum, best_tau = tau;
  }
  const int64_t plain = block.sum_of_terms(0.0f, a.book, shared);
  if (lane != 0) return;
  a.tau[b] = best_tau;
  a.plain[b] = entropy_bits(plain, kBlock, shared.term[kBlock]);
  a.best[b] = entropy_bits(best, kBlock, shared.term[kBlock]);
}

void run(Backend& backend, const std::vector<Tensor>& t) { launch_icq<kThreads>(search, kWarps, backend, t); }
[[maybe_unused]] const bool added = add_variant({"icq_search", "v2_warp_per_block", run});

}  // namespace
}  // namespace irq
