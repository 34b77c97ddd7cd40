// Small helpers shared by the CPU references.
#pragma once
#include "kernels/cpu.h"

namespace irq {

// Calls f with a zero of the floating-point type of `t` (F32 or F64): the storage type of a CPU run.
template <class F>
void dispatch_float(DType t, F&& f) {
  if (t == DType::F32) f(float{});
  else if (t == DType::F64) f(double{});
  else IRQ_CHECK(false, "no CPU kernel for type %s", name_of(t));
}

inline const StepParams& step_params(Tensor params) { return *static_cast<const StepParams*>(params.data); }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace irq
