// The arithmetic of one group of integer codes (GPTQ's convention, fidelity 5.2), shared by the CPU references and the kernels.
// fp32, every step rounded on its own: no product is followed by a sum here, so no compiler can fuse any.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/quantized_matrix.h"
#include "src/core/rng.h"

namespace irq {

struct IntParams {
  float scale = 0, zero = 0;
};

IRQ_HD inline float int_top(int bits) { return static_cast<float>((1 << bits) - 1); }

// Of the range lo <= 0 <= hi. A range of zero, or one so small that its scale rounds to zero, counts as -1 .. 1: the codes
// of its weights are then all the zero point's.
IRQ_HD inline IntParams int_params_of(float lo, float hi, int bits, bool symmetric) {
  const float top = int_top(bits);
  if (symmetric) {
    hi = -lo > hi ? -lo : hi;
    lo = lo < 0 ? -hi : lo;
  }
  IntParams q;
  q.scale = (hi - lo) / top;
  if (q.scale == 0) lo = -1, q.scale = 2 / top;
  const float zero = rintf(-lo / q.scale);
  q.zero = symmetric ? (top + 1) / 2 : zero < top ? zero : top;  // more than top only where the scale is subnormal
  return q;
}

// Of weights from `low` to `high` that are shifted by tau before they are coded: w_hat = scale * (code - (zero - tau/scale)).
IRQ_HD inline IntParams shifted_int_params(float low, float high, float tau, int bits) {
  const float lo = low - tau, hi = high - tau;
  IntParams q = int_params_of(lo < 0 ? lo : 0, hi > 0 ? hi : 0, bits, false);
  q.zero = q.zero - tau / q.scale;
  return q;
}

// The code as a number. NaN gives 0.
template <bool kFloatZero>
IRQ_HD inline float int_code(float w, float scale, float zero, float top) {
  const float x = kFloatZero ? rintf(w / scale + zero) : rintf(w / scale) + zero;
  return x > 0 ? (x < top ? x : top) : 0.0f;
}

// What a search tries, in its order. clip: the factors of the range, as fp32 linspace gives them: 1 up to 1 + range, then
// below 1 down to 1 - range. zero_shift: the factors f of tau = f * max|w - tau0| + tau0 (icq_factors). none: {1}.
std::vector<float> int_factors(const IntSpec& spec);

// T[c] = round(c * log2(c) * 2^40) for c = 0..n, at least: entropy_terms() made longer by exact arithmetic. The same memory
// for all who ask for no more than was made already; it is never freed or changed.
const int64_t* int_entropy_terms(int64_t n);
constexpr int64_t kLongestGroup = 1 << 18;  // T[n] fits in 63 bits

// H = log2(n) - S / (n 2^40) in bits, S = the sum of the terms of the counts.
IRQ_HD inline float int_entropy_bits(int64_t sum, int64_t n, int64_t term_n) {
  return static_cast<float>(static_cast<double>(term_n - sum) / (static_cast<double>(n) * 0x1p40));
}

}  // namespace irq
