// The arithmetic of one NF-k block on the host: what nfk_quantize.cpp, icq_search.cpp and the tests share. Every fp32 step
// is rounded on its own (the CPU build has -ffp-contract=off); the .cu files do the same steps with __fmul_rn and kin.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "kernels/icq_grid.h"
#include "kernels/nf_codebook.h"

namespace irq {

// |x| as an integer: ordered like the numbers, with infinity and then NaN above all, so a maximum never loses a NaN.
inline int32_t magnitude_bits(float x) { return std::bit_cast<int32_t>(x) & 0x7fffffff; }

// max |w[i]| of n values; infinite or NaN if any of them is.
inline float block_absmax(const float* w, int n) {
  int32_t largest = 0;
  for (int i = 0; i < n; ++i) largest = std::max(largest, magnitude_bits(w[i]));
  return std::bit_cast<float>(largest);
}

// Code of u where the block's absmax is a and rcp = fl(1/a): x = fl(u * rcp), number of thresholds below x. A block of
// zeros (a = 0) holds the zero code.
inline int nfk_code(const Codebook& book, float u, float a, float rcp) {
  if (a == 0.0f) return book.zero_code;
  const float x = u * rcp;
  int code = 0;
  for (int j = 0; j < (1 << book.bits) - 1; ++j) code += x > book.threshold[j];
  return code;
}

// sum of T[count]: the smaller, the higher the entropy.
inline int64_t entropy_sum(const uint8_t* counts, int levels) {
  int64_t sum = 0;
  for (int c = 0; c < levels; ++c) sum += entropy_terms()[counts[c]];
  return sum;
}

// H = log2(n) - S / (n 2^40) in bits, written with T[n] = n log2(n) 2^40 so that no logarithm is evaluated: the same bits
// on every device.
inline float entropy_bits(int64_t sum, int n) {
  return static_cast<float>(static_cast<double>(entropy_terms()[static_cast<size_t>(n)] - sum) /
                            (static_cast<double>(n) * 0x1p40));
}

// The released code's fp32 entropy of 16 counts: four strided accumulators, then ((0 + 1) + 2) + 3.
inline float entropy_fp32(const uint8_t* counts) {
  const std::array<float, 65>& term = entropy_terms_fp32();
  float lane[4];
  for (int j = 0; j < 4; ++j)
    lane[j] = ((term[counts[j]] + term[counts[j + 4]]) + term[counts[j + 8]]) + term[counts[j + 12]];
  return ((lane[0] + lane[1]) + lane[2]) + lane[3];
}

// s_hat = fl(fl(map[code] * group) + offset), or the plain scale; tau_hat = fl(map[code] * group).
inline float block_scale(const QuantizedMatrix& q, int64_t block) {
  if (q.format.scale == ScaleKind::f32) return q.scales.as<float>()[block];
  const float spread =
      q.map.as<float>()[q.scale_codes.as<uint8_t>()[block]] * q.scale_groups.as<float>()[block / kScaleGroup];
  return spread + q.scale_offset.as<float>()[0];
}
inline float block_tau(const QuantizedMatrix& q, int64_t block) {
  return q.map.as<float>()[q.tau_codes.as<uint8_t>()[block]] * q.tau_groups.as<float>()[block / kScaleGroup];
}
// w_hat of a whole block (the last may be short) in fp32; out holds 64. Returns how many weights the block has.
int nfk_dequant_block(float* out, const QuantizedMatrix& q, const Codebook& book, int64_t block);

std::vector<float> icq_factors(const IcqSpec& spec);  // icq_grid in fp32

struct IcqChoice {
  int index = 0;  // of the factor; -1: the block holds a NaN or an infinity, and tau is NaN
  float tau = 0;
  int64_t sum = 0;  // entropy_sum of the codes of w - tau
};
// The search of one block of n <= 64 weights, by the definition: every candidate quantizes all weights. 13,000 codes.
IcqChoice icq_search_block_plain(const float* w, int n, const Codebook& book, const std::vector<float>& factors,
                                 bool fp32);
// The same result, bit for bit, from the sorted block. sum_plain (may be null): entropy_sum of the codes of w itself.
IcqChoice icq_search_block(const float* w, int n, const Codebook& book, const std::vector<float>& factors, bool fp32,
                           int64_t* sum_plain = nullptr);
// Any spec without fp32_entropy; icq_search_general.cpp specifies it. The index is that of the factor, or 0 where a piece won.
IcqChoice icq_search_block_general(const float* w, int n, const Codebook& book, const IcqSpec& spec,
                                   const std::vector<float>& factors, int64_t* sum_plain = nullptr);
// Squared error of the n weights quantized with this shift: w_hat = fl(fl(level * a) + tau), a = absmax(w - tau) as it is,
// before any double quantization. Squares in fp64, added in the order of w.
double icq_squared_error(const float* w, int n, const Codebook& book, float tau);

}  // namespace irq
