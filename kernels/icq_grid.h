// The candidates of ICQ's search, as the released code lays them out (fidelity 3.2).
#pragma once
#include "kernels/quantized_matrix.h"

namespace irq {

// One standard deviation of N(0,1) in units of the block's absmax, as the NF tables see it: 1 / 1.8481308221817017.
constexpr double kSigmaOfAbsmax = 0.5410872368978237;

// f_i = i * step + start in fp64, i = 0..2n, the last one forced to the upper end; then rounded to fp32.
struct IcqGrid {
  double start, step, last;
  int count;
};
inline IcqGrid icq_grid(const IcqSpec& spec) {
  if (spec.n == 0) return {0.0, 0.0, 0.0, 1};  // the median alone
  const double half = spec.width == IcqWidth::code ? spec.lambda * kSigmaOfAbsmax : spec.lambda;
  const int count = spec.even ? 2 * spec.n : 2 * spec.n + 1;
  return {-half, (half - -half) / (count - 1.0), half, count};
}

// The search that icq_search.{cpp,cu} are made for: steps of the block's absmax around tau0, the first of equals. All
// others take icq_search_general.{cpp,cu}.
inline bool is_plain_search(const IcqSpec& s) {
  return s.ties == IcqTies::first && s.search == IcqSearch::grid && !s.even &&
         (s.width == IcqWidth::code || s.width == IcqWidth::absmax);
}

}  // namespace irq
