// The upper Cholesky factor U of H^-1 = U^T U, for GPTQ. CPU reference, fp64 inside.
//
// With P the reversal of rows and of columns, P H P = L L^T gives H = R R^T for R = P L P, which is upper triangular; so
// H^-1 = (R^-1)^T R^-1 and U = R^-1 = P L^-1 P: one factorization and one triangular inverse, and H is never inverted.
#include "kernels/common.h"

namespace irq {
namespace {

constexpr int64_t kParallel = 192;  // rows below which threads cost more than they save

// In place: the lower triangle of a becomes L. False if a is not positive definite.
bool cholesky(std::vector<double>& a, int64_t n) {
  for (int64_t j = 0; j < n; ++j) {
    double* aj = a.data() + j * n;
    double diagonal = aj[j];
    for (int64_t k = 0; k < j; ++k) diagonal -= aj[k] * aj[k];
    if (!(diagonal > 0) || !std::isfinite(diagonal)) return false;
    aj[j] = std::sqrt(diagonal);
#pragma omp parallel for schedule(static) if (n - j > kParallel)
    for (int64_t i = j + 1; i < n; ++i) {
      double* ai = a.data() + i * n;
      double sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t k = 0; k < j; ++k) sum += ai[k] * aj[k];
      ai[j] = (ai[j] - sum) / aj[j];
    }
  }
  return true;
}

// Row i of L^-1 from the rows before it: -(sum over k < i of L_ik times row k) / L_ii. Columns are independent.
std::vector<double> invert_lower(const std::vector<double>& l, int64_t n) {
  constexpr int64_t kColumns = 64;
  std::vector<double> inverse(static_cast<size_t>(n * n), 0.0);
#pragma omp parallel for schedule(dynamic) if (n > kParallel)
  for (int64_t begin = 0; begin < n; begin += kColumns) {
    const int64_t end = std::min(n, begin + kColumns);
    for (int64_t i = begin; i < n; ++i) {
      const double* li = l.data() + i * n;
      double* row = inverse.data() + i * n;
      for (int64_t k = begin; k < i; ++k) {
        const double* from = inverse.data() + k * n;
        for (int64_t j = begin; j < std::min(end, k + 1); ++j) row[j] -= li[k] * from[j];
      }
      for (int64_t j = begin; j < std::min(end, i); ++j) row[j] /= li[i];
      if (i < end) row[i] = 1 / li[i];
    }
  }
  return inverse;
}

}  // namespace

void CpuBackend::gptq_factor(Tensor u, Tensor info, Tensor h) {
  const int64_t n = h.rows;
  std::vector<double> a(static_cast<size_t>(n * n));
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j)
      a[static_cast<size_t>(i * n + j)] = static_cast<double>(h.row<float>(n - 1 - i)[n - 1 - j]);
  const bool good = cholesky(a, n);
  info.as<int32_t>()[0] = good ? 0 : 1;
  if (!good) return;
  const std::vector<double> inverse = invert_lower(a, n);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j)
      u.row<float>(i)[j] = static_cast<float>(inverse[static_cast<size_t>((n - 1 - i) * n + n - 1 - j)]);
}

}  // namespace irq
