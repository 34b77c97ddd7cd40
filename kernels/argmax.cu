// What  : the likeliest token of each row: greedy decoding without a download of the logits.
// Math  : index[i] = argmax logits[i], the lowest index on ties, NaN left out; -1 if the largest is no finite number.
// Shapes: logits (N, V) F32, index (1, N) i32; any N and V.
// Cost  : 4 V bytes a row, by one block: 128 KB at V = 32,000 from L2, about 5 us. Expected against 170 us of download and choice
//         on the host.
// Tricky: which of two comes first does not depend on who meets whom: (value, index) is ordered, so any tree gives one result.
#include "kernels/common.cuh"

namespace irq {
namespace {

constexpr int kThreads = 1024;
constexpr int kAtOnce = 8;  // loads on the way

struct Best {
  float value;
  int index;  // INT_MAX: none yet
};
__device__ __forceinline__ Best better(const Best& a, const Best& b) {
  const bool second =
      b.index != INT_MAX && (a.index == INT_MAX || b.value > a.value || (b.value == a.value && b.index < a.index));
  return second ? b : a;
}
__device__ __forceinline__ Best warp_best(Best x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    x = better(x, {__shfl_xor_sync(0xffffffffu, x.value, offset), __shfl_xor_sync(0xffffffffu, x.index, offset)});
  return x;
}

__global__ void __launch_bounds__(kThreads)
    argmax_kernel(int32_t* index, const float* logits, int64_t stride, int cols) {
  __shared__ Best part[kThreads / kWarp];
  const float* row = logits + blockIdx.x * stride;
  Best best{0, INT_MAX};
  for (int begin = threadIdx.x; begin < cols; begin += kThreads * kAtOnce) {
    float x[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) x[k] = begin + k * kThreads < cols ? row[begin + k * kThreads] : NAN;
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      if (!isnan(x[k])) best = better(best, {x[k], begin + k * kThreads});
  }
  best = warp_best(best);
  if (threadIdx.x % kWarp == 0) part[threadIdx.x / kWarp] = best;
  __syncthreads();
  if (threadIdx.x >= kWarp) return;
  best = warp_best(part[threadIdx.x]);
  if (threadIdx.x == 0) index[blockIdx.x] = best.index != INT_MAX && isfinite(best.value) ? best.index : -1;
}

}  // namespace

void CudaBackend::argmax(Tensor index, Tensor logits) {
  if (logits.rows == 0) return;
  argmax_kernel<<<static_cast<unsigned>(logits.rows), kThreads, 0, stream()>>>(
      index.as<int32_t>(), logits.as<float>(), logits.stride, static_cast<int>(logits.cols));
  CUDA_LAUNCHED();
}

}  // namespace irq
