// Is a kernel's result the reference's?
#pragma once
#include <bit>
#include <cmath>
#include <string>
#include <vector>

#include "src/core/check.h"

namespace irq {

// "" if it is, else what differs. tolerance 0: the same bits in every element (and a NaN only where the reference has it);
// otherwise the largest relative L2 distance. A NaN that the reference does not have never passes.
inline std::string difference(const std::vector<float>& out, const std::vector<float>& reference, double tolerance) {
  IRQ_CHECK(out.size() == reference.size(), "%zu results, %zu expected", out.size(), reference.size());
  double error = 0, size = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    const bool same = std::bit_cast<uint32_t>(out[i]) == std::bit_cast<uint32_t>(reference[i]);
    if ((tolerance == 0 && !same) || (std::isnan(out[i]) && !std::isnan(reference[i])))
      return strf("element %zu of %zu is %.9g, expected %.9g", i, out.size(), static_cast<double>(out[i]),
                  static_cast<double>(reference[i]));
    if (same) {
      size += std::isfinite(out[i]) ? static_cast<double>(out[i]) * static_cast<double>(out[i]) : 0;
      continue;
    }
    const double r = static_cast<double>(reference[i]), d = static_cast<double>(out[i]) - r;
    error += d * d, size += r * r;
  }
  const double distance = error == 0 ? 0 : std::sqrt(error / size);
  if (distance <= tolerance) return "";
  return strf("relative distance %.3g, at most %.3g allowed", distance, tolerance);
}

}  // namespace irq
