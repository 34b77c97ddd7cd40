// The kernels that a GPU of compute capability 8.0 has, on one that has newer ones too: they must be right there as well.
#pragma once
#include "kernels/kernel_choice.h"
#include "tests/op_case.h"

namespace irq {

inline OpCase by_sm80_kernels(OpCase c) {
  c.run = [run = c.run](Backend& b, const std::vector<Tensor>& t) {
    use_only_sm80_kernels(true);
    run(b, t);
    use_only_sm80_kernels(false);
  };
  return c;
}

}  // namespace irq
