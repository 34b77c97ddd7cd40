// What:   the ops of LoRA under dropout for what the tensor-core kernels do not take: F32, odd widths, unaligned rows.
// Math:   as in lora_dropout_{fwd,da,dx}.cu, F32 arithmetic on values as they are stored.
// Shapes: any; any row stride.
// Cost:   not for production: products run on plain FMAs.
// Tricky: only that a tile is masked once, in shared memory, and then multiplied.
#include "kernels/iec.h"
#include "kernels/lora_dropout.cuh"

namespace irq {
namespace {

constexpr int kThreads = 256, kTile = 64, kDepth = 32;  // results of a block are kTile x kTile, kDepth terms at a time

__device__ __forceinline__ bool keeps(const MaskArgs& m, int64_t n, int64_t c, int adapter) {
  const uint2 word = m.block(adapter, static_cast<int>(c / 64))[n];
  return (c % 64 < 32 ? word.x : word.y) >> (c % 2 * 16 + c % 32 / 2) & 1;
}

template <class T>
__global__ void pool_kernel(T* px, int64_t px_stride, const T* x, int64_t x_stride, const int* positions, int64_t rows,
                            IecMap map) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < rows * map.groups;
       i += int64_t{gridDim.x} * kThreads) {
    const int64_t n = i / map.groups;
    const int t = static_cast<int>(i - n * map.groups);
    float sum = 0;
    if (positions[n] >= 0)
      for (int k = 0; k < map.slice; ++k) sum += to_f(x[n * x_stride + int64_t{t} * map.slice + k]);
    for (int k = 0; k < map.repeat; ++k)
      px[n * px_stride + map.member(t, k)] = from_f<T>(sum / static_cast<float>(map.slice));
  }
}

// A (kTile, kTile) result of two operands in shared memory, sum over d of left[d][i] right[d][j]: thread t holds results
// (t / 16 + 16 a, t % 16 + 16 b).
struct Product {
  float left[kDepth][kTile + 1], right[kDepth][kTile + 1];
};
__device__ __forceinline__ void multiply(float (&acc)[4][4], const Product& p) {
  const int i = static_cast<int>(threadIdx.x) / 16, j = static_cast<int>(threadIdx.x) % 16;
  for (int d = 0; d < kDepth; ++d)
#pragma unroll
    for (int a = 0; a < 4; ++a)
#pragma unroll
      for (int b = 0; b < 4; ++b) acc[a][b] += p.left[d][i + 16 * a] * p.right[d][j + 16 * b];
}

// u[n][j]: block (row tile, slice).
template <class T>
__global__ void __launch_bounds__(kThreads)
    fwd_kernel(T* u, int64_t u_stride, const T* px, int64_t px_stride, const T* x, int64_t x_stride, const T* a,
               int64_t a_stride, int64_t rows, int64_t cols, RankSlice slice, MaskArgs m) {
  __shared__ Product tile;
  const int64_t first = int64_t{blockIdx.x} * kTile;
  float acc[4][4] = {};
  for (int64_t c0 = 0; c0 < cols; c0 += kDepth) {
    for (int i = static_cast<int>(threadIdx.x); i < kTile * kDepth; i += kThreads) {
      const int r = i / kDepth, d = i % kDepth;
      const int64_t n = first + r, c = c0 + d;
      const bool in = n < rows && c < cols && m.positions[n] >= 0;
      tile.left[d][r] = in && keeps(m, n, c, slice.adapter) ? to_f(x[n * x_stride + c]) : 0.0f;
      tile.right[d][r] = r < slice.width && c < cols ? to_f(a[(slice.column + r) * a_stride + c]) : 0.0f;
    }
    __syncthreads();
    multiply(acc, tile);
    __syncthreads();
  }
  const float beta1 = slice.beta1 ? *slice.beta1 : 0.0f;
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const int64_t n = first + static_cast<int>(threadIdx.x) / 16 + 16 * (i / 4);
    const int j = static_cast<int>(threadIdx.x) % 16 + 16 * (i % 4);
    if (n >= rows || j >= slice.width) continue;
    const float pooled = px && slice.beta1 ? beta1 * to_f(px[n * px_stride + slice.first + j]) : 0.0f;
    u[n * u_stride + slice.column + j] = from_f<T>(m.scale * acc[i / 4][i % 4] + pooled);
  }
}

// da[j][c]: block (feature tile, slice).
template <class T>
__global__ void __launch_bounds__(kThreads)
    da_kernel(float* da, int64_t da_stride, const T* du, int64_t du_stride, const T* x, int64_t x_stride, int64_t rows,
              int64_t cols, RankSlice slice, MaskArgs m, float beta) {
  __shared__ Product tile;
  const int64_t first = int64_t{blockIdx.x} * kTile;
  float acc[4][4] = {};
  for (int64_t n0 = 0; n0 < rows; n0 += kDepth) {
    for (int i = static_cast<int>(threadIdx.x); i < kTile * kDepth; i += kThreads) {
      const int k = i % kTile, d = i / kTile;
      const int64_t n = n0 + d, c = first + k;
      const bool live = n < rows && m.positions[n] >= 0;
      tile.left[d][k] = live && k < slice.width ? to_f(du[n * du_stride + slice.column + k]) : 0.0f;
      tile.right[d][k] = live && c < cols && keeps(m, n, c, slice.adapter) ? to_f(x[n * x_stride + c]) : 0.0f;
    }
    __syncthreads();
    multiply(acc, tile);
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const int j = static_cast<int>(threadIdx.x) / 16 + 16 * (i / 4);
    const int64_t c = first + static_cast<int>(threadIdx.x) % 16 + 16 * (i % 4);
    if (j >= slice.width || c >= cols) continue;
    float& out = da[(slice.column + j) * da_stride + c];
    out = (beta == 0 ? 0.0f : beta * out) + m.scale * acc[i / 4][i % 4];
  }
}

// dx[n][c]: a thread for each.
template <class T>
__global__ void __launch_bounds__(kThreads)
    dx_kernel(T* dx, int64_t dx_stride, const T* du, int64_t du_stride, const T* a, int64_t a_stride, int64_t rows,
              int64_t cols, int adapters, int rank, MaskArgs m, float beta) {
  const int64_t c = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (c >= cols) return;
  for (int64_t n = blockIdx.y; n < rows; n += gridDim.y) {
    float sum = 0;
    for (int k = 0; k < adapters; ++k) {
      if (!keeps(m, n, c, k)) continue;
      for (int j = k * rank; j < (k + 1) * rank; ++j) sum += to_f(du[n * du_stride + j]) * to_f(a[j * a_stride + c]);
    }
    T& out = dx[n * dx_stride + c];
    out = from_f<T>((beta == 0 ? 0.0f : beta * to_f(out)) + m.scale * sum);
  }
}

}  // namespace

void lora_pool_simple(Tensor px, Tensor x, const MaskArgs& m, bool tile, cudaStream_t stream) {
  if (px.numel() == 0 || x.cols == 0) return;
  const IecMap map(x.cols, px.cols, tile);
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(ceil_div(x.rows * map.groups, kThreads), 65535));
  dispatch_storage(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    pool_kernel<T><<<blocks, kThreads, 0, stream>>>(static_cast<T*>(px.data), px.stride, static_cast<const T*>(x.data),
                                                    x.stride, m.positions, x.rows, map);
  });
  CUDA_LAUNCHED();
}

void lora_dropout_fwd_simple(Tensor u, Tensor px, Tensor x, Tensor a, const AdapterScalars& beta1,
                             const MaskBits& masks, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(ceil_div(x.rows, kTile));
  for (const RankSlice& slice : rank_slices(masks, u.cols, beta1)) {
    dispatch_storage(x.dtype, [&](auto zero) {
      using T = decltype(zero);
      fwd_kernel<T><<<blocks, kThreads, 0, stream>>>(
          static_cast<T*>(u.data), u.stride, static_cast<const T*>(px.data), px.stride, static_cast<const T*>(x.data),
          x.stride, static_cast<const T*>(a.data), a.stride, x.rows, x.cols, slice, mask_args(masks));
    });
    CUDA_LAUNCHED();
  }
}

void lora_dropout_da_simple(Tensor da, Tensor du, Tensor x, const MaskBits& masks, double beta, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(ceil_div(x.cols, kTile));
  for (const RankSlice& slice : rank_slices(masks, da.rows)) {
    dispatch_storage(x.dtype, [&](auto zero) {
      using T = decltype(zero);
      da_kernel<T><<<blocks, kThreads, 0, stream>>>(
          static_cast<float*>(da.data), da.stride, static_cast<const T*>(du.data), du.stride,
          static_cast<const T*>(x.data), x.stride, x.rows, x.cols, slice, mask_args(masks), static_cast<float>(beta));
    });
    CUDA_LAUNCHED();
  }
}

void lora_dropout_dx_simple(Tensor dx, Tensor du, Tensor a, const MaskBits& masks, double beta, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(dx.cols, kThreads)),
                  static_cast<unsigned>(std::min<int64_t>(dx.rows, 65535)));
  dispatch_storage(dx.dtype, [&](auto zero) {
    using T = decltype(zero);
    dx_kernel<T><<<grid, kThreads, 0, stream>>>(static_cast<T*>(dx.data), dx.stride, static_cast<const T*>(du.data),
                                                du.stride, static_cast<const T*>(a.data), a.stride, dx.rows, dx.cols,
                                                masks.count, static_cast<int>(du.cols / masks.count), mask_args(masks),
                                                static_cast<float>(beta));
  });
  CUDA_LAUNCHED();
}

}  // namespace irq
