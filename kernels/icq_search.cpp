// ICQ (paper Alg. 1, as the released code does it): per block of 64 the shift tau, of 2n+1 candidates around the median,
// whose codes have the highest entropy. CPU reference.
#include "kernels/common.h"
#include "kernels/nfk_block.h"

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

void count_codes(uint8_t* counts, const float* w, int n, float tau, const Codebook& book) {
  float u[kBlock];
  for (int i = 0; i < n; ++i) u[i] = w[i] - tau;
  const float a = block_absmax(u, n), rcp = 1.0f / a;
  std::fill(counts, counts + (1 << book.bits), uint8_t{0});
  for (int i = 0; i < n; ++i) ++counts[nfk_code(book, u[i], a, rcp)];
}

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

// Ascending order by counting for each value how many precede it: 64 x 64 comparisons without a branch.
void sort_block(float* sorted, const float* w, int n) {
  alignas(32) float value[kBlock];
  alignas(32) int32_t rank[kBlock] = {};
  for (int i = 0; i < kBlock; ++i) value[i] = i < n ? w[i] : INFINITY;
  for (int i = 0; i < n; ++i) {
    const float v = value[i];
    for (int j = 0; j < i; ++j) rank[j] += v < value[j];  // equal values keep their order
    for (int j = i + 1; j < kBlock; ++j) rank[j] += v <= value[j];
  }
  for (int i = 0; i < n; ++i) sorted[rank[i]] = value[i];
}

// Boundaries of the codes in the sorted block: bound[j] = number of weights whose x does not exceed threshold j.
//
// fl(w - tau) and the multiplication by a positive factor are monotone, so the codes ascend along the sorted block and
// these boundaries give the exact histogram. From one candidate to the next each moves a few places at most. A boundary
// is looked at only when the threshold's position tau + t * a, computed in fp32, comes within `margin` of a neighbouring
// weight; then the exact predicate decides. Why the margin is enough: with e = 2^-24, x = (w - tau)/a * (1 + d),
// |d| <= 3.1e, plus at most 2^-149, and |w - tau| <= a (1 + e); the position's own rounding is at most 3e (a + |tau|),
// that of weight +- margin e (a + |tau|) (1 + margin): all together below 9e (a + |tau|) for a >= 2^-100. margin = 16e.
template <int kBits>
struct Boundaries {
  static constexpr int kCount = (1 << kBits) - 1;
  static constexpr int kWidth = kBits == 4 ? 16 : 8;  // padded to whole vectors; padding never moves
  alignas(32) float threshold[kWidth], lower[kWidth], upper[kWidth];
  int bound[kCount];
  const float* sorted;
  int n;
  float margin;

  Boundaries(const Codebook& book, const float* sorted_block, int size, float safety)
      : sorted(sorted_block), n(size), margin(safety) {
    for (int j = 0; j < kWidth; ++j)
      threshold[j] = j < kCount ? book.threshold[j] : 0.0f, lower[j] = -INFINITY, upper[j] = INFINITY;
  }
  // Exact: x > threshold for weight i?
  bool above(int i, int j, float tau, float rcp) const { return (sorted[i] - tau) * rcp > threshold[j]; }
  void settle(int j, int b) {
    bound[j] = b;
    lower[j] = b > 0 ? sorted[b - 1] + margin : -INFINITY;
    upper[j] = b < n ? sorted[b] - margin : INFINITY;
  }
  void start(float tau, float rcp) {
    for (int j = 0, b = 0; j < kCount; ++j) {
      while (b < n && !above(b, j, tau, rcp)) ++b;
      settle(j, b);
    }
  }
  bool unsafe(int j, float tau, float a) const {
    const float position = tau + threshold[j] * a;
    return position <= lower[j] || position >= upper[j];
  }
  // True if any boundary moved.
  bool advance(float tau, float a) {
    int near = 0;
#pragma omp simd reduction(| : near)
    for (int j = 0; j < kWidth; ++j) {
      const float position = tau + threshold[j] * a;
      near |= static_cast<int>(position <= lower[j]) | static_cast<int>(position >= upper[j]);
    }
    if (!near) return false;
    const float rcp = 1.0f / a;
    bool moved = false;
    for (int j = 0; j < kCount; ++j) {
      if (!unsafe(j, tau, a)) continue;
      int b = bound[j];
      while (b < n && !above(b, j, tau, rcp)) ++b;
      while (b > 0 && above(b - 1, j, tau, rcp)) --b;
      if (b != bound[j]) settle(j, b), moved = true;
    }
    return moved;
  }
  void counts(uint8_t* out) const {
    for (int j = 0, before = 0; j < kCount; ++j) out[j] = static_cast<uint8_t>(bound[j] - before), before = bound[j];
    out[kCount] = static_cast<uint8_t>(n - bound[kCount - 1]);
  }
};

// The largest |fl(w - tau)|: w - tau ascends with w, so it is at one of the ends.
inline float shifted_absmax(float smallest, float largest, float tau) {
  return std::max(std::abs(smallest - tau), std::abs(largest - tau));
}

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
  // Blocks so small or so large that a reciprocal or a product would leave fp32's normal range take the plain way.
  if (!(sorted[n - 1] - sorted[0] >= 0x1p-98f) || !(reach <= 0x1p98f)) {
    if (sum_plain) {
      uint8_t counts[16] = {};
      count_codes(counts, w, n, 0.0f, book);
      *sum_plain = entropy_sum(counts, 1 << book.bits);
    }
    return icq_search_block_plain(w, n, book, factors, fp32);
  }
  fp32 = fp32 && book.bits == 4 && n == kBlock;
  const float margin = reach * 0x1p-20f;
  const auto search = book.bits == 4 ? search_sorted<4> : book.bits == 3 ? search_sorted<3> : search_sorted<2>;
  return search(sorted, n, tau0, scale0, book, factors, fp32, margin, sum_plain);
}

void CpuBackend::icq_search(Tensor tau, Tensor entropy_plain, Tensor entropy_best, Tensor w, int bits, IcqSpec spec) {
  const Codebook& book = nf_codebook(bits);
  const std::vector<float> factors = icq_factors(spec);
  const int64_t numel = w.numel(), blocks = ceil_div(numel, kBlock);
  const float* weights = w.as<float>();
  float* out_tau = tau.as<float>();
#pragma omp parallel for schedule(static)
  for (int64_t b = 0; b < blocks; ++b) {
    const int n = static_cast<int>(std::min<int64_t>(kBlock, numel - b * kBlock));
    int64_t sum_plain = 0;
    const IcqChoice choice = icq_search_block(weights + b * kBlock, n, book, factors, spec.fp32_entropy,
                                              entropy_plain ? &sum_plain : nullptr);
    out_tau[b] = choice.tau;
    if (entropy_plain) entropy_plain.as<float>()[b] = choice.index < 0 ? NAN : entropy_bits(sum_plain, n);
    if (entropy_best) entropy_best.as<float>()[b] = choice.index < 0 ? NAN : entropy_bits(choice.sum, n);
  }
}

}  // namespace irq
