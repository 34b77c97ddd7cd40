// y = alpha * op(a) op(b) + beta * c on the CPU, for F32 and F64.
//
// Three levels of blocking (Goto and van de Geijn, 2008): panels of kRows rows of op(a) and kCols columns of op(b) are
// packed so that the micro-kernel reads both in order; a block of kDepth terms of the sum keeps one panel of b in L1 and
// kStripe rows of a in L2; blocks of kWide columns and kTall rows keep both packed matrices in L3. Few rows (decoding) are
// bound by reading b once, so they take a path without packing.
//
// Every output element is summed by one thread, in an order that depends on the shape only: the same bits with any number
// of threads. The fused multiply-adds are explicit, because the compiler may not contract on its own (-ffp-contract=off).
#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cstdlib>

#include "kernels/common.h"

namespace irq {
namespace {

template <class T>
struct Simd;
template <>
struct Simd<float> {
  using V = __m256;
  static V zero() { return _mm256_setzero_ps(); }
  static V load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, V v) { _mm256_storeu_ps(p, v); }
  static V all(float x) { return _mm256_set1_ps(x); }
  static V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
  static V add(V a, V b) { return _mm256_add_ps(a, b); }
  static V mul(V a, V b) { return _mm256_mul_ps(a, b); }
};
template <>
struct Simd<double> {
  using V = __m256d;
  static V zero() { return _mm256_setzero_pd(); }
  static V load(const double* p) { return _mm256_loadu_pd(p); }
  static void store(double* p, V v) { _mm256_storeu_pd(p, v); }
  static V all(double x) { return _mm256_set1_pd(x); }
  static V fma(V a, V b, V c) { return _mm256_fmadd_pd(a, b, c); }
  static V add(V a, V b) { return _mm256_add_pd(a, b); }
  static V mul(V a, V b) { return _mm256_mul_pd(a, b); }
};

constexpr int64_t kRows = 6;  // micro-tile: 6 rows x 2 vectors = 12 accumulators of the 16 registers
template <class T>
constexpr int64_t kLanes = 32 / sizeof(T);
template <class T>
constexpr int64_t kCols = 2 * kLanes<T>;
constexpr int64_t kDepth = 256;          // terms per block: a panel of b is 16 KiB, half of L1
constexpr int64_t kStripe = 16 * kRows;  // rows of one task: 96 KiB of packed a in L2 (F32)
constexpr int64_t kTall = 10 * kStripe;
constexpr int64_t kWide = 2048;
constexpr int64_t kFewRows = 8;             // up to here no packing pays off
constexpr int64_t kSerialWork = 32 * 1024;  // multiply-adds below which starting threads costs more than it saves

// One op(matrix): element (i, k) is data[i * row_step + k * col_step].
template <class T>
struct View {
  const T* data;
  int64_t row_step, col_step;
  const T* at(int64_t i, int64_t k) const { return data + i * row_step + k * col_step; }
};

template <class T>
struct Problem {
  int64_t m, n, k;
  View<T> a, b;  // op(a) (m, k); op(b)^T (n, k)
  T* y;
  int64_t y_stride;
  const T* c;  // null when beta = 0
  int64_t c_stride;
  T alpha, beta;
};

// Scratch that lives as long as its thread, so that a call does not pay for fresh pages.
template <class T>
T* scratch(int which, int64_t count) {
  struct Buffer {
    T* data = nullptr;
    int64_t count = 0;
    ~Buffer() { std::free(data); }
  };
  thread_local Buffer buffers[2];
  Buffer& b = buffers[which];
  if (b.count < count) {
    std::free(b.data);
    b.count = (count + 1023) / 1024 * 1024;
    b.data = static_cast<T*>(std::aligned_alloc(64, static_cast<size_t>(b.count) * sizeof(T)));
    if (!b.data) throw Error("not enough memory").line("asked", human_bytes(static_cast<double>(b.count) * sizeof(T)));
  }
  return b.data;
}

// panel (depth, kWidth): kWidth rows of the view interleaved, rows past the end as zeros.
template <int64_t kWidth, class T>
void pack_panel(T* panel, View<T> view, int64_t row, int64_t rows, int64_t k0, int64_t depth) {
  const int64_t width = std::min(kWidth, rows - row);
  if (view.row_step == 1) {
    for (int64_t p = 0; p < depth; ++p) {
      const T* source = view.at(row, k0 + p);
      for (int64_t i = 0; i < width; ++i) panel[p * kWidth + i] = source[i];
    }
  } else {
    for (int64_t i = 0; i < width; ++i) {
      const T* source = view.at(row + i, k0);
      for (int64_t p = 0; p < depth; ++p) panel[p * kWidth + i] = source[p * view.col_step];
    }
  }
  for (int64_t p = 0; p < depth; ++p)
    for (int64_t i = width; i < kWidth; ++i) panel[p * kWidth + i] = 0;
}

// The tile (kRows, kCols) of y at (i, j) gets alpha * (a panel)(b panel), on top of beta * c for the first block of terms
// and of y itself for the others.
template <class T>
void micro_kernel(const Problem<T>& q, const T* a, const T* b, int64_t depth, int64_t i0, int64_t j0, bool first) {
  using S = Simd<T>;
  constexpr int64_t L = kLanes<T>;
  typename S::V sum[kRows][2];
#pragma GCC unroll 6
  for (auto& row : sum) row[0] = row[1] = S::zero();
  for (int64_t p = 0; p < depth; ++p, a += kRows, b += kCols<T>) {
    const auto b0 = S::load(b), b1 = S::load(b + L);
#pragma GCC unroll 6
    for (int64_t i = 0; i < kRows; ++i) {
      const auto x = S::all(a[i]);
      sum[i][0] = S::fma(x, b0, sum[i][0]);
      sum[i][1] = S::fma(x, b1, sum[i][1]);
    }
  }
  const T* base = first ? q.c : q.y;
  const int64_t base_stride = first ? q.c_stride : q.y_stride;
  const T scale = first ? q.beta : T(1);
  const int64_t rows = std::min(kRows, q.m - i0), cols = std::min(kCols<T>, q.n - j0);
  if (rows == kRows && cols == kCols<T>) {
#pragma GCC unroll 6
    for (int64_t i = 0; i < kRows; ++i)
#pragma GCC unroll 2
      for (int64_t v = 0; v < 2; ++v) {
        auto x = S::mul(S::all(q.alpha), sum[i][v]);
        if (base) x = S::add(x, S::mul(S::all(scale), S::load(base + (i0 + i) * base_stride + j0 + v * L)));
        S::store(q.y + (i0 + i) * q.y_stride + j0 + v * L, x);
      }
    return;
  }
  T tile[kRows * kCols<T>];
  for (int64_t i = 0; i < kRows; ++i)
    for (int64_t v = 0; v < 2; ++v) S::store(tile + i * kCols<T> + v * L, sum[i][v]);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) {
      T x = q.alpha * tile[i * kCols<T> + j];
      if (base) x = x + scale * base[(i0 + i) * base_stride + j0 + j];
      q.y[(i0 + i) * q.y_stride + j0 + j] = x;
    }
}

template <class T>
void blocked(const Problem<T>& q) {
  const int64_t depth_max = std::min(kDepth, q.k);
  const int64_t panels_max = ceil_div(std::min(kWide, q.n), kCols<T>);
  T* const packed_b = scratch<T>(0, panels_max * kCols<T> * depth_max);
  T* const packed_a = scratch<T>(1, ceil_div(std::min(kTall, q.m), kRows) * kRows * depth_max);
#pragma omp parallel if (q.m * q.n * q.k > kSerialWork)
  for (int64_t j0 = 0; j0 < q.n; j0 += kWide)
    for (int64_t k0 = 0; k0 < q.k; k0 += kDepth) {
      const int64_t depth = std::min(kDepth, q.k - k0);
      const int64_t panels = ceil_div(std::min(kWide, q.n - j0), kCols<T>);
#pragma omp for schedule(static) nowait
      for (int64_t p = 0; p < panels; ++p)
        pack_panel<kCols<T>>(packed_b + p * kCols<T> * depth, q.b, j0 + p * kCols<T>, q.n, k0, depth);
      for (int64_t i0 = 0; i0 < q.m; i0 += kTall) {
        const int64_t tall = std::min(kTall, q.m - i0);
        const int64_t stripes = ceil_div(tall, kStripe);
#pragma omp for schedule(static)
        for (int64_t p = 0; p < ceil_div(tall, kRows); ++p)
          pack_panel<kRows>(packed_a + p * kRows * depth, q.a, i0 + p * kRows, q.m, k0, depth);
        // Enough tasks for every thread, also when there are few rows. How they are cut changes no result.
        const int64_t cuts = std::min(panels, ceil_div(int64_t{4} * omp_get_num_threads(), stripes));
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t s = 0; s < stripes; ++s)
          for (int64_t cut = 0; cut < cuts; ++cut)
            for (int64_t p = panels * cut / cuts; p < panels * (cut + 1) / cuts; ++p)
              for (int64_t i = s * kStripe; i < std::min(tall, (s + 1) * kStripe); i += kRows)
                micro_kernel(q, packed_a + i * depth, packed_b + p * kCols<T> * depth, depth, i0 + i, j0 + p * kCols<T>,
                             k0 == 0);
      }
    }
}

template <class T>
void write_row(const Problem<T>& q, int64_t i, int64_t j, T sum) {
  T x = q.alpha * sum;
  if (q.c) x = x + q.beta * q.c[i * q.c_stride + j];
  q.y[i * q.y_stride + j] = x;
}

// Sums of kM rows of a with two rows of b: dot products of contiguous vectors, kLanes partial sums each, then the tail.
template <int kM, class T>
void dots(const Problem<T>& q, const T* a, int64_t i0, int64_t j, int64_t count) {
  using S = Simd<T>;
  constexpr int64_t L = kLanes<T>;
  const T* b[2] = {q.b.at(j, 0), q.b.at(j + count - 1, 0)};
  typename S::V sum[kM][2];
  for (auto& row : sum) row[0] = row[1] = S::zero();
  int64_t p = 0;
  for (; p + L <= q.k; p += L) {
    const auto b0 = S::load(b[0] + p), b1 = S::load(b[1] + p);
#pragma GCC unroll 4
    for (int i = 0; i < kM; ++i) {
      const auto x = S::load(a + (i0 + i) * q.k + p);
      sum[i][0] = S::fma(x, b0, sum[i][0]);
      sum[i][1] = S::fma(x, b1, sum[i][1]);
    }
  }
  for (int i = 0; i < kM; ++i)
    for (int64_t v = 0; v < count; ++v) {
      T lanes[L], total = 0;
      S::store(lanes, sum[i][v]);
      for (int64_t l = 0; l < L; ++l) total += lanes[l];
      for (int64_t r = p; r < q.k; ++r) total += a[(i0 + i) * q.k + r] * b[v][r];
      write_row(q, i0 + i, j + v, total);
    }
}

// m <= kFewRows: b is read once, straight from where it lies.
template <class T>
void few_rows(const Problem<T>& q) {
  T* const a = scratch<T>(0, q.m * q.k);  // (m, k) contiguous
  for (int64_t i = 0; i < q.m; ++i)
    for (int64_t p = 0; p < q.k; ++p) a[i * q.k + p] = *q.a.at(i, p);
  const bool parallel = q.m * q.n * q.k > kSerialWork;
  if (q.b.col_step == 1) {  // rows of b^T lie in memory: dot products
#pragma omp parallel for schedule(static) if (parallel)
    for (int64_t pair = 0; pair < ceil_div(q.n, 2); ++pair) {
      const int64_t j = 2 * pair, count = std::min<int64_t>(2, q.n - j);
      int64_t i = 0;
      for (; i + 4 <= q.m; i += 4) dots<4>(q, a, i, j, count);
      for (; i + 2 <= q.m; i += 2) dots<2>(q, a, i, j, count);
      for (; i < q.m; ++i) dots<1>(q, a, i, j, count);
    }
    return;
  }
  constexpr int64_t kChunk = 256;  // columns: the sums of 8 rows stay in L1
#pragma omp parallel for schedule(static) if (parallel)
  for (int64_t chunk = 0; chunk < ceil_div(q.n, kChunk); ++chunk) {
    const int64_t j0 = chunk * kChunk, count = std::min(kChunk, q.n - j0);
    alignas(64) T sum[kFewRows * kChunk] = {};
    for (int64_t p = 0; p < q.k; ++p) {
      const T* b = q.b.at(j0, p);
      for (int64_t i = 0; i < q.m; ++i) {
        const T x = a[i * q.k + p];
        for (int64_t j = 0; j < count; ++j) sum[i * kChunk + j] += x * b[j];
      }
    }
    for (int64_t i = 0; i < q.m; ++i)
      for (int64_t j = 0; j < count; ++j) write_row(q, i, j0 + j, sum[i * kChunk + j]);
  }
}

template <class T>
void run_matmul(Tensor y, Tensor a, bool transpose_a, Tensor b, bool transpose_b, T alpha, T beta, Tensor c) {
  Problem<T> q;
  q.m = y.rows, q.n = y.cols, q.k = transpose_a ? a.rows : a.cols;
  q.a = transpose_a ? View<T>{a.as<T>(), 1, a.stride} : View<T>{a.as<T>(), a.stride, 1};
  q.b = transpose_b ? View<T>{b.as<T>(), b.stride, 1} : View<T>{b.as<T>(), 1, b.stride};
  q.y = y.as<T>(), q.y_stride = y.stride;
  q.c = beta != 0 ? c.as<T>() : nullptr, q.c_stride = c.stride;
  q.alpha = alpha, q.beta = beta;
  if (q.m == 0 || q.n == 0) return;
  if (q.k == 0) {  // an empty sum
    for (int64_t i = 0; i < q.m; ++i)
      for (int64_t j = 0; j < q.n; ++j) write_row(q, i, j, T(0));
    return;
  }
  q.m <= kFewRows ? few_rows(q) : blocked(q);
}

}  // namespace

void CpuBackend::matmul(Tensor y, Tensor a, bool transpose_a, Tensor b, bool transpose_b, double alpha, double beta,
                        Tensor c) {
  dispatch_float(y.dtype, [&](auto zero) {
    using T = decltype(zero);
    run_matmul<T>(y, a, transpose_a, b, transpose_b, static_cast<T>(alpha), static_cast<T>(beta), c);
  });
}

void CpuBackend::matmul_blocks(Tensor y, Tensor a, Tensor b, int parts, double alpha, double beta) {
  const int64_t m = a.cols / parts, n = b.cols / parts;
  for (int64_t i = 0; i < parts; ++i) {
    const Tensor part = y.slice_rows(i * m, m);
    matmul(part, a.slice_cols(i * m, m), true, b.slice_cols(i * n, n), false, alpha, beta, part);
  }
}

}  // namespace irq
