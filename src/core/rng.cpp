#include "src/core/rng.h"

#include <numbers>

namespace irq {

uint32_t Rng::next_u32() {
  if (used_ == 4) {
    const Philox4 r = philox({static_cast<uint32_t>(block_), static_cast<uint32_t>(block_ >> 32),
                              static_cast<uint32_t>(id_), static_cast<uint32_t>(id_ >> 32)},
                             static_cast<uint32_t>(seed_), static_cast<uint32_t>(seed_ >> 32));
    bits_ = {r.x, r.y, r.z, r.w};
    ++block_;
    used_ = 0;
  }
  return bits_[static_cast<size_t>(used_++)];
}

double Rng::uniform() {
  const uint64_t high = next_u32(), low = next_u32();
  return static_cast<double>(((high << 32) | low) >> 11) * 0x1p-53;
}

double Rng::normal() {
  const double u = 1.0 - uniform(), v = uniform();  // u in (0, 1]: the logarithm is finite
  return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v);
}

uint64_t Rng::below(uint64_t bound) {
  const uint64_t limit = UINT64_MAX - UINT64_MAX % bound;
  for (;;) {
    const uint64_t high = next_u32(), low = next_u32();
    const uint64_t r = (high << 32) | low;
    if (r < limit) return r % bound;
  }
}

}  // namespace irq
