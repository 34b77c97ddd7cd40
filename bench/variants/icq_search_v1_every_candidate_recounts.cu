// What  : variant 1 of icq_search: the definition, one thread per block of 64 weights.
// Math  : tau_i = fl(fl(f_i * A0) + tau0), tau0 the lower median, A0 = max|w - tau0|; of 201 candidates the first whose
//         codes have the highest entropy (paper Alg. 1). Each candidate quantizes all 64 weights and counts their codes.
// Shapes: w (1, n) F32, n % 64 = 0; tau, entropy_plain, entropy_best (1, n/64) F32. NF4, exact entropy.
// Cost  : 201 x 64 codes of 45 instructions are 580,000 per block of weights; a 11008 x 4096 matrix has 704,512 blocks:
//         1.3e10 warp instructions, 15 ms. But neighbouring threads read weights 256 bytes apart: every load of a warp
//         touches 32 lines and occupies the L1 for 32 cycles, 128 times per candidate: 80 ms.
// Tricky: nothing. The counts are an array with a run-time index, so they lie in local memory, which is DRAM behind the
//         caches.
// Change: none, this is the beginning.
// Predicted: 110 ms.
// Measured: 85.1 ms.
#include "bench/variants/icq.cuh"

namespace irq {
namespace {

constexpr int kThreads = 128;

__device__ float absmax(const float* w, float tau) {
  int bits = 0;
  for (int i = 0; i < kBlock; ++i) bits = max(bits, magnitude_bits(__fsub_rn(w[i], tau)));
  return __int_as_float(bits);
}
// The weight that 31 others precede.
__device__ float lower_median(const float* w) {
  float median = 0;
  for (int i = 0; i < kBlock; ++i) {
    int before = 0;
    for (int j = 0; j < kBlock; ++j) before += w[j] < w[i] || (w[j] == w[i] && j < i);
    if (before == (kBlock - 1) / 2) median = w[i];
  }
  return __fadd_rn(median, 0.0f);  // + 0 makes one zero of the two
}
__device__ int64_t sum_of_terms(const float* w, float tau, const Codebook& book, const IcqShared& shared) {
  const float a = absmax(w, tau), rcp = __fdiv_rn(1.0f, a);
  int counts[kLevels] = {};
  for (int i = 0; i < kBlock; ++i) ++counts[nfk_code<4>(book, __fsub_rn(w[i], tau), a, rcp)];
  int64_t sum = 0;
  for (int c = 0; c < kLevels; ++c) sum += shared.term[counts[c]];
  return sum;
}

__global__ void __launch_bounds__(kThreads) search(IcqArgs a) {
  __shared__ IcqShared shared;
  fill(shared, a);
  const int b = blockIdx.x * kThreads + threadIdx.x;
  if (b >= a.blocks) return;
  const float* w = a.w + static_cast<int64_t>(b) * kBlock;
  const float tau0 = lower_median(w), scale0 = absmax(w, tau0);
  int64_t best = INT64_MAX;
  float best_tau = 0;
  for (int i = 0; i < kCandidates; ++i) {
    const float tau = candidate(shared.factor[i], scale0, tau0);
    const int64_t sum = sum_of_terms(w, tau, a.book, shared);
    if (sum < best) best = sum, best_tau = tau;  // strictly: the first of equals stays
  }
  a.tau[b] = best_tau;
  a.plain[b] = entropy_bits(sum_of_terms(w, 0.0f, a.book, shared), kBlock, shared.term[kBlock]);
  a.best[b] = entropy_bits(best, kBlock, shared.term[kBlock]);
}

void run(Backend& backend, const std::vector<Tensor>& t) { launch_icq<kThreads>(search, kThreads, backend, t); }
[[maybe_unused]] const bool added = add_variant({"icq_search", "v1_every_candidate_recounts", run});

}  // namespace
}  // namespace irq
