// Sums over groups of consecutive columns, and back. CPU reference.
#include "kernels/group_pool.h"

#include "kernels/common.h"

namespace irq {

void CpuBackend::group_pool(Tensor y, Tensor x, GroupPool pool) {
  dispatch_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < x.rows; ++n)
      for (int64_t g = 0; g < pool.groups(); ++g) {
        const T* in = x.row<T>(n);
        T sum = 0;
        for (int64_t i = pool.begin(g); i < pool.end(g); ++i) sum += in[i];
        for (int64_t k = 0; k < pool.repeat; ++k)
          y.row<T>(n)[pool.output(g, k)] = static_cast<T>(pool.coefficient(g)) * sum;
      }
  });
}

void CpuBackend::group_spread(Tensor dx, Tensor dy, GroupPool pool, double beta) {
  dispatch_float(dx.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T keep = static_cast<T>(beta);
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < dx.rows; ++n)
      for (int64_t g = 0; g < pool.groups(); ++g) {
        const T value = static_cast<T>(pool.coefficient(g)) * dy.row<T>(n)[g];
        T* out = dx.row<T>(n);
        for (int64_t i = pool.begin(g); i < pool.end(g); ++i) out[i] = beta == 0 ? value : keep * out[i] + value;
      }
  });
}

}  // namespace irq
