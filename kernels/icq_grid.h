// The candidates of ICQ's search, as the released code lays them out (fidelity 3.2).
#pragma once
#include "kernels/quantized_matrix.h"

namespace irq {

// One standard deviation of N(0,1) in units of the block's absmax, as the NF tables see it: 1 / 1.8481308221817017.
constexpr double kSigmaOfAbsmax = 0.5410872368978237;

// f_i = i * step + start in fp64, i = 0..2n, the last one forced to lambda * sigma; then rounded to fp32.
struct IcqGrid {
  double start, step, last;
  int count;
};
inline IcqGrid icq_grid(const IcqSpec& spec) {
  if (spec.n == 0) return {0.0, 0.0, 0.0, 1};  // the median alone
  const double half = spec.lambda * kSigmaOfAbsmax;
  return {-half, (half - -half) / (2.0 * spec.n), half, 2 * spec.n + 1};
}

}  // namespace irq
