// What the ops of LoRA under dropout (kernels/lora_dropout*) take besides tensors.
#pragma once
#include <array>

#include "src/core/tensor.h"

namespace irq {

// The masks of up to kMax adapters that share an input: one group's (q, k, v or gate, up). Their ranks are equal.
struct AdapterMasks {
  static constexpr int kMax = 4;
  int count = 0;
  std::array<int, kMax> ids{};  // the adapters' numbers in the model
  double p = 0;
  Tensor positions, samples, params;  // (1, N) i32, (1, N) i32, StepParams

  AdapterMasks only(int m) const {
    AdapterMasks one = *this;
    one.count = 1, one.ids[0] = ids[static_cast<size_t>(m)];
    return one;
  }
};

// One (1, 1) M tensor of each adapter; a null one is absent.
using AdapterScalars = std::array<Tensor, AdapterMasks::kMax>;

}  // namespace irq
