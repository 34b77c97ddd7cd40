// What  : variant 4 of icq_search: from one candidate to the next the thresholds move along the sorted block, a few places
//         in all.
// Math  : as variant 1, bit for bit: the exact predicate decides about every weight that a threshold passes.
// Shapes: as variant 3.
// Cost  : 201 x 15 looks at the next weight of each threshold, 6 instructions each, and per block 66 weights that are
//         passed, which a warp of 32 blocks meets 7 or 8 times per candidate, 20 instructions each: 300 per candidate,
//         60,000 per warp: 1.3e9 instructions, 1.5 ms.
// Tricky: ranks and next weights of the 15 thresholds stay in registers, so every loop over them is unrolled. Rounding may
//         put a threshold back behind a weight it has passed, so both neighbours are asked. The 16 terms are looked up
//         again only where a weight has changed its level.
// Change: 15 binary searches per candidate become 15 comparisons and 0.3 moves. The production kernel does not even visit
//         the candidates: it solves for the index at which each threshold passes its next weight and takes the events in
//         order.
// Predicted: 6 -> 2.2 ms.
// Measured: 3.73 ms (1.18x). Missed: of 32 lanes one moves a threshold at nearly every candidate, and then all wait while
//         16 terms are looked up again. The production kernel, which visits 66 events instead of 201 candidates, takes
//         0.337 ms (11.1x).
#include "bench/variants/icq.cuh"

namespace irq {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp, kPitch = SortedColumns::kPitch;

struct Sweep {
  const float* w;
  const Codebook& book;
  const IcqShared& shared;
  int rank[kThresholds];                         // weights at or below each threshold
  float passed[kThresholds], next[kThresholds];  // the last of them, and the first above
  int64_t sum = 0;

  __device__ __forceinline__ float weight(int i) const { return w[i * kPitch]; }
  __device__ __forceinline__ float last_passed(int r) const { return r > 0 ? weight(r - 1) : -INFINITY; }
  __device__ __forceinline__ float rcp(float tau) const {
    return __fdiv_rn(1.0f, largest_shifted(weight(0), weight(kBlock - 1), tau));
  }
  // From nothing: up from the threshold below.
  __device__ __forceinline__ void start(float tau) {
    const float r = rcp(tau);
    int at = 0, below = 0;
    sum = 0;
#pragma unroll
    for (int j = 0; j < kThresholds; ++j) {
      while (at < kBlock && !is_above(weight(at), tau, r, book.threshold[j])) ++at;
      rank[j] = at, passed[j] = last_passed(at), next[j] = weight(at);
      sum += shared.term[at - below];
      below = at;
    }
    sum += shared.term[kBlock - below];
  }
  // True if any weight changed its level.
  __device__ __forceinline__ bool advance(float tau) {
    const float r = rcp(tau);
    bool moved = false;
#pragma unroll
    for (int j = 0; j < kThresholds; ++j) {
      const float t = book.threshold[j];
      if (is_above(next[j], tau, r, t) && !is_above(passed[j], tau, r, t)) continue;
      int at = rank[j];
      while (at < kBlock && !is_above(weight(at), tau, r, t)) ++at;
      while (at > 0 && is_above(weight(at - 1), tau, r, t)) --at;
      rank[j] = at, passed[j] = last_passed(at), next[j] = weight(at);
      moved = true;
    }
    if (!moved) return false;
    sum = shared.term[rank[0]] + shared.term[kBlock - rank[kThresholds - 1]];
#pragma unroll
    for (int j = 1; j < kThresholds; ++j) sum += shared.term[rank[j] - rank[j - 1]];
    return true;
  }
};

__global__ void __launch_bounds__(kThreads) search(IcqArgs a) {
  __shared__ IcqShared shared;
  __shared__ SortedColumns columns[kWarps];
  fill(shared, a);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int first = (blockIdx.x * kWarps + warp) * kWarp, b = first + lane;
  if (first >= a.blocks) return;
  load_sorted(columns[warp], a.w, first, a.blocks);
  if (b >= a.blocks) return;
  Sweep sweep{columns[warp].weight + lane, a.book, shared, {}, {}, {}};
  const float tau0 = __fadd_rn(sweep.weight((kBlock - 1) / 2), 0.0f);
  const float scale0 = largest_shifted(sweep.weight(0), sweep.weight(kBlock - 1), tau0);
  int64_t plain = shared.term[kBlock], best = plain;
  float best_tau = tau0;
  if (sweep.weight(0) != 0.0f || sweep.weight(kBlock - 1) != 0.0f) sweep.start(0.0f), plain = sweep.sum;
  if (scale0 != 0.0f) {  // else all candidates are tau0, and all weights have one code
    best_tau = candidate(shared.factor[0], scale0, tau0);
    sweep.start(best_tau);
    best = sweep.sum;
#pragma unroll 1
    for (int i = 1; i < kCandidates; ++i) {
      const float tau = candidate(shared.factor[i], scale0, tau0);
      if (sweep.advance(tau) && sweep.sum < best) best = sweep.sum, best_tau = tau;
    }
  }
  a.tau[b] = best_tau;
  a.plain[b] = entropy_bits(plain, kBlock, shared.term[kBlock]);
  a.best[b] = entropy_bits(best, kBlock, shared.term[kBlock]);
}

void run(Backend& backend, const std::vector<Tensor>& t) { launch_icq<kThreads>(search, kThreads, backend, t); }
[[maybe_unused]] const bool added = add_variant({"icq_search", "v4_sorted_sweep", run});

}  // namespace
}  // namespace irq
