// MatmulPlans: cuBLASLt's descriptors and chosen algorithm for every shape met so far, and its scratch memory.
#pragma once
#include <array>
#include <map>
#include <tuple>
#include <vector>

#include "kernels/common.cuh"

namespace irq {

constexpr int64_t kMatmulWorkspaceBytes = int64_t{64} << 20;
constexpr int kMatmulCandidates = 16;

void cublas_check(cublasStatus_t status, const char* what);

// Everything that a choice of algorithm depends on. Sizes are those of the row-major op(a) (m, k), op(b) (k, n).
struct MatmulKey {
  int64_t m, n, k;
  int64_t a_stride, b_stride, c_stride, y_stride;
  DType in, out;
  bool transpose_a, transpose_b;
  std::array<int, 4> alignment;  // of a, b, c, y: bytes, a power of two, 16 at most
  // Several products of one shape: operands of the next lie so many elements behind; c moves as y does.
  int64_t count = 1, a_step = 0, b_step = 0, y_step = 0;
  auto all() const {
    return std::tie(m, n, k, a_stride, b_stride, c_stride, y_stride, in, out, transpose_a, transpose_b, alignment,
                    count, a_step, b_step, y_step);
  }
  bool operator<(const MatmulKey& other) const { return all() < other.all(); }
};

struct MatmulCandidate {  // cuBLASLt's own type has no name, which nvcc's containers choke on
  cublasLtMatmulAlgo_t algorithm;
};

// The operands of one call, as cuBLASLt's column-major view takes them.
struct MatmulCall {
  const void *a, *b, *c;
  void* y;
  float alpha, beta;
};

struct MatmulPlan {
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t first = nullptr, second = nullptr, base = nullptr, result = nullptr;  // b^T, a^T, c^T, y^T
  std::vector<MatmulCandidate> candidates;  // best guess first; empty: our own kernel runs
  size_t chosen = 0;
  bool settled = false;   // timed, restored, or not to be timed (again)
  bool recorded = false;  // timed or restored: worth remembering
};

struct CudaBackend::MatmulPlans {
  MatmulPlans() { CUDA_CHECK(cudaMalloc(&workspace, kMatmulWorkspaceBytes)); }
  ~MatmulPlans();
  MatmulPlan& find(cublasLtHandle_t blas, const MatmulKey& key);
  // CUBLAS_STATUS_SUCCESS or why this candidate does not run.
  cublasStatus_t run(cublasLtHandle_t blas, const MatmulPlan& plan, size_t candidate, const MatmulCall& call,
                     cudaStream_t stream) const;
  // matmul_tune.cu: times the candidates on the call's operands and sets `chosen`; y may be overwritten unless c is y.
  void tune(cublasLtHandle_t blas, MatmulPlan& plan, const MatmulKey& key, const MatmulCall& call, cudaStream_t stream);
  // Takes a restored choice for the plan, if there is one and it fits.
  void settle(cublasLtHandle_t blas, MatmulPlan& plan, const MatmulKey& key) const;

  std::map<MatmulKey, MatmulPlan> plans;
  std::map<MatmulKey, MatmulCandidate> restored;
  std::vector<MatmulTiming> timings;  // since take_matmul_timings()
  bool tuning = false;
  void* workspace = nullptr;  // cuBLASLt's own: split sums may be pending while another op uses the backend's
};

}  // namespace irq
