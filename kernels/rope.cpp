// rope: CPU reference.
#include "kernels/common.h"

namespace irq {

void CpuBackend::rope(Tensor x, Tensor cos_table, Tensor sin_table, Tensor positions, int head_dim, bool inverse) {
  const int32_t* position = positions.as<int32_t>();
  for (int64_t i = 0; i < x.rows; ++i)
    IRQ_CHECK(position[i] < cos_table.rows, "position[%ld] = %d, the table has %ld", i, position[i], cos_table.rows);
  dispatch_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    cos_table.as<T>(), sin_table.as<T>();  // checks the types
    const int64_t half = head_dim / 2;
#pragma omp parallel for
    for (int64_t i = 0; i < x.rows; ++i) {
      T* row = x.row<T>(i);
      if (position[i] < 0) {  // a dead row
        for (int64_t c = 0; c < x.cols; ++c) row[c] = 0;
        continue;
      }
      const T* cosine = cos_table.row<T>(position[i]);
      const T* sine = sin_table.row<T>(position[i]);
      for (T* head = row; head < row + x.cols; head += head_dim)
        for (int64_t j = 0; j < half; ++j) {
          const T a = head[j], b = head[j + half], c = cosine[j], s = inverse ? -sine[j] : sine[j];
          head[j] = a * c - b * s;
          head[j + half] = b * c + a * s;
        }
    }
  });
}

}  // namespace irq
