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

// The same draws in two steps, for kernels that need many (row, feature) pairs: of Philox's ten rounds the first two mix
// what only the row knows with what only the feature and the adapter know, so that each half is computed once per row and
// once per column and eight rounds are left for a pair.  dropout_bits(f, ...) = dropout_pair(row, column, seed).
struct DropoutRow {
  uint32_t x, z, w;
};
struct DropoutColumn {
  uint32_t x, y, z;
};
IRQ_HD inline DropoutRow dropout_row(int position, int sample, const uint32_t* seed) {
  constexpr uint64_t kFirst = kPhiloxMultiplier[0], kSecond = kPhiloxMultiplier[1];
  constexpr uint32_t kStep1 = kPhiloxWeyl[1];
  const uint64_t p1 = kSecond * static_cast<uint32_t>(sample);
  const uint64_t p0 = kFirst * (static_cast<uint32_t>(p1 >> 32) ^ static_cast<uint32_t>(position) ^ seed[0]);
  return {static_cast<uint32_t>(p1), static_cast<uint32_t>(p0 >> 32) ^ (seed[1] + kStep1), static_cast<uint32_t>(p0)};
}
IRQ_HD inline DropoutColumn dropout_column(int64_t feature, int adapter, const uint32_t* seed) {
  constexpr uint64_t kFirst = kPhiloxMultiplier[0], kSecond = kPhiloxMultiplier[1];
  constexpr uint32_t kStep0 = kPhiloxWeyl[0];
  const uint64_t p0 = kFirst * static_cast<uint32_t>(feature / 8);
  const uint64_t p1 = kSecond * (static_cast<uint32_t>(p0 >> 32) ^ static_cast<uint32_t>(adapter) ^ seed[1]);
  return {static_cast<uint32_t>(p1 >> 32) ^ (seed[0] + kStep0), static_cast<uint32_t>(p1), static_cast<uint32_t>(p0)};
}
IRQ_HD inline Philox4 dropout_pair(DropoutRow row, DropoutColumn column, const uint32_t* seed) {
  constexpr uint32_t kStep0 = kPhiloxWeyl[0], kStep1 = kPhiloxWeyl[1];
  return philox<8>({row.x ^ column.x, column.y, row.z ^ column.z, row.w}, seed[0] + 2 * kStep0, seed[1] + 2 * kStep1);
}

// Two draws of a word against the threshold at once: bit 15 (31) of the result is set if the lower (upper) draw keeps its
// element. With d = 15 low bits of a draw: draw >= t is  top bit | d + (0x8000 - t) overflows into bit 15   for t <= 0x8000,
// and                                                    top bit & d + (0x10000 - t) overflows into bit 15  for larger t.
struct DropoutThreshold {
  uint32_t lift, either;  // what is added to both halves; all ones for "or", 0 for "and"
};
inline DropoutThreshold dropout_threshold(uint32_t threshold) {
  return {((threshold <= 0x8000 ? 0x8000 : 0x10000) - threshold) * 0x10001u, threshold <= 0x8000 ? 0xffffffffu : 0u};
}
IRQ_HD inline uint32_t dropout_kept(uint32_t word, DropoutThreshold t) {
  const uint32_t sum = (word & 0x7fff7fffu) + t.lift;
  return (word & sum) | ((word | sum) & t.either);
}

}  // namespace irq
