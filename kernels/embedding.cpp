// embedding_fwd, embedding_bwd: CPU references.
#include <algorithm>

#include "kernels/common.h"

namespace irq {

// A lookup is a gather whose index is the token. Token -1 (padding) gives a zero row.
void CpuBackend::embedding_fwd(Tensor y, Tensor table, Tensor tokens) { gather_rows(y, table, tokens, 0.0); }

// Threads own columns, so that each sum runs over i in ascending order whatever the number of threads.
void CpuBackend::embedding_bwd(Tensor dtable, Tensor dy, Tensor tokens, double beta) {
  const int32_t* token = tokens.as<int32_t>();
  for (int64_t i = 0; i < dy.rows; ++i)
    IRQ_CHECK(token[i] < dtable.rows, "token[%ld] = %d, the vocabulary has %ld", i, token[i], dtable.rows);
  dispatch_float(dy.dtype, [&](auto zero) {
    using T = decltype(zero);
    dtable.as<T>();  // checks the type
    constexpr int64_t kColumns = 64;
#pragma omp parallel for
    for (int64_t begin = 0; begin < dtable.cols; begin += kColumns) {
      const int64_t end = std::min(begin + kColumns, dtable.cols);
      for (int64_t v = 0; v < dtable.rows; ++v) {
        T* d = dtable.row<T>(v);
        for (int64_t c = begin; c < end; ++c) d[c] = beta == 0 ? T{0} : static_cast<T>(beta) * d[c];
      }
      for (int64_t i = 0; i < dy.rows; ++i) {
        if (token[i] < 0) continue;
        T* d = dtable.row<T>(token[i]);
        const T* g = dy.row<T>(i);
        for (int64_t c = begin; c < end; ++c) d[c] += g[c];
      }
    }
  });
}

}  // namespace irq
