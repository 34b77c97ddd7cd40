// What the ops of LoRA under dropout (kernels/dropout_masks*, kernels/lora_dropout*) take besides tensors.
#pragma once
#include <array>

#include "src/core/tensor.h"

namespace irq {

// What the masks of up to kMax adapters that share an input follow: one group's (q, k, v or gate, up). Their ranks are equal.
struct AdapterMasks {
  static constexpr int kMax = 4;
  int count = 0;
  std::array<int, kMax> ids{};  // the adapters' numbers in the model
  double p = 0;
  Tensor positions, samples, params;  // (1, N) i32, (1, N) i32, StepParams
};

// Those masks as bits, made once (op dropout_masks) and read by every product of the group. Of adapter m, row
// m * mask_blocks(h) + b of `bits` holds for each of the N rows one little-endian word of 64 bits: features [64 b, 64 b + 64).
// 1: kept; 0: dropped, beyond the last feature, or of a dead row. Bit 32 k + 16 e + i of the word is feature 32 k + 2 i + e:
// the two features of one register of bf16 stand 16 bits apart.
struct MaskBits {
  int count = 0;
  double p = 0;
  Tensor bits;       // (count * mask_blocks(h), mask_bytes(N)) u8
  Tensor positions;  // (1, N) i32: -1 for dead rows

  MaskBits only(int m) const {
    MaskBits one = *this;
    one.count = 1, one.bits = bits.slice_rows(bits.rows / count * m, bits.rows / count);
    return one;
  }
};

constexpr int64_t kMaskFeatures = 64;  // of a word
inline int64_t mask_blocks(int64_t features) { return (features + kMaskFeatures - 1) / kMaskFeatures; }
inline int64_t mask_bytes(int64_t rows) { return (rows + 1) / 2 * 16; }  // 16-byte pieces: two rows each
constexpr int mask_bit(int64_t feature) {
  return static_cast<int>(feature % 64 / 32 * 32 + feature % 2 * 16 + feature % 32 / 2);
}

// One (1, 1) M tensor of each adapter; a null one is absent.
using AdapterScalars = std::array<Tensor, AdapterMasks::kMax>;

}  // namespace irq
