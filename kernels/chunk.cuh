// Kernels in which one thread handles eight neighbouring elements of a row: launch shape, loads and stores.
#pragma once
#include "kernels/common.cuh"

namespace irq {

constexpr int kChunk = 8;  // one 16-byte access in bf16, two in f32

// Blocks of 256 threads, as many of them along a row as it has chunks, the rest across rows.
struct RowGrid {
  dim3 grid, block;
};
inline RowGrid row_grid(int64_t rows, int64_t chunks) {
  constexpr int64_t kThreads = 256;
  int64_t x = 1;
  while (x < chunks && x < kThreads) x *= 2;
  const int64_t y = kThreads / x;
  return {dim3(static_cast<unsigned>(ceil_div(chunks, x)),
               static_cast<unsigned>(std::min<int64_t>(ceil_div(rows, y), 65535))),
          dim3(static_cast<unsigned>(x), static_cast<unsigned>(y))};
}

// Whether every row starts at a 16-byte boundary.
inline bool aligned16(Tensor t) {
  return reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && (t.rows <= 1 || t.stride * size_of(t.dtype) % 16 == 0);
}

// x[0..count) = from[0..count), the rest `pad`. kVector: `from` is 16-byte aligned.
template <bool kVector, class T>
__device__ __forceinline__ void load_chunk(float (&x)[kChunk], const T* from, int64_t count, float pad = 0) {
  if (kVector && count >= kChunk) {
#pragma unroll
    for (int k = 0; k < kChunk; k += Pack<T>::kCount) {
      const Pack<T> pack = *reinterpret_cast<const Pack<T>*>(from + k);
#pragma unroll
      for (int i = 0; i < Pack<T>::kCount; ++i) x[k + i] = to_f(pack.v[i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kChunk; ++i) x[i] = i < count ? to_f(from[i]) : pad;
  }
}
template <bool kVector, class T>
__device__ __forceinline__ void store_chunk(T* to, const float (&x)[kChunk], int64_t count) {
  if (kVector && count >= kChunk) {
#pragma unroll
    for (int k = 0; k < kChunk; k += Pack<T>::kCount) {
      Pack<T> pack;
#pragma unroll
      for (int i = 0; i < Pack<T>::kCount; ++i) pack.v[i] = from_f<T>(x[k + i]);
      *reinterpret_cast<Pack<T>*>(to + k) = pack;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kChunk; ++i)
      if (i < count) to[i] = from_f<T>(x[i]);
  }
}

// Sum over a block in double, for the last stage of a long reduction; every thread gets the result, in a fixed order.
template <int kThreads>
__device__ __forceinline__ double block_sum_f64(double x) {
  __shared__ double partial[kThreads / kWarp];
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = x;
  __syncthreads();
  double total = 0;
  for (int i = 0; i < kThreads / kWarp; ++i) total += partial[i];
  return total;
}

}  // namespace irq
