// y = beta * y + x * mask / (1 - p), the mask computed from where the element stands, never stored.
#include "kernels/dropout.h"

#include "kernels/common.h"

namespace irq {

void CpuBackend::dropout(Tensor y, Tensor x, Tensor positions, Tensor samples, Tensor params, int adapter, double p,
                         double beta) {
  const DropoutRate rate = dropout_rate(p);
  const uint32_t* seed = step_params(params).seed;
  const int32_t* position = positions.as<int32_t>();
  const int32_t* sample = samples.as<int32_t>();
  IRQ_CHECK(y.dtype == x.dtype, "dropout from %s to %s", name_of(x.dtype), name_of(y.dtype));
  dispatch_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T scale = static_cast<T>(rate.scale), keep = static_cast<T>(beta);
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < x.rows; ++n) {
      const T* in = x.row<T>(n);
      T* out = y.row<T>(n);
      const bool dead = position[n] < 0;
      Philox4 bits{};
      for (int64_t c = 0; c < x.cols; ++c) {
        if (c % 8 == 0 && !dead) bits = dropout_bits(c, position[n], sample[n], adapter, seed);
        const bool kept = !dead && dropout_draw(bits, static_cast<int>(c % 8)) >= rate.threshold;
        const T value = kept ? in[c] * scale : T(0);
        out[c] = beta == 0 ? value : keep * out[c] + value;
      }
    }
  });
}

}  // namespace irq
