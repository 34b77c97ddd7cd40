// ICQ (paper Alg. 1, as the released code does it): per block of 64 the shift tau, of 2n+1 candidates around the median,
// whose codes have the highest entropy. CPU reference.
#include "kernels/common.h"
#include "kernels/icq_boundaries.h"

namespace irq {

std::vector<float> icq_factors(const IcqSpec& spec) {
  const IcqGrid grid = icq_grid(spec);
  std::vector<float> factors(static_cast<size_t>(grid.count));
  for (int i = 0; i < grid.count; ++i)
    factors[static_cast<size_t>(i)] = static_cast<float>(static_cast<double>(i) * grid.step + grid.start);
  factors.back() = static_cast<float>(grid.last);
  return factors;
}

namespace {

// Is this histogram better than the best so far? Strictly, so that the first of equals stays.
struct Best {
  bool fp32;
  int64_t sum = 0;
  float entropy = 0;
  bool improve(const uint8_t* counts, int levels, bool first) {
    if (fp32) {
      const float h = entropy_fp32(counts);
      if (!first && !(h > entropy)) return false;
      entropy = h;
      sum = entropy_sum(counts, levels);
      return true;
    }
    const int64_t s = entropy_sum(counts, levels);
    if (!first && s >= sum) return false;
    sum = s;
    return true;
  }
};

template <int kBits>
IcqChoice search_sorted(const float* sorted, int n, float tau0, float scale0, const Codebook& book,
                        const std::vector<float>& factors, bool fp32, float margin, int64_t* sum_plain) {
  const float smallest = sorted[0], largest = sorted[n - 1];
  Boundaries<kBits> bounds(book, sorted, n, margin);
  uint8_t counts[16] = {};
  if (sum_plain) {
    bounds.start(0.0f, 1.0f / shifted_absmax(smallest, largest, 0.0f));
    bounds.counts(counts);
    *sum_plain = entropy_sum(counts, 1 << kBits);
  }
  IcqChoice choice;
  Best best{fp32};
  for (size_t i = 0; i < factors.size(); ++i) {
    const float shift = factors[i] * scale0;
    const float tau = shift + tau0;
    const float a = shifted_absmax(smallest, largest, tau);
    if (i == 0) bounds.start(tau, 1.0f / a);
    else if (!bounds.advance(tau, a)) continue;
    bounds.counts(counts);
    if (best.improve(counts, 1 << kBits, i == 0)) choice = {static_cast<int>(i), tau, best.sum};
  }
  return choice;
}

}  // namespace

IcqChoice icq_search_block_plain(const float* w, int n, const Codebook& book, const std::vector<float>& factors,
                                 bool fp32) {
  if (!std::isfinite(block_absmax(w, n))) return {-1, NAN, 0};
  fp32 = fp32 && book.bits == 4 && n == kBlock;
  float sorted[kBlock];
  std::copy(w, w + n, sorted);
  std::sort(sorted, sorted + n);
  const float tau0 = sorted[(n - 1) / 2] + 0.0f;  // lower median; + 0 makes one zero of the two
  float u[kBlock];
  for (int i = 0; i < n; ++i) u[i] = w[i] - tau0;
  const float scale0 = block_absmax(u, n);
  IcqChoice choice;
  Best best{fp32};
  for (size_t i = 0; i < factors.size(); ++i) {
    const float shift = factors[i] * scale0;
    const float tau = shift + tau0;
    uint8_t counts[16] = {};
    count_codes(counts, w, n, tau, book);
    if (best.improve(counts, 1 << book.bits, i == 0)) choice = {static_cast<int>(i), tau, best.sum};
  }
  return choice;
}

IcqChoice icq_search_block(const float* w, int n, const Codebook& book, const std::vector<float>& factors, bool fp32,
                           int64_t* sum_plain) {
  const float absmax = block_absmax(w, n);
  if (!std::isfinite(absmax)) {
    if (sum_plain) *sum_plain = 0;
    return {-1, NAN, 0};
  }
  float sorted[kBlock];
  sort_block(sorted, w, n);
  const float tau0 = sorted[(n - 1) / 2] + 0.0f;
  const float scale0 = shifted_absmax(sorted[0], sorted[n - 1], tau0);
  if (scale0 == 0.0f) {  // constant: all candidates are tau0, all codes equal
    if (sum_plain) *sum_plain = entropy_terms()[static_cast<size_t>(n)];
    return {0, tau0, entropy_terms()[static_cast<size_t>(n)]};
  }
  // Over the candidates |tau| and absmax(w - tau) are largest at the first or the last one.
  float reach = absmax;
  for (const float f : {factors.front(), factors.back()}) {
    const float shift = f * scale0;
    const float tau = shift + tau0;
    reach = std::max(reach, shifted_absmax(sorted[0], sorted[n - 1], tau) + std::abs(tau));
  }
  if (!is_ordinary(sorted[0], sorted[n - 1], reach)) {
    if (sum_plain) {
      uint8_t counts[16] = {};
      count_codes(counts, w, n, 0.0f, book);
      *sum_plain = entropy_sum(counts, 1 << book.bits);
    }
    return icq_search_block_plain(w, n, book, factors, fp32);
  }
  fp32 = fp32 && book.bits == 4 && n == kBlock;
  const float margin = reach * kMarginOfReach;
  const auto search = book.bits == 4 ? search_sorted<4> : book.bits == 3 ? search_sorted<3> : search_sorted<2>;
  return search(sorted, n, tau0, scale0, book, factors, fp32, margin, sum_plain);
}

void CpuBackend::icq_search(Tensor tau, Tensor entropy_plain, Tensor entropy_best, Tensor w, int bits, IcqSpec spec) {
  const Codebook& book = nf_codebook(bits);
  const std::vector<float> factors = icq_factors(spec);
  const int64_t numel = w.numel(), blocks = ceil_div(numel, kBlock);
  const float* weights = w.as<float>();
  float* out_tau = tau.as<float>();
  const bool plain_search = is_plain_search(spec);
#pragma omp parallel for schedule(static)
  for (int64_t b = 0; b < blocks; ++b) {
    const int n = static_cast<int>(std::min<int64_t>(kBlock, numel - b * kBlock));
    int64_t sum_plain = 0;
    int64_t* plain = entropy_plain ? &sum_plain : nullptr;
    const IcqChoice choice = plain_search
                                 ? icq_search_block(weights + b * kBlock, n, book, factors, spec.fp32_entropy, plain)
                                 : icq_search_block_general(weights + b * kBlock, n, book, spec, factors, plain);
    out_tau[b] = choice.tau;
    if (entropy_plain) entropy_plain.as<float>()[b] = choice.index < 0 ? NAN : entropy_bits(sum_plain, n);
    if (entropy_best) entropy_best.as<float>()[b] = choice.index < 0 ? NAN : entropy_bits(choice.sum, n);
  }
}

}  // namespace irq
