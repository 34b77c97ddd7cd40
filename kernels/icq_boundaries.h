// What the CPU's two searches of ICQ share: the sorted block, and where its codes begin. icq_search.cpp describes the search.
#pragma once
#include "kernels/nfk_block.h"

namespace irq {

// Histogram of the codes of w - tau, every weight on its own.
inline void count_codes(uint8_t* counts, const float* w, int n, float tau, const Codebook& book) {
  float u[kBlock];
  for (int i = 0; i < n; ++i) u[i] = w[i] - tau;
  const float a = block_absmax(u, n), rcp = 1.0f / a;
  std::fill(counts, counts + (1 << book.bits), uint8_t{0});
  for (int i = 0; i < n; ++i) ++counts[nfk_code(book, u[i], a, rcp)];
}

// Ascending order by counting for each value how many precede it: 64 x 64 comparisons without a branch.
inline void sort_block(float* sorted, const float* w, int n) {
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

// The largest |fl(w - tau)|: w - tau ascends with w, so it is at one of the ends.
inline float shifted_absmax(float smallest, float largest, float tau) {
  return std::max(std::abs(smallest - tau), std::abs(largest - tau));
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

// Blocks so small or so large that a reciprocal or a product would leave fp32's normal range take the plain way: every
// weight on its own. reach: the largest absmax(w - tau) + |tau| over the candidates, and absmax(w).
inline bool is_ordinary(float smallest, float largest, float reach) {
  return largest - smallest >= 0x1p-98f && reach <= 0x1p98f;
}
constexpr float kMarginOfReach = 0x1p-20f;  // 16e

}  // namespace irq
