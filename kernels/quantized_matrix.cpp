#include "kernels/quantized_matrix.h"

namespace irq {

std::vector<MatrixPart> matrix_parts(QuantizedMatrix& q) {
  std::vector<MatrixPart> parts = {{".codes", DType::U8, q.code_bytes(), &q.codes}};
  if (q.format.scale == ScaleKind::f32) {
    parts.push_back({".scales", DType::F32, q.blocks(), &q.scales});
  } else {
    parts.push_back({".scale_codes", DType::U8, q.blocks(), &q.scale_codes});
    parts.push_back({".scale_groups", DType::F32, q.groups(), &q.scale_groups});
    parts.push_back({".scale_offset", DType::F32, 1, &q.scale_offset});
  }
  if (q.has_tau()) {
    parts.push_back({".tau_codes", DType::U8, q.blocks(), &q.tau_codes});
    parts.push_back({".tau_groups", DType::F32, q.groups(), &q.tau_groups});
  }
  if (q.format.shift == ShiftKind::int_zero) parts.push_back({".zeros", DType::U8, q.blocks(), &q.zeros});
  if (q.format.shift == ShiftKind::float_zero) parts.push_back({".zeros", DType::F32, q.blocks(), &q.zeros});
  return parts;
}

}  // namespace irq
