// The gradient of the scales of w_hat = scale * (code - zero): ds = sum of dw * (code - zero). CPU reference.
#include "kernels/common.h"
#include "kernels/int_codes.h"

namespace irq {

void CpuBackend::int_scale_grad(Tensor ds, Tensor dw, QuantizedMatrix q, double beta) {
  const int bits = q.format.bits;
  const int64_t group = q.group_size(), groups = q.groups_per_row();
  const bool float_zero = q.format.shift == ShiftKind::float_zero;
  dispatch_float(dw.dtype, [&](auto zero_of_type) {
    using T = decltype(zero_of_type);
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < q.rows; ++row)
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t block = row * groups + g, end = std::min(q.cols, (g + 1) * group);
        const T zero =
            float_zero ? static_cast<T>(q.zeros.as<float>()[block]) : static_cast<T>(q.zeros.as<uint8_t>()[block]);
        T sum = 0;
        for (int64_t i = g * group; i < end; ++i)
          sum +=
              dw.row<T>(row)[i] * (static_cast<T>(stream_code(q.codes.as<uint8_t>(), bits, row * q.cols + i)) - zero);
        T& out = ds.as<T>()[block];
        out = beta == 0 ? sum : static_cast<T>(beta) * out + sum;
      }
  });
}

}  // namespace irq
