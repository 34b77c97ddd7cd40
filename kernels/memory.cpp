// fill, axpby, gather_rows, scatter_rows, reduce_sum: CPU references.
#include <algorithm>

#include "kernels/common.h"

namespace irq {
namespace {

constexpr int64_t kWorthThreads = 16384;  // elements; below, starting the threads costs more than the work

template <class Y, class X>
void axpby_rows(Tensor y, Tensor x, Y alpha, Y beta) {
#pragma omp parallel for if (y.numel() > kWorthThreads)
  for (int64_t r = 0; r < y.rows; ++r) {
    Y* yr = y.row<Y>(r);
    const X* xr = x.row<X>(r);
    if (beta == 0)  // y is not read: it may hold NaN
      for (int64_t c = 0; c < y.cols; ++c) yr[c] = alpha * static_cast<Y>(xr[c]);
    else
      for (int64_t c = 0; c < y.cols; ++c) yr[c] = beta * yr[c] + alpha * static_cast<Y>(xr[c]);
  }
}

template <class T>
void gather(Tensor y, Tensor x, const int32_t* index, T beta) {
#pragma omp parallel for if (y.numel() > kWorthThreads)
  for (int64_t i = 0; i < y.rows; ++i) {
    T* yr = y.row<T>(i);
    const T* xr = index[i] < 0 ? nullptr : x.row<T>(index[i]);
    for (int64_t c = 0; c < y.cols; ++c) {
      const T value = xr ? xr[c] : T{0};
      yr[c] = beta == 0 ? value : beta * yr[c] + value;
    }
  }
}

}  // namespace

void CpuBackend::scatter_rows(Tensor y, Tensor x, Tensor index) {
  const int32_t* at = index.as<int32_t>();
  dispatch_float(y.dtype, [&](auto zero) {
    using T = decltype(zero);
    for (int64_t i = 0; i < x.rows; ++i) {
      if (at[i] < 0) continue;
      IRQ_CHECK(at[i] < y.rows, "index[%ld] = %d, %s has %ld rows", i, at[i], y.name, y.rows);
      std::copy_n(x.row<T>(i), x.cols, y.row<T>(at[i]));
    }
  });
}

void CpuBackend::fill(Tensor x, double value) {
  dispatch_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    for (int64_t r = 0; r < x.rows; ++r) std::fill_n(x.row<T>(r), x.cols, static_cast<T>(value));
  });
}

void CpuBackend::axpby(Tensor y, Tensor x, double alpha, double beta) {
  dispatch_float(y.dtype, [&](auto y0) {
    dispatch_float(x.dtype, [&](auto x0) {
      using Y = decltype(y0);
      axpby_rows<Y, decltype(x0)>(y, x, static_cast<Y>(alpha), static_cast<Y>(beta));
    });
  });
}

void CpuBackend::gather_rows(Tensor y, Tensor x, Tensor index, double beta) {
  const int32_t* at = index.as<int32_t>();
  for (int64_t i = 0; i < y.rows; ++i)
    IRQ_CHECK(at[i] < x.rows, "index[%ld] = %d, %s has %ld rows", i, at[i], x.name, x.rows);
  dispatch_float(y.dtype, [&](auto zero) {
    using T = decltype(zero);
    IRQ_CHECK(x.dtype == y.dtype, "%s is %s, %s is %s", x.name, name_of(x.dtype), y.name, name_of(y.dtype));
    gather<T>(y, x, at, static_cast<T>(beta));
  });
}

// Sums in double, in ascending order: the float result is then correct to its last bit or nearly so.
void CpuBackend::reduce_sum(Tensor total, Tensor x, double beta) {
  dispatch_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    T* out = total.as<T>();
    double sum = 0;
    for (int64_t r = 0; r < x.rows; ++r)
      for (int64_t c = 0; c < x.cols; ++c) sum += x.row<T>(r)[c];
    out[0] = static_cast<T>(beta == 0 ? sum : beta * out[0] + sum);
  });
}

}  // namespace irq
