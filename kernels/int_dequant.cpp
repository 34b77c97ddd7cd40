// w_hat = scale * (code - zero), fp32 with a rounding after each step; F64 with F64 scales. CPU reference.
#include "kernels/common.h"
#include "kernels/int_codes.h"

namespace irq {

void CpuBackend::int_dequant(Tensor w, QuantizedMatrix q) {
  const int bits = q.format.bits;
  const int64_t group = q.group_size(), groups = q.groups_per_row();
  const bool float_zero = q.format.shift == ShiftKind::float_zero;
  const auto run = [&](auto zero_of_type, auto zero_of_scale) {
    using T = decltype(zero_of_type);
    using S = decltype(zero_of_scale);
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < q.rows; ++row) {
      T* out = w.row<T>(row);
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t block = row * groups + g, end = std::min(q.cols, (g + 1) * group);
        const S scale = q.scales.as<S>()[block];
        const S zero =
            float_zero ? static_cast<S>(q.zeros.as<float>()[block]) : static_cast<S>(q.zeros.as<uint8_t>()[block]);
        for (int64_t i = g * group; i < end; ++i) {
          const S code = static_cast<S>(stream_code(q.codes.as<uint8_t>(), bits, row * q.cols + i));
          out[i] = static_cast<T>(scale * (code - zero));
        }
      }
    }
  };
  dispatch_float(w.dtype, [&](auto of_w) { dispatch_float(q.scales.dtype, [&](auto of_s) { run(of_w, of_s); }); });
}

}  // namespace irq
