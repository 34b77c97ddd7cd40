// The numbers of a multiple-choice task.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace irq {

// The first of the largest, as numpy's argmax has it.
inline int64_t first_largest(const std::vector<double>& scores) {
  size_t best = 0;
  for (size_t i = 1; i < scores.size(); ++i)
    if (scores[i] > scores[best]) best = i;
  return static_cast<int64_t>(best);
}

struct Accuracy {
  int64_t right = 0, n = 0;
  void add(bool is_right) { right += is_right, ++n; }
  void add(const Accuracy& o) { right += o.right, n += o.n; }
  double value() const { return n > 0 ? static_cast<double>(right) / static_cast<double>(n) : std::nan(""); }
  // Of the mean: the sample's standard deviation (n - 1) over sqrt(n), as lm-evaluation-harness has it. NaN for n = 1.
  double standard_error() const {
    return n > 1 ? std::sqrt(value() * (1 - value()) / static_cast<double>(n - 1)) : std::nan("");
  }
};

}  // namespace irq
