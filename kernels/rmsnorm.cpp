// rmsnorm_fwd, rmsnorm_bwd, rmsnorm_bwd_weight: CPU references.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/common.h"

namespace irq {
namespace {

// Sum of f(c) for c in [0, n) in double, eight interleaved partial sums: a fixed order that the compiler may vectorise.
template <class F>
double row_sum(int64_t n, F&& f) {
  double part[8] = {};
  int64_t c = 0;
  for (; c + 8 <= n; c += 8)
    for (int64_t k = 0; k < 8; ++k) part[k] += f(c + k);
  for (; c < n; ++c) part[c % 8] += f(c);
  return ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
}

}  // namespace

void CpuBackend::rmsnorm_fwd(Tensor y, Tensor rstd, Tensor x, Tensor w, double eps) {
  dispatch_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    T* r = rstd.as<T>();
    const T* weight = w.as<T>();
#pragma omp parallel for
    for (int64_t i = 0; i < x.rows; ++i) {
      const T* xr = x.row<T>(i);
      T* yr = y.row<T>(i);
      const double mean = row_sum(x.cols, [&](int64_t c) { return double{xr[c]} * double{xr[c]}; }) / double(x.cols);
      r[i] = static_cast<T>(1.0 / std::sqrt(mean + eps));
      for (int64_t c = 0; c < x.cols; ++c) yr[c] = (xr[c] * r[i]) * weight[c];  // the product in () is rounded first
    }
  });
}

void CpuBackend::rmsnorm_bwd(Tensor dx, Tensor dy, Tensor x, Tensor w, Tensor rstd, double beta) {
  dispatch_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* r = rstd.as<T>();
    const T* weight = w.as<T>();
#pragma omp parallel for
    for (int64_t i = 0; i < x.rows; ++i) {
      const T* xr = x.row<T>(i);
      const T* dyr = dy.row<T>(i);
      T* dxr = dx.row<T>(i);
      const double dot = row_sum(x.cols, [&](int64_t c) { return double{dyr[c]} * double{weight[c]} * double{xr[c]}; });
      const double rs = r[i], slope = rs * rs * dot / double(x.cols);
      for (int64_t c = 0; c < x.cols; ++c) {
        const double d = rs * (double{dyr[c]} * double{weight[c]} - double{xr[c]} * slope);
        dxr[c] = static_cast<T>(beta == 0 ? d : beta * double{dxr[c]} + d);
      }
    }
  });
}

// Threads own columns; each sums its rows in ascending order.
void CpuBackend::rmsnorm_bwd_weight(Tensor dw, Tensor dy, Tensor x, Tensor rstd, double beta) {
  dispatch_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* r = rstd.as<T>();
    T* out = dw.as<T>();
    constexpr int64_t kColumns = 64;
#pragma omp parallel for
    for (int64_t begin = 0; begin < x.cols; begin += kColumns) {
      const int64_t count = std::min(kColumns, x.cols - begin);
      double sum[kColumns] = {};
      for (int64_t i = 0; i < x.rows; ++i) {
        const T* xr = x.row<T>(i) + begin;
        const T* dyr = dy.row<T>(i) + begin;
        for (int64_t c = 0; c < count; ++c) sum[c] += double{dyr[c]} * double{xr[c]} * double{r[i]};
      }
      for (int64_t c = 0; c < count; ++c)
        out[begin + c] = static_cast<T>(beta == 0 ? sum[c] : beta * double{out[begin + c]} + sum[c]);
    }
  });
}

}  // namespace irq
