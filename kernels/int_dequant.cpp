// w_hat = scale * (code - zero), fp32 with a rounding after each step. CPU reference.
#include "kernels/common.h"
#include "kernels/int_codes.h"

namespace irq {

void CpuBackend::int_dequant(Tensor w, QuantizedMatrix q) {
  const int bits = q.format.bits;
  const int64_t group = q.group_size(), groups = q.groups_per_row();
  const bool float_zero = q.format.shift == ShiftKind::float_zero;
  dispatch_float(w.dtype, [&](auto zero_of_type) {
    using T = decltype(zero_of_type);
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < q.rows; ++row) {
      T* out = w.row<T>(row);
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t block = row * groups + g, end = std::min(q.cols, (g + 1) * group);
        const float scale = q.scales.as<float>()[block];
        const float zero = float_zero ? q.zeros.as<float>()[block] : static_cast<float>(q.zeros.as<uint8_t>()[block]);
        for (int64_t i = g * group; i < end; ++i) {
          const float code = static_cast<float>(stream_code(q.codes.as<uint8_t>(), bits, row * q.cols + i));
          out[i] = static_cast<T>(scale * (code - zero));
        }
      }
    }
  });
}

}  // namespace irq
