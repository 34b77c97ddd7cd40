// Where weights pass thresholds as tau moves (icq_search_general.cpp has the derivation), and what a lambda of 1 is.
#pragma once
#include <algorithm>

#include "kernels/quantized_matrix.h"

namespace irq {

// The reciprocals of 1 - t and 1 + t, once for all blocks; small enough to be passed to a kernel by value.
struct IcqBreakpoints {
  double threshold[15], left[15], right[15];
  explicit IcqBreakpoints(const Codebook& book) {
    for (int j = 0; j < 15; ++j) {
      const double t = j < (1 << book.bits) - 1 ? static_cast<double>(book.threshold[j]) : 0.0;
      threshold[j] = t, left[j] = 1.0 / (1.0 - t), right[j] = 1.0 / (1.0 + t);
    }
  }
  // The tau at which weight w of a block between `smallest` and `largest` passes threshold j.
  double operator()(int j, float w, float smallest, float largest) const {
    const double t = threshold[j], x = static_cast<double>(w);
    const double a = (x - t * static_cast<double>(largest)) * left[j];
    const double b = (x + t * static_cast<double>(smallest)) * right[j];
    return t > 0 ? std::min(a, b) : std::max(a, b);
  }
};

// What the factors of the grid are multiplied with. n values, ascending; scale0 = absmax(w - tau0). The deviation is the
// root of the mean square about the mean, in fp64, summed in this order.
float icq_unit(IcqWidth width, const float* sorted, int n, float scale0);

}  // namespace irq
