#include "src/core/tensor.h"

namespace irq {

const char* name_of(DType t) {
  switch (t) {
    case DType::F32: return "f32";
    case DType::F16: return "f16";
    case DType::BF16: return "bf16";
    case DType::F64: return "f64";
    case DType::I32: return "i32";
    case DType::U8: return "u8";
  }
  return "?";
}

F16 to_f16(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  const uint16_t sign = static_cast<uint16_t>((u >> 16) & 0x8000u);
  const uint32_t a = u & 0x7fffffffu;
  if (a > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (a >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // rounds to 65536 or more: infinity
  if (a < 0x38800000u) {  // subnormal or zero: a float addition aligns and rounds to nearest even
    const float aligned = std::bit_cast<float>(a) + 0.5f;
    return {static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(aligned) - 0x3f000000u))};
  }
  return {static_cast<uint16_t>(sign | ((a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13))};
}

float to_float(F16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t exponent = (x.bits >> 10) & 0x1fu, mantissa = x.bits & 0x3ffu;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

Tensor Tensor::slice_rows(int64_t begin, int64_t count) const {
  IRQ_CHECK(begin >= 0 && count >= 0 && begin + count <= rows, "rows [%ld, +%ld) of %s with %ld rows", begin, count,
            name, rows);
  Tensor t = *this;
  t.data = static_cast<char*>(data) + begin * stride * size_of(dtype);
  t.rows = count;
  return t;
}

Tensor Tensor::slice_cols(int64_t begin, int64_t count) const {
  IRQ_CHECK(begin >= 0 && count >= 0 && begin + count <= stride, "columns [%ld, +%ld) of %s with %ld columns", begin,
            count, name, stride);
  Tensor t = *this;
  t.data = static_cast<char*>(data) + begin * size_of(dtype);
  t.cols = count;
  return t;
}

Tensor Tensor::extend_cols(int64_t extra) const {
  IRQ_CHECK(cols + extra <= stride, "%s has %ld spare columns, %ld asked", name, stride - cols, extra);
  Tensor t = *this;
  t.cols += extra;
  return t;
}

Tensor Tensor::reshape(int64_t new_rows, int64_t new_cols) const {
  IRQ_CHECK(contiguous() && new_rows * new_cols == numel(), "cannot see %s (%ld, %ld) as (%ld, %ld)", name, rows, cols,
            new_rows, new_cols);
  Tensor t = *this;
  t.rows = new_rows;
  t.cols = t.stride = new_cols;
  return t;
}

Tensor make_view(void* data, DType dtype, int64_t rows, int64_t cols, const char* name, Device device) {
  return Tensor{data, rows, cols, cols, dtype, device, name};
}

}  // namespace irq
