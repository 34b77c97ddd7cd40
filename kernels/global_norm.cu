// What:   Euclidean norm of the flat gradient, for clipping.
// Math:   norm = sqrt(sum g^2).
// Shapes: g (1, n) M, norm (1, 1) M.
// Cost:   4 n bytes, one multiply-add each. LLaMA-7B, r = 64, n = 160M: 640 MB, 229 us.
// Tricky: the same sum in the same order every time: the number of blocks depends on n alone, a thread sums at most a few
//         hundred squares in float, blocks and the last stage add in double.
#include "kernels/chunk.cuh"

namespace irq {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxBlocks = 4096;  // several waves, so that the last one is short on any GPU
using Pack4 = Pack<float>;

__global__ void __launch_bounds__(kThreads)
    square_sum_kernel(double* partial, const float* g, int64_t packs, int64_t n) {
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x, threads = int64_t{gridDim.x} * kThreads;
  float sum = 0;
#pragma unroll 4
  for (int64_t i = thread; i < packs; i += threads) {
    const Pack4 pack = reinterpret_cast<const Pack4*>(g)[i];
    sum += (pack.v[0] * pack.v[0] + pack.v[1] * pack.v[1]) + (pack.v[2] * pack.v[2] + pack.v[3] * pack.v[3]);
  }
  for (int64_t i = packs * 4 + thread; i < n; i += threads) sum += g[i] * g[i];
  const double total = block_sum_f64<kThreads>(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

__global__ void __launch_bounds__(kThreads) norm_kernel(float* norm, const double* partial, int blocks) {
  double sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < blocks; i += kThreads) sum += partial[i];
  sum = block_sum_f64<kThreads>(sum);
  if (threadIdx.x == 0) *norm = static_cast<float>(sqrt(sum));
}

}  // namespace

void CudaBackend::global_norm(Tensor norm, Tensor g) {
  const int64_t n = g.numel(), packs = aligned16(g) ? n / 4 : 0;  // unaligned: all of it one by one
  const int blocks = static_cast<int>(std::min<int64_t>(ceil_div(n, kThreads * 16), kMaxBlocks));
  double* partial = static_cast<double*>(workspace(kMaxBlocks * sizeof(double)));
  if (blocks > 0) {
    square_sum_kernel<<<blocks, kThreads, 0, stream_>>>(partial, static_cast<const float*>(g.data), packs, n);
    CUDA_LAUNCHED();
  }
  norm_kernel<<<1, kThreads, 0, stream_>>>(static_cast<float*>(norm.data), partial, blocks);
  CUDA_LAUNCHED();
}

}  // namespace irq
