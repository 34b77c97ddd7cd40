// What both devices' low_rank agree on.
#pragma once
#include <cstdint>

#include "src/core/check.h"

namespace irq {

// Singular values up to this times the largest count as zero. An element of w carries 2^-24 of itself as rounding error,
// and the eigenvalues of w w^T, which are squares, carry 2^-53 of the largest times a small factor: both are noise there.
constexpr double kLowRankFloor = 0x1p-20;

[[noreturn]] inline void throw_not_finite(const char* name) {
  throw Error(strf("%s: has no low-rank approximation", name))
      .line("found", "a number that is not finite")
      .line("likely", "a damaged file, or a model whose training diverged");
}

}  // namespace irq
