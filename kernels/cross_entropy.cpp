// Mean cross-entropy over the step's trainable tokens, its gradient written over the logits.
#include <algorithm>
#include <cmath>

#include "kernels/common.h"

namespace irq {

void CpuBackend::cross_entropy(Tensor nll, Tensor logits, Tensor targets, Tensor params, int64_t vocab,
                               bool want_grad) {
  const int32_t* target = targets.as<int32_t>();
  IRQ_CHECK(vocab > 0 && vocab <= logits.cols, "vocabulary of %ld in %ld columns", vocab, logits.cols);
  for (int64_t i = 0; i < logits.rows; ++i)
    IRQ_CHECK(target[i] < vocab, "target %d of row %ld, vocabulary %ld", target[i], i, vocab);
  dispatch_float(logits.dtype, [&](auto zero) {
    using T = decltype(zero);
    T* out = nll.as<T>();
    const double inv_tokens = want_grad ? step_params(params).inv_tokens : 0;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < logits.rows; ++i) {
      T* x = logits.row<T>(i);
      if (target[i] < 0) {  // padding or prompt: no loss
        out[i] = 0;
        if (want_grad) std::fill(x, x + logits.cols, T(0));
        continue;
      }
      const T top = *std::max_element(x, x + vocab);
      double sum = 0;  // of up to 256k exponentials
      for (int64_t v = 0; v < vocab; ++v) sum += static_cast<double>(std::exp(x[v] - top));
      out[i] = static_cast<T>(std::log(sum)) + top - x[target[i]];
      if (!want_grad) continue;
      for (int64_t v = 0; v < logits.cols; ++v) {
        const double p = v < vocab ? static_cast<double>(std::exp(x[v] - top)) / sum : 0;
        x[v] = static_cast<T>((p - (v == target[i] ? 1 : 0)) * inv_tokens);
      }
    }
  });
}

}  // namespace irq
