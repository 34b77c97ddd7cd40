// What the variants of attention_fwd share: arguments, and the step of the online softmax that a warp with 16 rows takes.
#pragma once
#include "bench/variants/variant.cuh"
#include "kernels/attention.cuh"

namespace irq {

constexpr int kDim = 128;  // of a head

// Packed sequences of one length, each attending to itself causally; every query head has its own keys. The production kernel
// takes any lengths, prefixes, and groups of heads that share keys.
struct CausalArgs {
  __nv_bfloat16* o;
  float* lse;  // (H, N)
  const __nv_bfloat16 *q, *k, *v;
  int64_t o_stride, q_stride, k_stride, v_stride, lse_stride;
  int rows, heads, length;
  float scale;
};
inline CausalArgs causal_args(const std::vector<Tensor>& t) {  // o, lse, q, k, v, seqs: tests/cases/attention.h
  const auto bf16 = [](const Tensor& x) { return static_cast<__nv_bfloat16*>(x.data); };
  const int rows = static_cast<int>(t[2].rows), sequences = static_cast<int>(t[5].rows);
  IRQ_CHECK(rows % sequences == 0 && t[2].cols % kDim == 0 && t[3].cols == t[2].cols, "%d rows in %d sequences", rows,
            sequences);
  return {bf16(t[0]),
          t[1].as<float>(),
          bf16(t[2]),
          bf16(t[3]),
          bf16(t[4]),
          t[0].stride,
          t[2].stride,
          t[3].stride,
          t[4].stride,
          t[1].stride,
          rows,
          static_cast<int>(t[2].cols / kDim),
          rows / sequences,
          1 / std::sqrt(static_cast<float>(kDim))};
}

// The tile of query rows that a block has: blockIdx.x counts tiles through the sequences, the last of each first (it has the most
// keys, and what starts last should be short).
template <int kRows>
struct CausalTile {
  int begin, first, end;  // of the sequence; rows [first, end) of the buffer
  __device__ explicit CausalTile(const CausalArgs& a) {
    const int tiles = (a.length + kRows - 1) / kRows, sequence = blockIdx.x / tiles;
    begin = sequence * a.length;
    first = begin + (tiles - 1 - blockIdx.x % tiles) * kRows;
    end = min(first + kRows, begin + a.length);
  }
  static unsigned count(const CausalArgs& a) {
    return static_cast<unsigned>(a.rows / a.length * ceil_div(a.length, kRows));
  }
};

// A warp's 16 query rows between the two products, in mma's C layout: lane (g, p) has columns 8 n + 2 p, + 1 of rows g and g + 8.
template <int kKeys>
struct SoftmaxRows {
  float o[1][kDim / 8][4] = {};
  float row_max[2] = {-INFINITY, -INFINITY}, row_sum[2] = {};

  // Scores of keys [key, key + kKeys) -> probabilities, in place; first_row: the warp's, of the buffer, as `key` is.
  __device__ __forceinline__ void step(float (&s)[1][kKeys / 8][4], int key, int first_row, float c) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int limit = first_row + half * 8 + lane / 4 - key - lane % 4 * 2;  // columns above it are not seen
      float largest = row_max[half];
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& x = s[0][n][2 * half + e];
          if (n * 8 + e > limit) x = -INFINITY;
          largest = fmaxf(largest, x);
        }
      largest = fmaxf(largest, __shfl_xor_sync(kFullWarp, largest, 1));  // the four lanes of a row
      largest = fmaxf(largest, __shfl_xor_sync(kFullWarp, largest, 2));
      const float shift = largest * c,
                  shrink = exp2_hardware(row_max[half] * c - shift);  // every row sees its tile's first key
      row_max[half] = largest;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; ++e)
          s[0][n][e] = exp2_hardware(s[0][n][e] * c - shift), sum += s[0][n][e];
      row_sum[half] = row_sum[half] * shrink + sum;  // of this lane's columns
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) o[0][n][2 * half] *= shrink, o[0][n][2 * half + 1] *= shrink;
    }
  }
  // staging: 16 padded rows of shared memory that belong to this warp.
  __device__ __forceinline__ void store(const CausalArgs& a, int head, int first_row, int end, unsigned char* staging) {
    const int lane = threadIdx.x % kWarp;
    float inverse[1][2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = row_sum[half];
      sum += __shfl_xor_sync(kFullWarp, sum, 1);
      sum += __shfl_xor_sync(kFullWarp, sum, 2);
      inverse[0][half] = 1 / sum;
      const int row = first_row + half * 8 + lane / 4;
      if (lane % 4 == 0 && row < end) a.lse[head * a.lse_stride + row] = row_max[half] * a.scale + logf(sum);
    }
    store_rows<kDim>(a.o + head * kDim, a.o_stride, first_row, end, staging, o, inverse);
  }
};

}  // namespace irq
