// What    QA-LoRA's pooling of an input over groups of consecutive features, IEC's slices, and the way back
// Math    y[n, g] = c(g) * sum of x[n, i] over group g;  dx[n, i] = beta * dx[n, i] + c(g) dy[n, g];  c(g) = factor or factor / L
// Shapes  x, dx (N, h) S, any row stride; y (N, groups * repeat), dy (N, groups) S
// Cost    group_pool 2 N h bytes in bf16 and N h / L written: N = 8192, h = 4096: 67 MB, 24 us; group_spread 2 N h, with beta 4 N h
// Tricky  a group of 8, 16, .. 256 features is 1 to 32 lanes with eight neighbours each: they add up by shuffles, in one order;
//         the last group may be short. All other groups take a warp each
#include "kernels/chunk.cuh"
#include "kernels/group_pool.h"

namespace irq {
namespace {

constexpr int kPoolThreads = 256;

template <class T>
__device__ __forceinline__ void store_group(T* row, const GroupPool& pool, int64_t g, float sum) {
  const float value = static_cast<float>(pool.coefficient(g)) * sum;
  for (int64_t k = 0; k < pool.repeat; ++k) row[pool.output(g, k)] = from_f<T>(value);
}

// kLanes lanes per group of 8 * kLanes features.
template <class T, int kLanes>
__global__ void __launch_bounds__(kPoolThreads)
    group_pool_chunks_kernel(T* y, int64_t y_stride, const T* x, int64_t x_stride, int64_t rows, GroupPool pool) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t groups = pool.groups(), all = rows * groups, step = int64_t{gridDim.x} * (kPoolThreads / kLanes);
  // Every lane of a warp goes round as often as the first, so that all take part in the shuffles.
  for (int64_t base = int64_t{blockIdx.x} * (kPoolThreads / kLanes); base < all; base += step) {
    const int64_t at = base + threadIdx.x / kLanes;
    const int64_t n = at / groups, g = at - n * groups, col = g * pool.group + lane * kChunk;
    float sum = 0;
    if (at < all && col < pool.cols) {
      float value[kChunk];
      load_chunk<true>(value, x + n * x_stride + col, pool.cols - col);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) sum += value[i];
    }
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (at < all && lane == 0) store_group(y + n * y_stride, pool, g, sum);
  }
}

// One warp per group, any size.
template <class T>
__global__ void __launch_bounds__(kPoolThreads)
    group_pool_kernel(T* y, int64_t y_stride, const T* x, int64_t x_stride, int64_t rows, GroupPool pool) {
  const int64_t groups = pool.groups(), all = rows * groups, step = int64_t{gridDim.x} * (kPoolThreads / kWarp);
  for (int64_t at = (int64_t{blockIdx.x} * kPoolThreads + threadIdx.x) / kWarp; at < all; at += step) {
    const int64_t n = at / groups, g = at - n * groups;
    float sum = 0;
    for (int64_t i = pool.begin(g) + threadIdx.x % kWarp; i < pool.end(g); i += kWarp) sum += to_f(x[n * x_stride + i]);
    sum = warp_sum(sum);
    if (threadIdx.x % kWarp == 0) store_group(y + n * y_stride, pool, g, sum);
  }
}

template <class T, bool kVector>
__global__ void group_spread_kernel(T* dx, int64_t dx_stride, const T* dy, int64_t dy_stride, int64_t rows,
                                    GroupPool pool, float beta) {
  const int64_t c = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kChunk;
  if (c >= pool.cols) return;
  const int64_t count = pool.cols - c;
  const int group = static_cast<int>(pool.group), first = static_cast<int>(c) / group;
  const float coefficient = static_cast<float>(pool.coefficient(first));
  for (int64_t n = int64_t{blockIdx.y} * blockDim.y + threadIdx.y; n < rows; n += int64_t{gridDim.y} * blockDim.y) {
    T* out = dx + n * dx_stride + c;
    const T* in = dy + n * dy_stride;
    float value[kChunk];
    if (static_cast<int>(c) + kChunk <= (first + 1) * group || group % kChunk == 0) {  // all eight in one group
      const float one = coefficient * to_f(in[first]);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) value[i] = one;
    } else {
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        const int g = (static_cast<int>(c) + i) / group;
        value[i] = i < count ? static_cast<float>(pool.coefficient(g)) * to_f(in[g]) : 0.0f;
      }
    }
    if (beta != 0) {
      float old[kChunk];
      load_chunk<kVector>(old, out, count);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) value[i] += beta * old[i];
    }
    store_chunk<kVector>(out, value, count);
  }
}

template <class T>
auto* kernel_of(const GroupPool& pool, bool aligned, int* lanes) {
  *lanes = static_cast<int>(aligned && pool.group % kChunk == 0 ? pool.group / kChunk : 0);
  switch (*lanes) {
    case 1: return &group_pool_chunks_kernel<T, 1>;
    case 2: return &group_pool_chunks_kernel<T, 2>;
    case 4: return &group_pool_chunks_kernel<T, 4>;
    case 8: return &group_pool_chunks_kernel<T, 8>;
    case 16: return &group_pool_chunks_kernel<T, 16>;
    case 32: return &group_pool_chunks_kernel<T, 32>;
    default: *lanes = kWarp; return &group_pool_kernel<T>;
  }
}

}  // namespace

void CudaBackend::group_pool(Tensor y, Tensor x, GroupPool pool) {
  if (x.numel() == 0) return;
  dispatch_storage(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    int lanes = 0;
    auto* kernel = kernel_of<T>(pool, aligned16(x), &lanes);
    const int64_t blocks = ceil_div(x.rows * pool.groups() * lanes, kPoolThreads);
    kernel<<<static_cast<unsigned>(std::min<int64_t>(blocks, 65535)), kPoolThreads, 0, stream_>>>(
        static_cast<T*>(y.data), y.stride, static_cast<const T*>(x.data), x.stride, x.rows, pool);
  });
  CUDA_LAUNCHED();
}

void CudaBackend::group_spread(Tensor dx, Tensor dy, GroupPool pool, double beta) {
  if (dx.numel() == 0) return;
  const RowGrid launch = row_grid(dx.rows, ceil_div(pool.cols, kChunk));
  dispatch_storage(dx.dtype, [&](auto zero) {
    using T = decltype(zero);
    auto* kernel = aligned16(dx) ? &group_spread_kernel<T, true> : &group_spread_kernel<T, false>;
    kernel<<<launch.grid, launch.block, 0, stream_>>>(static_cast<T*>(dx.data), dx.stride,
                                                      static_cast<const T*>(dy.data), dy.stride, dx.rows, pool,
                                                      static_cast<float>(beta));
  });
  CUDA_LAUNCHED();
}

}  // namespace irq
