// w_hat = level[code] * s_hat (+ tau_hat): paper Eqs 3 and 10, fp32 with a rounding after each step. CPU reference.
#include "kernels/common.h"
#include "kernels/nfk_block.h"

namespace irq {

int nfk_dequant_block(float* out, const QuantizedMatrix& q, const Codebook& book, int64_t block) {
  const int n = static_cast<int>(std::min<int64_t>(kBlock, q.numel() - block * kBlock));
  const float scale = block_scale(q, block);
  float value[16];  // the block has at most 2^bits different weights
  for (int c = 0; c < (1 << book.bits); ++c) value[c] = book.level[c] * scale;
  if (q.has_tau()) {
    const float tau = block_tau(q, block);
    for (int c = 0; c < (1 << book.bits); ++c) value[c] = value[c] + tau;
  }
  const uint8_t* bytes = q.codes.as<uint8_t>() + block * kBlock / 8 * book.bits;
  const uint32_t mask = (1u << book.bits) - 1;
  uint32_t window = 0;
  int held = 0;
  for (int i = 0; i < n; ++i) {
    if (held < book.bits) window = (window << 8) | *bytes++, held += 8;
    held -= book.bits;
    out[i] = value[(window >> held) & mask];
  }
  return n;
}

void CpuBackend::nfk_dequant(Tensor w, QuantizedMatrix q) {
  IRQ_CHECK(q.format.kind == QuantKind::nf && q.format.group == kBlock, "nfk_dequant reads NF codes in blocks of 64");
  const Codebook& book = nf_codebook(q.format.bits);
  dispatch_float(w.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t blocks = q.blocks();
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < blocks; ++b) {
      float value[kBlock];
      const int n = nfk_dequant_block(value, q, book, b);
      int64_t row = b * kBlock / q.cols, col = b * kBlock % q.cols;
      for (int i = 0; i < n;) {  // a block may cross rows
        const int run = static_cast<int>(std::min<int64_t>(n - i, q.cols - col));
        T* out = w.row<T>(row) + col;
        for (int j = 0; j < run; ++j) out[j] = static_cast<T>(value[i + j]);
        i += run, ++row, col = 0;
      }
    }
  });
}

}  // namespace irq
