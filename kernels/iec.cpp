// Information Elastic Connection (fidelity 4): parameter-free paths that average and repeat, folded into the adapter.
//   u = (A + beta1 P) x,  v = (B + beta2 E) u.   P and E are index maps (IecMap), never matrices.
#include "kernels/iec.h"

#include "kernels/common.h"

namespace irq {
namespace {

// folded = scale * (w + beta * map)                                      folded, w (expanded, pooled), beta (1, 1) or null
void fold(Tensor folded, Tensor w, Tensor beta, double scale, bool tile) {
  if (w.numel() == 0) return;
  const IecMap map(w.cols, w.rows, tile);
  IRQ_CHECK(folded.dtype == w.dtype, "fold from %s to %s", name_of(w.dtype), name_of(folded.dtype));
  dispatch_float(w.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T share = beta ? *beta.as<T>() / static_cast<T>(map.slice) : T(0);  // groups / pooled = 1 / slice
#pragma omp parallel for schedule(static)
    for (int64_t j = 0; j < w.rows; ++j) {
      const T* in = w.row<T>(j);
      T* out = folded.row<T>(j);
      const int64_t begin = int64_t{map.group(static_cast<int>(j))} * map.slice, end = begin + map.slice;
      for (int64_t i = 0; i < w.cols; ++i)
        out[i] = static_cast<T>(scale) * (in[i] + (i >= begin && i < end ? share : T(0)));
    }
  });
}

// dbeta = beta * dbeta + <dw, map>                                                     dbeta (1, 1), dw (expanded, pooled)
void fold_bwd(Tensor dbeta, Tensor dw, bool tile, double beta) {
  dispatch_float(dw.dtype, [&](auto zero) {
    using T = decltype(zero);
    double sum = 0;  // one thread, ascending rows and columns: at most h or o * r terms
    if (dw.numel() > 0) {
      const IecMap map(dw.cols, dw.rows, tile);
      for (int64_t j = 0; j < dw.rows; ++j) {
        const T* slice = dw.row<T>(j) + int64_t{map.group(static_cast<int>(j))} * map.slice;
        for (int64_t i = 0; i < map.slice; ++i) sum += static_cast<double>(slice[i]);
      }
      sum /= map.slice;
    }
    T& out = *dbeta.as<T>();
    out = static_cast<T>(beta == 0 ? sum : beta * static_cast<double>(out) + sum);
  });
}

}  // namespace

void CpuBackend::iec_fold_a(Tensor a_folded, Tensor a, Tensor beta1, bool tile) { fold(a_folded, a, beta1, 1, tile); }
void CpuBackend::iec_fold_b(Tensor b_folded, Tensor b, Tensor beta2, double scale, bool tile) {
  fold(b_folded, b, beta2, scale, tile);
}
void CpuBackend::iec_dbeta1(Tensor dbeta1, Tensor da, bool tile, double beta) { fold_bwd(dbeta1, da, tile, beta); }
void CpuBackend::iec_dbeta2(Tensor dbeta2, Tensor db, bool tile, double beta) { fold_bwd(dbeta2, db, tile, beta); }

void CpuBackend::iec_pool_fwd(Tensor u, Tensor x, Tensor beta1, bool tile) {
  if (!beta1 || u.numel() == 0 || x.cols == 0) return;
  const IecMap map(x.cols, u.cols, tile);
  dispatch_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T share = *beta1.as<T>() / static_cast<T>(map.slice);
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < x.rows; ++n) {
      T* out = u.row<T>(n);
      for (int t = 0; t < map.groups; ++t) {
        const T* slice = x.row<T>(n) + int64_t{t} * map.slice;
        T sum = 0;
        for (int i = 0; i < map.slice; ++i) sum += slice[i];
        for (int k = 0; k < map.repeat; ++k) out[map.member(t, k)] += share * sum;
      }
    }
  });
}

void CpuBackend::iec_pool_bwd(Tensor dx, Tensor partial, Tensor du, Tensor x, Tensor beta1, bool tile, double beta) {
  if (x.numel() == 0) return;
  const IecMap map(x.cols, du.cols, tile);
  dispatch_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T beta1_value = beta1 ? *beta1.as<T>() : T(0);
    T* row_partial = partial.as<T>();
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < x.rows; ++n) {
      T dot = 0;
      for (int t = 0; t < map.groups; ++t) {
        T dmean = 0;  // gradient of the slice's mean
        for (int k = 0; k < map.repeat; ++k) dmean += du.row<T>(n)[map.member(t, k)];
        dmean /= static_cast<T>(map.slice);
        const T* slice = x.row<T>(n) + int64_t{t} * map.slice;
        T* dslice = dx.row<T>(n) + int64_t{t} * map.slice;
        T sum = 0;
        for (int i = 0; i < map.slice; ++i) {
          sum += slice[i];
          dslice[i] = (beta == 0 ? T(0) : static_cast<T>(beta) * dslice[i]) + beta1_value * dmean;
        }
        dot += sum * dmean;
      }
      row_partial[n] = dot;
    }
  });
}

}  // namespace irq
