// Weights into a stream of integer codes, and codes of one byte each into such a stream. CPU reference.
#include "kernels/common.h"
#include "kernels/int_codes.h"
#include "kernels/int_group.h"

namespace irq {
namespace {

// code(row, col) for every element, eight codes (whole bytes) at a time.
template <class Code>
void write_stream(uint8_t* stream, int64_t rows, int64_t cols, int bits, Code code) {
  const int64_t numel = rows * cols, bytes = (numel * bits + 7) / 8;
#pragma omp parallel for schedule(static)
  for (int64_t pack = 0; pack < ceil_div(numel, 8); ++pack) {
    int64_t row = pack * 8 / cols, col = pack * 8 % cols;
    uint32_t word = 0;
    for (int64_t i = pack * 8; i < pack * 8 + 8; ++i) {
      word = word << bits | (i < numel ? code(row, col) : 0u);
      if (++col == cols) col = 0, ++row;
    }
    for (int b = 0; b < bits && pack * bits + b < bytes; ++b)
      stream[pack * bits + b] = static_cast<uint8_t>(word >> (8 * (bits - 1 - b)));
  }
}

}  // namespace

void CpuBackend::int_encode(Tensor codes, Tensor w, Tensor scales, Tensor zeros, int bits, int group) {
  const int64_t length = group == kPerChannel ? std::max<int64_t>(w.cols, 1) : group;
  const float top = int_top(bits);
  write_stream(codes.as<uint8_t>(), w.rows, w.cols, bits, [&](int64_t row, int64_t col) {
    const int64_t g = col / length;
    const float x = w.row<float>(row)[col], scale = scales.row<float>(row)[g];
    const float code = zeros.dtype == DType::F32
                           ? int_code<true>(x, scale, zeros.row<float>(row)[g], top)
                           : int_code<false>(x, scale, static_cast<float>(zeros.row<uint8_t>(row)[g]), top);
    return static_cast<uint32_t>(static_cast<int>(code));
  });
}

void CpuBackend::int_pack(Tensor codes, Tensor entropy, Tensor bytes, int bits, int group) {
  write_stream(codes.as<uint8_t>(), bytes.rows, bytes.cols, bits,
               [&](int64_t row, int64_t col) { return static_cast<uint32_t>(bytes.row<uint8_t>(row)[col]); });
  if (!entropy) return;
  const int64_t length = group == kPerChannel ? bytes.cols : group;
  const int64_t* terms = int_entropy_terms(std::min(length, bytes.cols));
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t row = 0; row < bytes.rows; ++row)
    for (int64_t g = 0; g < entropy.cols; ++g) {
      const int64_t n = std::min(length, bytes.cols - g * length);
      const uint8_t* code = bytes.row<uint8_t>(row) + g * length;
      uint32_t counts[16] = {};
      for (int64_t i = 0; i < n; ++i) ++counts[code[i] & 15];
      int64_t sum = 0;
      for (const uint32_t c : counts) sum += terms[c];
      entropy.row<float>(row)[g] = int_entropy_bits(sum, n, terms[n]);
    }
}

}  // namespace irq
