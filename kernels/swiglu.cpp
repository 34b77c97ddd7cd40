// swiglu_fwd, swiglu_bwd: CPU references.
#include <cmath>

#include "kernels/common.h"

namespace irq {

void CpuBackend::swiglu_fwd(Tensor h, Tensor gate_up) {
  dispatch_float(h.dtype, [&](auto zero) {
    using T = decltype(zero);
#pragma omp parallel for
    for (int64_t i = 0; i < h.rows; ++i) {
      const T* g = gate_up.row<T>(i);
      const T* u = g + h.cols;
      T* out = h.row<T>(i);
      for (int64_t c = 0; c < h.cols; ++c) out[c] = g[c] / (T{1} + std::exp(-g[c])) * u[c];
    }
  });
}

void CpuBackend::swiglu_bwd(Tensor dgate_up, Tensor h, Tensor dh, Tensor gate_up) {
  dispatch_float(dh.dtype, [&](auto zero) {
    using T = decltype(zero);
#pragma omp parallel for
    for (int64_t i = 0; i < dh.rows; ++i) {
      const T* in = gate_up.row<T>(i);
      const T* d = dh.row<T>(i);
      T* out = dgate_up.row<T>(i);
      T* again = h ? h.row<T>(i) : nullptr;
      for (int64_t c = 0; c < dh.cols; ++c) {
        const T g = in[c], u = in[dh.cols + c];  // read before anything is written: out may be in, again may be d
        const T slope = d[c];
        const T sigmoid = T{1} / (T{1} + std::exp(-g));
        out[c] = slope * u * sigmoid * (T{1} + g * (T{1} - sigmoid));
        out[dh.cols + c] = slope * g * sigmoid;
        if (again) again[c] = g / (T{1} + std::exp(-g)) * u;
      }
    }
  });
}

}  // namespace irq
