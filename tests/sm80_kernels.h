// The kernels that a GPU of compute capability 8.0 has, on one that has newer ones too: they must be right there as well.
#pragma once
#include "kernels/kernel_choice.h"
#include "tests/op_case.h"

namespace irq {

// As long as it lives.
struct OnlySm80Kernels {
  OnlySm80Kernels() { use_only_sm80_kernels(true); }
  ~OnlySm80Kernels() { use_only_sm80_kernels(false); }
  OnlySm80Kernels(const OnlySm80Kernels&) = delete;
};

inline OpCase by_sm80_kernels(OpCase c) {
  c.run = [run = c.run](Backend& b, const std::vector<Tensor>& t) {
    const OnlySm80Kernels only;
    run(b, t);
  };
  return c;
}

}  // namespace irq
