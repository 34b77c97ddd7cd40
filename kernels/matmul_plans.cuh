// MatmulPlans: cuBLASLt's descriptors and chosen algorithm for every shape met so far, and its scratch memory.
#pragma once
#include <array>
#include <map>
#include <tuple>
#include <vector>

#include "kernels/common.cuh"

namespace irq {

constexpr int64_t kMatmulWorkspaceBytes = int64_t{64} << 20;
constexpr int kMatmulCandidates = 8;

void cublas_check(cublasStatus_t status, const char* what);

// Everything that a choice of algorithm depends on. Sizes are those of the row-major op(a) (m, k), op(b) (k, n).
struct MatmulKey {
  int64_t m, n, k;
  int64_t a_stride, b_stride, c_stride, y_stride;
  DType in, out;
  bool transpose_a, transpose_b;
  std::array<int, 4> alignment;  // of a, b, c, y: bytes, a power of two, 16 at most
  auto all() const {
    return std::tie(m, n, k, a_stride, b_stride, c_stride, y_stride, in, out, transpose_a, transpose_b, alignment);
  }
  bool operator<(const MatmulKey& other) const { return all() < other.all(); }
};

struct MatmulCandidate {
  cublasLtMatmulAlgo_t algorithm;
  float waves;  // of blocks over the GPU's multiprocessors; just under a whole number is good
};

struct MatmulPlan {
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t first = nullptr, second = nullptr, base = nullptr, result = nullptr;  // b^T, a^T, c^T, y^T
  std::vector<MatmulCandidate> candidates;  // best guess first; empty: our own kernel runs
  size_t chosen = 0;                        // a tuner may time the candidates and set this
};

struct CudaBackend::MatmulPlans {
  MatmulPlans() { CUDA_CHECK(cudaMalloc(&workspace, kMatmulWorkspaceBytes)); }
  ~MatmulPlans();
  MatmulPlan& find(cublasLtHandle_t blas, const MatmulKey& key);

  std::map<MatmulKey, MatmulPlan> plans;
  void* workspace = nullptr;  // cuBLASLt's own: split sums may be pending while another op uses the backend's
};

}  // namespace irq
