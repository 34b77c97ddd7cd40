// y = beta * y + x w_hat^T for a few rows of x (decoding): each weight is dequantized once and used for all rows. CPU
// reference.
#include "kernels/common.h"
#include "kernels/nfk_block.h"

namespace irq {
namespace {

// Row `row` of w_hat in fp32. Blocks may cross rows.
void dequant_row(float* out, const QuantizedMatrix& q, const Codebook& book, int64_t row) {
  const int64_t begin = row * q.cols, end = begin + q.cols;
  float value[kBlock];
  for (int64_t b = begin / kBlock; b * kBlock < end; ++b) {
    const int n = nfk_dequant_block(value, q, book, b);
    const int64_t first = std::max(begin, b * kBlock), last = std::min(end, b * kBlock + n);
    std::copy(value + (first - b * kBlock), value + (last - b * kBlock), out + (first - begin));
  }
}

// Eight interleaved partial sums (so that it vectorizes), then added in turn.
template <class T>
T dot(const T* x, const float* w, int64_t n) {
  T lane[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int l = 0; l < 8; ++l) lane[l] += x[i + l] * static_cast<T>(w[i + l]);
  for (; i < n; ++i) lane[0] += x[i] * static_cast<T>(w[i]);
  T sum = 0;
  for (const T partial : lane) sum += partial;
  return sum;
}

}  // namespace

void CpuBackend::nfk_matmul(Tensor y, Tensor x, QuantizedMatrix q, double beta) {
  IRQ_CHECK(q.format.kind == QuantKind::nf && q.format.group == kBlock, "nfk_matmul reads NF codes in blocks of 64");
  const Codebook& book = nf_codebook(q.format.bits);
  dispatch_float(y.dtype, [&](auto zero) {
    using T = decltype(zero);
#pragma omp parallel
    {
      std::vector<float> row(static_cast<size_t>(q.cols));
#pragma omp for schedule(static)
      for (int64_t r = 0; r < q.rows; ++r) {
        dequant_row(row.data(), q, book, r);
        for (int64_t m = 0; m < y.rows; ++m) {
          T& out = y.row<T>(m)[r];
          const T sum = dot(x.row<T>(m), row.data(), q.cols);
          out = beta == 0 ? sum : static_cast<T>(beta) * out + sum;
        }
      }
    }
  });
}

}  // namespace irq
