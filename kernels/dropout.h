// What the CPU reference and the CUDA kernel of dropout share: which of the mask's bits belong to which element.
#pragma once
#include "src/core/check.h"
#include "src/core/rng.h"

namespace irq {

// An element is kept if its 16-bit draw is at least `threshold`; kept elements are multiplied by `scale`.
// p is rounded to threshold / 65536, and scale inverts the rounded rate, so that the mean is kept exactly.
struct DropoutRate {
  uint32_t threshold;
  double scale;
};
inline DropoutRate dropout_rate(double p) {
  IRQ_CHECK(p >= 0 && p * 65536 < 65535.5, "dropout rate %g is not in [0, 1)", p);
  const uint32_t threshold = static_cast<uint32_t>(std::llround(p * 65536));
  return {threshold, 65536.0 / (65536 - threshold)};
}

// The eight 16-bit draws of features 8 * (feature / 8) + 0..7.
IRQ_HD inline Philox4 dropout_bits(int64_t feature, int position, int sample, int adapter, const uint32_t* seed) {
  return philox({static_cast<uint32_t>(feature / 8), static_cast<uint32_t>(position), static_cast<uint32_t>(sample),
                 static_cast<uint32_t>(adapter)},
                seed[0], seed[1]);
}
// Draw j of the eight: x low, x high, y low, y high, z low, ...
IRQ_HD inline uint32_t dropout_draw(Philox4 bits, int j) {
  const uint32_t word = j < 4 ? (j < 2 ? bits.x : bits.y) : (j < 6 ? bits.z : bits.w);
  return j % 2 == 0 ? word & 0xffffu : word >> 16;
}

}  // namespace irq
