// The likeliest token of each row. CPU reference.
#include <cmath>

#include "kernels/common.h"

namespace irq {

void CpuBackend::argmax(Tensor index, Tensor logits) {
  dispatch_float(logits.dtype, [&](auto zero) {
    using T = decltype(zero);
    for (int64_t i = 0; i < logits.rows; ++i) {
      const T* x = logits.row<T>(i);
      int64_t best = 0;
      for (int64_t v = 1; v < logits.cols; ++v)
        if (x[v] > x[best] || std::isnan(x[best])) best = v;
      index.as<int32_t>()[i] = std::isfinite(x[best]) ? static_cast<int32_t>(best) : -1;
    }
  });
}

}  // namespace irq
