// ICQ's search of one block by one lane, from the sorted weights: icq_search.cu describes it, icq_search.cpp specifies it.
//
// From candidate i to i + 1 every threshold j moves up along the weights, from position P_j(i) = tau_i + t_j a_i to P_j(i+1),
// and each weight that it passes changes two counts by one: an event. sweep() visits the events in order of i instead of
// the candidates (66 events for NF4, not 201 candidates of 15 thresholds): for each threshold one word in `queue` holds the
// index at which it may pass its next weight, and the smallest word is the next event. There the exact fp32 predicate
// decides; if the weight is not passed yet, the event is put off to i + 1.
//
// Why no event is missed. The index is solved from P_j = w - margin and rounded up. With e = 2^-24 and R the largest
// a_i + |tau_i|, what separates this from the exact predicate is, in units of e R and of position: 3.2 for the predicate,
// 1 for a_i, 1.87 (the largest slope of P in tau) times 12 for tau_i and the index, 18.5 for the solution: 45. The margin
// is 128. Why a weight once passed stays passed: the next position is at least (1 - max|t|) step A0 further, less 10, and
// both predicates are within 3.2 + 1; the sweep is used only if that advance is at least 32. A margin too wide or a
// condition too strict costs time, never a wrong result; blocks outside take search_plainly().
// Among events of one index the highest threshold goes first, so that no count is ever negative.
#pragma once
#include "kernels/icq_grid.h"
#include "kernels/nfk_block.cuh"
#include "kernels/sm80.cuh"

namespace irq {

// Shared by all lanes of a thread block. Sums of entropy terms are integers below 2^53: fp64 holds them exactly, and its
// pipe is idle otherwise.
struct IcqTables {
  double term[kBlock + 1];      // T[c]
  double gain[kBlock + 1];      // T[c] - T[c - 1]; gain[0] = 0
  float term_fp32[kBlock + 1];
  float threshold[16];          // descending, then minus infinity: threshold[r] is the lower end of the r-th level from the top
};
// One warp's blocks, a column each: conflict-free whatever row a lane reads. Rows of levels count from the top level.
template <int kBits>
struct IcqColumns {
  float sorted[kBlock + 1][kWarp];       // [rank][lane]; behind the n weights infinities
  uint32_t queue[1 << kBits][kWarp];     // [level][lane]: index << 18 | level << 14 | rank << 7 | weights of this level
};

__device__ __forceinline__ float shifted_absmax(float smallest, float largest, float tau) {
  return fmaxf(fabsf(__fsub_rn(smallest, tau)), fabsf(__fsub_rn(largest, tau)));
}
// fl(1/a) for 2^-126 <= a <= 2^125: what __frcp_rn does there, without the branch to its slow part.
__device__ __forceinline__ float reciprocal_rn(float a) {
  const float r = reciprocal_hardware(a);
  return __fmaf_rn(r, __fmaf_rn(-a, r, 1.0f), r);
}

template <int kBits, bool kFp32>
struct IcqLane {
  static constexpr int kLevels = 1 << kBits, kCount = kLevels - 1, kGroups = kLevels / 4;
  static constexpr int kIndexAt = 18, kLevelAt = 14, kRankAt = 7;
  static constexpr uint32_t kLow7 = 127;
  // float bits of kMagic + i, |i| < 2^22, are those of kMagic plus i; kMagic's own bits vanish in a shift by kIndexAt.
  static constexpr float kMagic = 12582912.0f;

  const IcqTables& tables;
  const float* sorted;   // this lane's columns
  uint32_t* queue;
  const float* factors;
  int n, candidates;
  float smallest, largest, tau0, scale0;
  bool by_fp32;  // compare the released code's fp32 entropies
  double best_sum = 0;
  float best_entropy = 0;
  int best_index = 0;

  __device__ float weight(uint32_t i) const { return sorted[i * kWarp]; }
  __device__ uint32_t& word(uint32_t level) const { return queue[level * kWarp]; }
  __device__ float candidate(int i) const { return __fadd_rn(__fmul_rn(factors[i], scale0), tau0); }

  // The released code's fp32 entropy (4-bit only): four strided accumulators, in order of the codes.
  __device__ float entropy_fp32() const {
    float lanes[4] = {};
#pragma unroll
    for (int c = 0; c < kLevels; ++c) lanes[c % 4] = __fadd_rn(lanes[c % 4], tables.term_fp32[word(kCount - c) & kLow7]);
    return __fadd_rn(__fadd_rn(__fadd_rn(lanes[0], lanes[1]), lanes[2]), lanes[3]);
  }
  // Keeps candidate i if it is better than all before. Strictly, so that the first of equals stays.
  __device__ void consider(int i, double sum, bool first) {
    if (kFp32 && by_fp32) {
      const float entropy = entropy_fp32();
      if (first || entropy > best_entropy) best_entropy = entropy, best_sum = sum, best_index = i;
    } else if (first || sum < best_sum) {
      best_sum = sum, best_index = i;
    }
  }

  // ---- the general way: every candidate quantizes all weights -----------------------------------------------------
  __device__ double count_all(const Codebook& book, float tau) const {
    int bits = 0;
#pragma unroll 1
    for (int i = 0; i < n; ++i) bits = max(bits, magnitude_bits(__fsub_rn(weight(i), tau)));
    const float a = __int_as_float(bits), rcp = __fdiv_rn(1.0f, a);
#pragma unroll 1
    for (int level = 0; level < kLevels; ++level) word(level) = 0;
#pragma unroll 1
    for (int i = 0; i < n; ++i) ++word(kCount - nfk_code<kBits>(book, __fsub_rn(weight(i), tau), a, rcp));
    double sum = 0;
#pragma unroll 1
    for (int level = 0; level < kLevels; ++level) sum += tables.term[word(level)];
    return sum;
  }
  __device__ void search_plainly(const Codebook& book) {
#pragma unroll 1
    for (int i = 0; i < candidates; ++i) consider(i, count_all(book, candidate(i)), i == 0);
  }

  // ---- the sweep --------------------------------------------------------------------------------------------------
  __device__ static bool above(float w, float tau, float rcp, float threshold) {
    return __fmul_rn(__fsub_rn(w, tau), rcp) > threshold;
  }
  // The number of weights at or below a threshold. The codes ascend along the sorted block: binary search.
  __device__ uint32_t rank_of(float tau, float rcp, float threshold) const {
    uint32_t rank = 0;
#pragma unroll
    for (uint32_t step = kBlock / 2; step > 0; step /= 2)
      if (!above(weight(rank + step - 1), tau, rcp, threshold)) rank += step;
    return rank + (above(weight(rank), tau, rcp, threshold) ? 0 : 1);
  }
  // The entropy terms of the codes of w itself.
  __device__ double plain_sum() const {
    const float rcp = reciprocal_rn(shifted_absmax(smallest, largest, 0.0f));
    double sum = 0;
    uint32_t higher = n;  // weights up to the level above
#pragma unroll 4
    for (int level = 0; level < kLevels; ++level) {
      const uint32_t rank = rank_of(0.0f, rcp, tables.threshold[level]);
      sum += tables.term[higher - rank];
      higher = rank;
    }
    return sum;
  }

  // P_j(tau) = tau + t a(tau), a = max(largest - tau, tau - smallest), solved for tau - tau0 on either side of the kink.
  struct Onset {
    float high_edge, low_edge, high_reach, low_reach, per_candidate, origin, end;
    // kMagic + the first index at which threshold t may pass weight w, at least `floor`, at most `end`.
    __device__ float operator()(float w, float t, float floor) const {
      const float left = fmaf(w - high_edge, reciprocal_hardware(1.0f - t), high_reach);
      const float right = fmaf(w - low_edge, reciprocal_hardware(1.0f + t), low_reach);
      const float shift = t > 0.0f ? fminf(left, right) : fmaxf(left, right);
      return fminf(fmaxf(__fmaf_ru(shift, per_candidate, origin), floor), end);
    }
  };
  __device__ Onset onset(float margin, float step) const {
    return {largest + margin,          smallest + margin, largest - tau0, smallest - tau0, reciprocal_hardware(scale0 * step),
            kMagic + static_cast<float>(candidates / 2), kMagic + static_cast<float>(candidates)};
  }
  // Codes, counts and first events of candidate 0; the smallest word of every four levels.
  __device__ double start(const Onset& next, uint32_t (&head)[kGroups]) {
    const float tau = candidate(0), rcp = reciprocal_rn(shifted_absmax(smallest, largest, tau));
    double sum = 0;
    uint32_t higher = n;
#pragma unroll 1  // for the size of the code: all warps go through it
    for (int four = 0; four < kGroups; ++four) {
      uint32_t first = UINT32_MAX;
#pragma unroll
      for (int level = 4 * four; level < 4 * four + 4; ++level) {
        const float t = tables.threshold[level];
        const uint32_t rank = rank_of(tau, rcp, t), count = higher - rank;
        const uint32_t index = __float_as_uint(next(weight(rank), t, kMagic + 1.0f));
        const uint32_t at = (index << kIndexAt) | static_cast<uint32_t>(level << kLevelAt) | (rank << kRankAt);
        const uint32_t entry = (level < kCount ? at : ~kLow7) | count;  // nothing falls below the lowest level: no event
        word(level) = entry;
        first = min(first, entry);
        sum += tables.term[count];
        higher = rank;
      }
#pragma unroll
      for (int group = 0; group < kGroups; ++group) head[group] = four == group ? first : head[group];
    }
    return sum;
  }
  __device__ void sweep(float margin, float step) {
    const Onset next = onset(margin, step);
    uint32_t head[kGroups] = {};
    double sum = start(next, head);
    consider(0, sum, true);
    int current = 0;
    for (;;) {
      uint32_t key = head[0];
#pragma unroll
      for (int group = 1; group < kGroups; ++group) key = min(key, head[group]);
      const int i = static_cast<int>(key >> kIndexAt);
      if (i != current) {
        consider(current, sum, false);
        current = i;
      }
      if (i >= candidates) break;
      const uint32_t level = (key >> kLevelAt) & (kLevels - 1), rank = (key >> kRankAt) & kLow7;
      const float tau = candidate(i), rcp = reciprocal_rn(shifted_absmax(smallest, largest, tau)), t = tables.threshold[level];
      const uint32_t own = word(level), below = word(level + 1);
      const uint32_t others = min(min(word(level ^ 1), word(level ^ 2)), word(level ^ 3));
      // Nothing here branches: nearly always the weight is passed.
      const float now = __uint_as_float(static_cast<uint32_t>(i) + __float_as_uint(kMagic));
      const float after = next(weight(rank + 1), t, now);
      const double change = tables.gain[(below & kLow7) + 1] - tables.gain[own & kLow7];
      const bool passed = !above(weight(rank), tau, rcp, t);
      sum += passed ? change : 0.0;
      // Passed: the rank goes up, the count goes down, and the level below has one more.
      const uint32_t index = __float_as_uint(passed ? after : now + 1.0f) << kIndexAt;
      const uint32_t entry = index + (own & ((1u << kIndexAt) - 1)) + (passed ? (1u << kRankAt) - 1u : 0u);
      word(level) = entry;
      word(level + 1) = below + (passed ? 1u : 0u);
      const uint32_t first = min(entry, others), in_group = key & (((kLevels - 1u) & ~3u) << kLevelAt);
#pragma unroll
      for (uint32_t group = 0; group < kGroups; ++group) head[group] = in_group == group << (kLevelAt + 2) ? first : head[group];
    }
  }
};

}  // namespace irq
