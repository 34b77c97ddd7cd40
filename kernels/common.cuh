// Small helpers shared by the .cu files: launch checks, typed dispatch, bf16 <-> float, warp and block reductions.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda.h"

namespace irq {

void cuda_check(cudaError_t status, const char* what, const char* file, int line);
#define CUDA_CHECK(call) ::irq::cuda_check((call), #call, __FILE__, __LINE__)
// After every launch.
#define CUDA_LAUNCHED() ::irq::cuda_check(cudaGetLastError(), "kernel launch", __FILE__, __LINE__)

constexpr int kWarp = 32;

__device__ __forceinline__ float to_f(float x) { return x; }
__device__ __forceinline__ float to_f(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_f(__half x) { return __half2float(x); }
template <class T>
__device__ __forceinline__ T from_f(float x);
template <>
__device__ __forceinline__ float from_f<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_f<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ __half from_f<__half>(float x) {
  return __float2half_rn(x);
}

// 16 bytes of T, loaded and stored as one access.
template <class T>
struct alignas(16) Pack {
  static constexpr int kCount = 16 / sizeof(T);
  T v[kCount];
};

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
  return x;
}
// Sum over a block of kThreads; every thread gets the result. Fixed order, so the same bits every time.
template <int kThreads>
__device__ __forceinline__ float block_sum(float x) {
  __shared__ float partial[kThreads / kWarp];
  x = warp_sum(x);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = x;
  __syncthreads();
  float total = 0;
#pragma unroll
  for (int i = 0; i < kThreads / kWarp; ++i) total += partial[i];
  return total;
}
template <int kThreads>
__device__ __forceinline__ float block_max(float x) {
  __shared__ float partial[kThreads / kWarp];
  x = warp_max(x);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = x;
  __syncthreads();
  float best = partial[0];
#pragma unroll
  for (int i = 1; i < kThreads / kWarp; ++i) best = fmaxf(best, partial[i]);
  return best;
}

// Calls f with a value of the storage type of `t`: dispatch_storage(t, [&](auto zero) { using T = decltype(zero); ... });
template <class F>
void dispatch_storage(DType t, F&& f) {
  if (t == DType::BF16) f(__nv_bfloat16{});
  else if (t == DType::F32) f(float{});
  else IRQ_CHECK(false, "no CUDA kernel for storage type %s", name_of(t));
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace irq
