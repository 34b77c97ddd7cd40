// Integer codes in the engine's bit stream (most significant bit first), shared by the CPU references and the kernels.
#pragma once
#include <cstdint>

#include "src/core/rng.h"

namespace irq {

// Code i of a stream of `bits` (2 to 4) wide codes. It spans at most two bytes; the second is read only if it holds part of it.
IRQ_HD inline uint32_t stream_code(const uint8_t* stream, int bits, int64_t i) {
  const int64_t at = i * bits;
  const int skip = static_cast<int>(at & 7);
  uint32_t window = static_cast<uint32_t>(stream[at >> 3]) << 8;
  if (skip + bits > 8) window |= stream[(at >> 3) + 1];
  return (window >> (16 - skip - bits)) & ((1u << bits) - 1u);
}

}  // namespace irq
