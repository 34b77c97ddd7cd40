// The squared distance of two matrices, 64 elements at a time: what quantization lost. CPU reference.
#include "kernels/common.h"

namespace irq {

void CpuBackend::squared_errors(Tensor errors, Tensor a, Tensor b) {
  const int64_t numel = a.numel(), blocks = ceil_div(numel, kBlock);
  const float *x = a.as<float>(), *y = b.as<float>();
  double* out = errors.as<double>();
#pragma omp parallel for schedule(static)
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t begin = block * kBlock, n = std::min<int64_t>(kBlock, numel - begin);
    double square[kBlock] = {};
    for (int64_t i = 0; i < n; ++i) {
      const double d = static_cast<double>(x[begin + i]) - static_cast<double>(y[begin + i]);
      square[i] = d * d;
    }
    for (int half = kBlock / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) square[i] += square[i + half];
    out[block] = square[0];
  }
}

}  // namespace irq
