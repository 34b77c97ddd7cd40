// The NormalFloat code tables, the 8-bit dynamic map, and the entropy terms: the only copy of these numbers.
// Source: paper Tables 11-13 and Eq. 7; docs in each definition.
#pragma once
#include <array>
#include <cstdint>

namespace irq {

constexpr int kBlock = 64;        // weights that share one scale (and one tau)
constexpr int kScaleGroup = 256;  // block scales that share one second-level scale

// A k-bit codebook, small enough to be passed to a kernel by value.
// code(x) = number of thresholds t with x > t (strict; NaN gives 0); value = level[code].
struct Codebook {
  int bits;
  int zero_code;        // the code whose level is 0 (what an all-zero block stores); 1 for NF2, which has no zero
  float level[16];      // 2^bits used, ascending
  float threshold[15];  // 2^bits - 1 used, ascending
};
const Codebook& nf_codebook(int bits);  // bits in {2, 3, 4}

// bitsandbytes' signed 8-bit dynamic map in its canonical form: 256 ascending values, evaluated exactly and rounded once.
const std::array<float, 256>& dynamic_map();

// T[c] = round(c * log2(c) * 2^40), c = 0..64: the exact-integer entropy. H = log2(n) - sum(T[count]) / (n * 2^40).
const std::array<int64_t, 65>& entropy_terms();
// -p * log2(p) in fp32 for p = c/64, as the released code's GPU computes it: for `--entropy fp32` on full blocks.
const std::array<float, 65>& entropy_terms_fp32();

}  // namespace irq
