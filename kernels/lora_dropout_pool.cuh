// The pooled branch inside lora_dropout_fwd.cu: sums of rows of x over slices of features, by the tensor cores.
#pragma once
#include "kernels/sm80.cuh"

namespace irq {

// Which slice a feature belongs to. Exact below 2^16 features: the product's error is under feature * slice / 2^32, less than the
// distance to the next slice.
struct SliceOf {
  static constexpr int kMaxFeatures = 1 << 16;
  int slice;
  uint32_t inverse;  // ceil(2^32 / slice)
  explicit SliceOf(int s)
      : slice(s),
        inverse(
            static_cast<uint32_t>(((uint64_t{1} << 32) + static_cast<uint64_t>(s) - 1) / static_cast<uint64_t>(s))) {}
  __device__ __forceinline__ int operator()(int feature) const {
    return static_cast<int>(__umulhi(static_cast<uint32_t>(feature), inverse));
  }
};

// The sums of 16 rows of x over slices, for one warp and its range of features. In the result's column t % 8 of mma stands
// slice t, while t is in the window of eight from `base` on; then they are added to `sums` (16 rows, kPitch), at column
// t + the range's number: neighbouring ranges may share a slice, so each has a column of its own for it.
template <int kPitch>
struct RowSums {
  float* sums;
  float sum[4] = {};

  // last: the slice up to which it has added; the others of the window may be a neighbouring range's.
  __device__ __forceinline__ void flush(int base, int last) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, g = lane / 4, q = lane % 4;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int t = base + ((2 * q + e - base) & 7);
      if (t <= last) sums[g * kPitch + t] += sum[e], sums[(g + 8) * kPitch + t] += sum[2 + e];
      sum[e] = sum[2 + e] = 0;
    }
  }
  __device__ __forceinline__ void add(const uint32_t (&low)[4], const uint32_t (&high)[4], const uint32_t (&ones)[4]) {
    mma_m16n8k16(sum, {low[0], high[0], low[1], high[1]}, ones[0], ones[1]);
    mma_m16n8k16(sum, {low[2], high[2], low[3], high[3]}, ones[2], ones[3]);
  }
};

// Ones where features c + 2 w and c + 2 w + 1 belong to a slice t with t % 8 = g: mma's column g.
__device__ __forceinline__ void slice_columns(uint32_t (&ones)[4], int c, const SliceOf& slice_of) {
  const int g = static_cast<int>(threadIdx.x) % kWarp / 4;
  const auto column = [&](int feature) { return (slice_of(feature) & 7) == g ? 0x3f803f80u : 0u; };
  ones[0] = column(c), ones[2] = column(c + 4);
  ones[1] = ones[0], ones[3] = ones[2];
  if (slice_of.slice % 4 != 0) ones[1] = column(c + 2), ones[3] = column(c + 6);
}

// The sum over a block's features of x in slice t, from those of its kRanges ranges that have some of it.
template <int kRanges>
__device__ __forceinline__ float pooled_sum(const float* row, int t, int first_feature, int range, int slice) {
  float sum = 0;
#pragma unroll
  for (int r = 0; r < kRanges; ++r) {
    const int begin = first_feature + r * range, end = begin + range;
    if (begin < (t + 1) * slice && end > t * slice) sum += row[t + r];
  }
  return sum;
}

}  // namespace irq
