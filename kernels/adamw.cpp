// AdamW with clipping by the global norm (fidelity 6.4): bitsandbytes' 32-bit form, decay after the update.
#include <algorithm>
#include <cmath>

#include "kernels/common.h"

namespace irq {

void CpuBackend::adamw(Tensor p, Tensor m, Tensor v, Tensor g, Tensor norm, Tensor params, double decay) {
  const StepParams& step = step_params(params);
  dispatch_float(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T b1 = static_cast<T>(kAdamBeta1), rest1 = static_cast<T>(1 - kAdamBeta1);
    const T b2 = static_cast<T>(kAdamBeta2), rest2 = static_cast<T>(1 - kAdamBeta2), eps = static_cast<T>(kAdamEps);
    const T lr = static_cast<T>(step.lr), bias1 = static_cast<T>(step.bias1), bias2 = static_cast<T>(step.bias2);
    const T shrink = static_cast<T>(1 - step.lr * decay);
    const T clip =
        step.clip > 0 ? static_cast<T>(std::min(1.0, step.clip / (static_cast<double>(*norm.as<T>()) + 1e-6))) : T(1);
    T *pp = p.as<T>(), *mm = m.as<T>(), *vv = v.as<T>();
    const T* gg = g.as<T>();
    const int64_t n = p.numel();
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; ++i) {
      const T gradient = clip * gg[i];
      mm[i] = b1 * mm[i] + rest1 * gradient;
      vv[i] = b2 * vv[i] + rest2 * gradient * gradient;
      pp[i] -= lr * (mm[i] / bias1) / (std::sqrt(vv[i] / bias2) + eps);
      pp[i] *= shrink;
    }
  });
}

}  // namespace irq
