// What    the upper Cholesky factor U of H^-1 = U^T U, for GPTQ
// Math    cuSOLVER in fp32, as the released code: H = L L^T, H^-1 from L, H^-1 = L' L'^T; U = L'^T
// Shapes  u, h (n, n) F32 contiguous; info (1, 1) i32
// Cost    4/3 n^3 FLOPs: 0.09 TFLOP at n = 4096, 1.8 TFLOP at n = 11008
// Tricky  cuSOLVER is column-major: its lower triangle is the upper one of a row-major matrix, so what it calls L' lies as U
//         already, and no step reads the other triangle, which keeps h's numbers. Each step has its own info: the first
//         that is not 0 counts.
#include <cusolverDn.h>

#include "kernels/common.cuh"

namespace irq {
namespace {

void solver_check(cusolverStatus_t status, const char* what) {
  if (status == CUSOLVER_STATUS_SUCCESS) return;
  throw Error(strf("cuSOLVER: %s failed with status %d", what, static_cast<int>(status)))
      .line("likely", status == CUSOLVER_STATUS_ALLOC_FAILED || status == CUSOLVER_STATUS_NOT_INITIALIZED
                          ? "the GPU has no memory left for it"
                          : "a CUDA toolkit and driver that do not fit each other")
      .line("try", "--device cpu, or free some of the GPU's memory");
}

// A handle and the scratch of one factorization.
struct Solver {
  cusolverDnHandle_t handle = nullptr;
  float* work = nullptr;
  int* info = nullptr;
  explicit Solver(cudaStream_t stream) {
    solver_check(cusolverDnCreate(&handle), "cusolverDnCreate");
    solver_check(cusolverDnSetStream(handle, stream), "cusolverDnSetStream");
  }
  ~Solver() {
    cudaFree(work);
    cudaFree(info);
    cusolverDnDestroy(handle);
  }
  Solver(const Solver&) = delete;
};

__global__ void join_info(int32_t* out, const int* in) { *out = in[0] != 0 ? in[0] : in[1] != 0 ? in[1] : in[2]; }

}  // namespace

void CudaBackend::gptq_factor(Tensor u, Tensor info, Tensor h) {
  constexpr cublasFillMode_t kLower = CUBLAS_FILL_MODE_LOWER;
  const int n = static_cast<int>(h.rows);
  float* a = u.as<float>();
  CUDA_CHECK(cudaMemcpyAsync(a, h.data, static_cast<size_t>(h.bytes()), cudaMemcpyDeviceToDevice, stream()));
  Solver solver(stream());
  int factor = 0, inverse = 0;
  solver_check(cusolverDnSpotrf_bufferSize(solver.handle, kLower, n, a, n, &factor), "potrf_bufferSize");
  solver_check(cusolverDnSpotri_bufferSize(solver.handle, kLower, n, a, n, &inverse), "potri_bufferSize");
  const int size = std::max(std::max(factor, inverse), 1);
  CUDA_CHECK(cudaMalloc(&solver.work, static_cast<size_t>(size) * sizeof(float)));
  CUDA_CHECK(cudaMalloc(&solver.info, 3 * sizeof(int)));
  CUDA_CHECK(cudaMemsetAsync(solver.info, 0, 3 * sizeof(int), stream()));
  solver_check(cusolverDnSpotrf(solver.handle, kLower, n, a, n, solver.work, size, solver.info), "potrf");
  solver_check(cusolverDnSpotri(solver.handle, kLower, n, a, n, solver.work, size, solver.info + 1), "potri");
  solver_check(cusolverDnSpotrf(solver.handle, kLower, n, a, n, solver.work, size, solver.info + 2), "potrf");
  join_info<<<1, 1, 0, stream()>>>(info.as<int32_t>(), solver.info);
  CUDA_LAUNCHED();
  CUDA_CHECK(cudaStreamSynchronize(stream()));  // the scratch goes now
}

}  // namespace irq
