#include "bench/icq_naive.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/icq_grid.h"

namespace irq {
namespace {

float largest_magnitude(const float* w, float tau) {
  float largest = 0;
  for (int i = 0; i < kBlock; ++i) largest = std::max(largest, std::abs(w[i] - tau));
  return largest;
}

float search_block(const float* w, const Codebook& book, const std::vector<float>& factors) {
  float sorted[kBlock];
  std::copy(w, w + kBlock, sorted);
  std::nth_element(sorted, sorted + (kBlock - 1) / 2, sorted + kBlock);
  const float tau0 = sorted[(kBlock - 1) / 2] + 0.0f, scale0 = largest_magnitude(w, tau0);
  int64_t best_sum = INT64_MAX;
  float best = 0;
  for (const float factor : factors) {
    const float tau = factor * scale0 + tau0;
    const float a = largest_magnitude(w, tau), rcp = 1.0f / a;
    int counts[16] = {};
    for (int i = 0; i < kBlock; ++i) {
      const float x = (w[i] - tau) * rcp;
      int code = 0;
      for (int j = 0; j < (1 << book.bits) - 1; ++j) code += x > book.threshold[j];
      ++counts[a == 0 ? book.zero_code : code];
    }
    int64_t sum = 0;
    for (int c = 0; c < 1 << book.bits; ++c) sum += entropy_terms()[static_cast<size_t>(counts[c])];
    if (sum < best_sum) best_sum = sum, best = tau;
  }
  return best;
}

}  // namespace

void icq_search_naive(float* tau, const float* w, int64_t n, int bits, const IcqSpec& spec) {
  const Codebook& book = nf_codebook(bits);
  const IcqGrid grid = icq_grid(spec);
  std::vector<float> factors;
  for (int i = 0; i < grid.count; ++i)
    factors.push_back(
        static_cast<float>(i + 1 == grid.count ? grid.last : static_cast<double>(i) * grid.step + grid.start));
#pragma omp parallel for schedule(static)
  for (int64_t b = 0; b < n / kBlock; ++b) tau[b] = search_block(w + b * kBlock, book, factors);
}

}  // namespace irq
