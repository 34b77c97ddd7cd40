// The masks of a group's adapters as bits.
#include <cstring>

#include "kernels/common.h"
#include "kernels/dropout.h"

namespace irq {

void CpuBackend::dropout_masks(Tensor bits, int64_t h, AdapterMasks masks) {
  const uint32_t threshold = dropout_rate(masks.p).threshold;
  const uint32_t* seed = step_params(masks.params).seed;
  const int32_t *position = masks.positions.as<int32_t>(), *sample = masks.samples.as<int32_t>();
  const int64_t blocks = mask_blocks(h), rows = masks.positions.cols;
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < bits.rows; ++row) {
    const int adapter = masks.ids[static_cast<size_t>(row / blocks)];
    const int64_t first = row % blocks * kMaskFeatures, last = std::min(h, first + kMaskFeatures);
    std::memset(bits.row<uint8_t>(row), 0, static_cast<size_t>(bits.cols));
    for (int64_t n = 0; n < rows; ++n) {
      if (position[n] < 0) continue;
      uint64_t word = 0;
      Philox4 draws{};
      for (int64_t c = first; c < last; ++c) {
        if (c % 8 == 0) draws = dropout_bits(c, position[n], sample[n], adapter, seed);
        if (dropout_draw(draws, static_cast<int>(c % 8)) >= threshold) word |= uint64_t{1} << mask_bit(c);
      }
      std::memcpy(bits.row<uint8_t>(row) + 8 * n, &word, sizeof(word));
    }
  }
}

}  // namespace irq
