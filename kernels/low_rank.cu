// What:   left right = the matrix of rank r nearest to w, from the largest eigenvectors of its smaller Gram matrix (cuSOLVER).
// Math:   o <= h: G = w w^T = U S^2 U^T, the r largest; P = U_r^T w has rows s_k v_k^T, so s_k = |row k|, and
//         left right = U_r U_r^T w is a projection of w whatever the eigenvectors' errors. o > h: the same of w^T.
// Shapes: w (o, h), left (o, r), right (r, h) F32, any strides; inside F64: w, G (n, n), P (r, m), n = min(o, h), m = max.
// Cost:   2 n^2 m FLOPs for G on the F64 tensor cores (2 to 6 ms) and the eigensolver's 4/3 n^3, half of them products of a
//         matrix and a vector that read G: 8/3 n^3 bytes, 61 ms for n = 4096 at 3 TB/s. Measured on an H100: 124 ms for
//         4096 x 4096, 130 ms for 4096 x 11008. All vectors instead of 64: 127 ms; in F32: 92 ms; by gesvdp: 304 ms.
// Tricky: the squares in G cost half of F64's digits, which F32 input does not have: relative to the largest, a singular
//         value is right to 2^-26 or so where kLowRankFloor cuts at 2^-20. An eigenvector's sign is the solver's whim, so
//         it is set by the largest element of the left vector. No sum is split: the same bits every time.
#include <cusolverDn.h>

#include "kernels/low_rank.h"
#include "kernels/matmul_plans.cuh"

namespace irq {
namespace {

constexpr int kThreads = 256;

void solver_check(cusolverStatus_t status, const char* what) {
  if (status == CUSOLVER_STATUS_SUCCESS) return;
  Error error(strf("cuSOLVER error %d", static_cast<int>(status)));
  error.line("at", what);
  if (status == CUSOLVER_STATUS_ALLOC_FAILED || status == CUSOLVER_STATUS_NOT_INITIALIZED)
    error.line("likely", "not enough GPU memory").line("try", "end other programs on this GPU");
  throw error;
}

// Device memory that ends with the call.
class Buffer {
 public:
  Buffer(Backend& backend, int64_t bytes) : backend_(backend), data_(backend.allocate(bytes)) {}
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  double* f64() const { return static_cast<double*>(data_); }
  int* i32() const { return static_cast<int*>(data_); }
  void* data() const { return data_; }

 private:
  Backend& backend_;
  void* data_;
};

// dst (o, h) contiguous F64. Grid-stride over elements.
__global__ void __launch_bounds__(kThreads) widen(double* dst, const float* w, int64_t stride, int64_t o, int64_t h) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < o * h; i += step)
    dst[i] = static_cast<double>(w[i / h * stride + i % h]);
}

// state[0] = 1 if an element of w is not finite (then so is its square on the diagonal), state[1] = 1 if one is not zero.
__global__ void __launch_bounds__(kThreads) look_at_diagonal(int* state, const double* gram, int64_t n) {
  for (int64_t i = threadIdx.x; i < n; i += kThreads) {
    const double x = gram[i * n + i];
    if (!isfinite(x)) state[0] = 1;
    if (x != 0) state[1] = 1;
  }
}

// What finish() needs of the k-th largest: its singular value and the sign that makes the left vector's largest element
// positive. vectors: the n-long eigenvectors in ascending order, products: the m-long s_k v_k. One block per k.
__global__ void __launch_bounds__(kThreads) measure(double* values, double* signs, const double* vectors,
                                                    const double* products, int64_t n, int64_t m, bool left_is_vector) {
  const int64_t k = blockIdx.x, at = gridDim.x - 1 - k;
  const double *product = products + at * m, *left = left_is_vector ? vectors + at * n : product;
  const int64_t length = left_is_vector ? n : m;
  __shared__ double sums[kThreads], largest[kThreads];
  __shared__ int64_t places[kThreads];
  double sum = 0, best = 0;
  int64_t place = 0;
  for (int64_t i = threadIdx.x; i < m; i += kThreads) sum += product[i] * product[i];
  for (int64_t i = threadIdx.x; i < length; i += kThreads)
    if (fabs(left[i]) > fabs(best)) best = left[i], place = i;
  sums[threadIdx.x] = sum, largest[threadIdx.x] = best, places[threadIdx.x] = place;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    const int other = threadIdx.x + half;
    if (threadIdx.x >= half) continue;
    sums[threadIdx.x] += sums[other];
    const double mine = fabs(largest[threadIdx.x]), theirs = fabs(largest[other]);
    if (theirs > mine || (theirs == mine && places[other] < places[threadIdx.x]))
      largest[threadIdx.x] = largest[other], places[threadIdx.x] = places[other];
  }
  if (threadIdx.x == 0) values[k] = sqrt(sums[0]), signs[k] = largest[0] < 0 ? -1 : 1;
}

// left[:, k] and right[k, :]. Block k of `found` and more: those beyond are zero.
__global__ void __launch_bounds__(kThreads)
    finish(float* left, int64_t left_stride, float* right, int64_t right_stride, const double* values,
           const double* signs, const double* vectors, const double* products, int64_t found, int64_t n, int64_t m,
           bool left_is_vector) {
  const int64_t k = blockIdx.x, at = found - 1 - k;
  const double s = k < found ? values[k] : 0;
  const bool kept = s > 0 && s > kLowRankFloor * values[0];
  const double root = kept ? sqrt(s) : 1, sign = kept ? signs[k] : 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) {
    const float x = kept ? static_cast<float>(sign * vectors[at * n + i] * root) : 0.f;
    if (left_is_vector) left[i * left_stride + k] = x;
    else right[k * right_stride + i] = x;
  }
  for (int64_t i = threadIdx.x; i < m; i += kThreads) {
    const float x = kept ? static_cast<float>(sign * products[at * m + i] / root) : 0.f;
    if (left_is_vector) right[k * right_stride + i] = x;
    else left[i * left_stride + k] = x;
  }
}

// c = op(a) op(b), column-major F64 of no gaps: c (m, n), op(a) (m, k), op(b) (k, n).
struct Gemm64 {
  cublasLtHandle_t blas;
  void* workspace;
  cudaStream_t stream;

  void operator()(double* c, const double* a, bool transpose_a, const double* b, bool transpose_b, int64_t m, int64_t n,
                  int64_t k) const {
    const cublasOperation_t first = transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N,
                            second = transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasLtMatmulDesc_t operation = nullptr;
    cublasLtMatrixLayout_t layouts[3] = {};
    cublasLtMatmulPreference_t preference = nullptr;
    const auto release = [&] {
      if (preference) cublasLtMatmulPreferenceDestroy(preference);
      for (cublasLtMatrixLayout_t layout : layouts)
        if (layout) cublasLtMatrixLayoutDestroy(layout);
      if (operation) cublasLtMatmulDescDestroy(operation);
    };
    const auto layout = [&](int i, int64_t rows, int64_t cols) {
      cublas_check(cublasLtMatrixLayoutCreate(&layouts[i], CUDA_R_64F, static_cast<uint64_t>(rows),
                                              static_cast<uint64_t>(cols), rows),
                   "cublasLtMatrixLayoutCreate");
    };
    try {
      cublas_check(cublasLtMatmulDescCreate(&operation, CUBLAS_COMPUTE_64F, CUDA_R_64F), "cublasLtMatmulDescCreate");
      cublas_check(cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first),
                   "TRANSA");
      cublas_check(cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second),
                   "TRANSB");
      layout(0, transpose_a ? k : m, transpose_a ? m : k);
      layout(1, transpose_b ? n : k, transpose_b ? k : n);
      layout(2, m, n);
      cublas_check(cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate");
      const uint32_t whole_sums = CUBLASLT_REDUCTION_SCHEME_NONE;
      cublas_check(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                                        &whole_sums, sizeof whole_sums),
                   "REDUCTION_SCHEME_MASK");
      cublasLtMatmulHeuristicResult_t best{};
      int count = 0;
      cublas_check(cublasLtMatmulAlgoGetHeuristic(blas, operation, layouts[0], layouts[1], layouts[2], layouts[2],
                                                  preference, 1, &best, &count),
                   "cublasLtMatmulAlgoGetHeuristic");
      const double one = 1, zero = 0;
      cublas_check(cublasLtMatmul(blas, operation, &one, a, layouts[0], b, layouts[1], &zero, c, layouts[2], c,
                                  layouts[2], &best.algo, workspace, 0, stream),
                   "cublasLtMatmul (F64)");
    } catch (...) {
      release();
      throw;
    }
    release();
  }
};

// The `count` largest eigenvectors of the symmetric (n, n) gram, ascending, into its first n * count elements.
void top_eigenvectors(cusolverDnHandle_t solver, Backend& backend, double* gram, int64_t n, int64_t count,
                      double* eigenvalues, int* info, const char* name) {
  size_t device_bytes = 0, host_bytes = 0;
  int64_t found = 0;
  double no_bound = 0;
  const int64_t from = n - count + 1;
  const cusolverEigRange_t range = count == n ? CUSOLVER_EIG_RANGE_ALL : CUSOLVER_EIG_RANGE_I;
  solver_check(cusolverDnXsyevdx_bufferSize(solver, nullptr, CUSOLVER_EIG_MODE_VECTOR, range, CUBLAS_FILL_MODE_LOWER, n,
                                            CUDA_R_64F, gram, n, &no_bound, &no_bound, from, n, &found, CUDA_R_64F,
                                            eigenvalues, CUDA_R_64F, &device_bytes, &host_bytes),
               "cusolverDnXsyevdx_bufferSize");
  const Buffer scratch(backend, static_cast<int64_t>(device_bytes));
  std::vector<char> host(host_bytes);
  solver_check(cusolverDnXsyevdx(solver, nullptr, CUSOLVER_EIG_MODE_VECTOR, range, CUBLAS_FILL_MODE_LOWER, n,
                                 CUDA_R_64F, gram, n, &no_bound, &no_bound, from, n, &found, CUDA_R_64F, eigenvalues,
                                 CUDA_R_64F, scratch.data(), device_bytes, host.data(), host_bytes, info),
               "cusolverDnXsyevdx");
  int failed = 0;
  backend.download(&failed, make_view(info, DType::I32, 1, 1, "info", Device::CUDA));
  if (failed != 0 || found != count)
    throw Error(strf("%s: its singular value decomposition did not converge", name))
        .line("found", strf("cuSOLVER reports %d, and %ld of %ld vectors", failed, static_cast<long>(found),
                            static_cast<long>(count)))
        .line("try", "--device cpu");
}

}  // namespace

void CudaBackend::low_rank(Tensor left, Tensor right, Tensor w) {
  IRQ_CHECK(!capturing_, "%s", "a recording cannot hold a decomposition");
  const int64_t o = w.rows, h = w.cols, rank = left.cols;
  const bool left_is_vector = o <= h;
  const int64_t n = std::min(o, h), m = std::max(o, h), found = std::min(rank, n);
  if (rank == 0) return;
  const auto zero = [&] {
    fill(left, 0);
    fill(right, 0);
  };
  if (n == 0) return zero();
  if (!solver_) {
    cusolverDnHandle_t made = nullptr;
    solver_check(cusolverDnCreate(&made), "cusolverDnCreate");
    solver_ =
        std::shared_ptr<void>(made, [](void* handle) { cusolverDnDestroy(static_cast<cusolverDnHandle_t>(handle)); });
    solver_check(cusolverDnSetStream(made, stream_), "cusolverDnSetStream");
  }
  const auto solver = static_cast<cusolverDnHandle_t>(solver_.get());
  const Gemm64 gemm{blas_, plans_->workspace, stream_};
  const Buffer wide(*this, o * h * 8), gram(*this, n * n * 8), small(*this, (n + 2 * found) * 8), state(*this, 3 * 4);
  const unsigned grid = static_cast<unsigned>(std::min<int64_t>(ceil_div(o * h, kThreads), int64_t{32} * sm_count()));
  widen<<<grid, kThreads, 0, stream_>>>(wide.f64(), static_cast<const float*>(w.data), w.stride, o, h);
  CUDA_LAUNCHED();
  // Column-major, the buffer is w^T (h, o).
  if (left_is_vector) gemm(gram.f64(), wide.f64(), true, wide.f64(), false, o, o, h);
  else gemm(gram.f64(), wide.f64(), false, wide.f64(), true, h, h, o);
  CUDA_CHECK(cudaMemsetAsync(state.data(), 0, 3 * 4, stream_));
  look_at_diagonal<<<1, kThreads, 0, stream_>>>(state.i32(), gram.f64(), n);
  CUDA_LAUNCHED();
  int flags[2] = {};
  download(flags, make_view(state.data(), DType::I32, 1, 2, "flags", Device::CUDA));
  if (flags[0]) throw_not_finite(w.name);
  if (!flags[1]) return zero();
  double *eigenvalues = small.f64(), *values = eigenvalues + n, *signs = values + found;
  top_eigenvectors(solver, *this, gram.f64(), n, found, eigenvalues, state.i32() + 2, w.name);
  const Buffer products(*this, found * m * 8);
  if (left_is_vector) gemm(products.f64(), wide.f64(), false, gram.f64(), false, h, found, o);
  else gemm(products.f64(), wide.f64(), true, gram.f64(), false, o, found, h);
  measure<<<static_cast<unsigned>(found), kThreads, 0, stream_>>>(values, signs, gram.f64(), products.f64(), n, m,
                                                                  left_is_vector);
  CUDA_LAUNCHED();
  finish<<<static_cast<unsigned>(rank), kThreads, 0, stream_>>>(
      static_cast<float*>(left.data), left.stride, static_cast<float*>(right.data), right.stride, values, signs,
      gram.f64(), products.f64(), found, n, m, left_is_vector);
  CUDA_LAUNCHED();
  synchronize();
}

}  // namespace irq
