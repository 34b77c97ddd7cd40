// norm = sqrt(sum g^2), summed in pieces of fixed length so that the result does not depend on the number of threads.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/common.h"

namespace irq {

void CpuBackend::global_norm(Tensor norm, Tensor g) {
  constexpr int64_t kPiece = 65536;
  dispatch_float(g.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* x = g.as<T>();
    const int64_t n = g.numel(), pieces = ceil_div(n, kPiece);
    std::vector<double> partial(static_cast<size_t>(pieces));
#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < pieces; ++k) {
      double sum = 0;
      for (int64_t i = k * kPiece; i < std::min(n, (k + 1) * kPiece); ++i)
        sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
      partial[static_cast<size_t>(k)] = sum;
    }
    double total = 0;
    for (double sum : partial) total += sum;
    *norm.as<T>() = static_cast<T>(std::sqrt(total));
  });
}

}  // namespace irq
