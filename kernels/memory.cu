// What:    fill, axpby, gather_rows, scatter_rows, reduce_sum: the memory-bound glue between the larger ops.
// Math:    x = value;  y = beta y + alpha x;  y[i] = beta y[i] + x[index[i]] (0 for -1);  total = beta total + sum x.
// Shapes:  fill, axpby (rows, cols); gather_rows y (n, C), x (m, C), index (1, n); reduce_sum x (1, n). Any strides.
// Cost:    one pass: axpby (beta = 1) on 16384 x 4096 bf16 moves 403 MB, 144 us at 2.8 TB/s; gather_rows of as many
//          rows 268 MB, 96 us; reduce_sum of 2^25 floats 134 MB, 48 us. 2 FLOPs per element at most.
// Tricky:  reduce_sum's number of partial sums follows from n alone, never from the GPU, so its bits are the same on
//          every GPU. beta = 0 must not read the output, which may hold NaN.
#include <algorithm>

#include "kernels/map.cuh"

namespace irq {
namespace {

template <class T>
struct FillBody {
  T* x;
  int64_t stride;
  T value;
  template <int W>
  struct State {};
  template <int W>
  __device__ void load(int64_t, int64_t, State<W>&) const {}
  template <int W>
  __device__ void store(int64_t row, int64_t col, State<W>&) const {
    Vec<T, W> out;
#pragma unroll
    for (int k = 0; k < W; ++k) out.v[k] = value;
    store_vec<W>(x + row * stride + col, out);
  }
};

// y[row] = beta y[row] + alpha x[source(row)], with source = index if there is one, else the row itself.
template <class Y, class X>
struct AxpbyBody {
  Y* y;
  const X* x;
  const int32_t* index;  // null: source(row) = row
  int64_t y_stride, x_stride;
  float alpha, beta;
  template <int W>
  struct State {
    Vec<Y, W> y;
    Vec<X, W> x;
    bool dead;
  };
  template <int W>
  __device__ void load(int64_t row, int64_t col, State<W>& s) const {
    if (beta != 0) s.y = load_vec<W>(y + row * y_stride + col);
    const int64_t source = index ? int64_t{index[row]} : row;
    s.dead = source < 0;
    if (!s.dead) s.x = load_vec<W>(x + source * x_stride + col);
  }
  template <int W>
  __device__ void store(int64_t row, int64_t col, State<W>& s) const {
    Vec<Y, W> out;
#pragma unroll
    for (int k = 0; k < W; ++k) {
      const float value = s.dead ? 0.f : alpha * to_f(s.x.v[k]);
      out.v[k] = from_f<Y>(beta == 0 ? value : fmaf(beta, to_f(s.y.v[k]), value));
    }
    store_vec<W>(y + row * y_stride + col, out);
  }
};

template <class Y, class X>
void launch_axpby(cudaStream_t stream, Tensor y, Tensor x, const int32_t* index, double alpha, double beta) {
  constexpr int kWidth = 16 / (sizeof(Y) < sizeof(X) ? sizeof(Y) : sizeof(X));
  const AxpbyBody<Y, X> body{static_cast<Y*>(y.data),   static_cast<const X*>(x.data), index, y.stride, x.stride,
                             static_cast<float>(alpha), static_cast<float>(beta)};
  launch_map<kWidth, 2>(stream, body, y.rows, y.cols, packs_fit(y, kWidth) && packs_fit(x, kWidth));
}

template <class T>
struct ScatterBody {
  T* y;
  const T* x;
  const int32_t* index;
  int64_t y_stride, x_stride;
  template <int W>
  struct State {
    Vec<T, W> x;
    int to;
  };
  template <int W>
  __device__ void load(int64_t row, int64_t col, State<W>& s) const {
    s.to = index[row];
    s.x = load_vec<W>(x + row * x_stride + col);
  }
  template <int W>
  __device__ void store(int64_t, int64_t col, State<W>& s) const {
    if (s.to >= 0) store_vec<W>(y + s.to * y_stride + col, s.x);
  }
};

constexpr int kReduceThreads = 512;
constexpr int64_t kReducePerBlock = 16384, kReduceBlocks = 1024;  // 4 KB of partial sums at most

// out[block] = beta * out[block] + sum of the block's share of x: its tiles of kReduceThreads * 4, a grid apart.
__global__ void __launch_bounds__(kReduceThreads) reduce_kernel(float* out, const float* x, int64_t n, float beta) {
  float sum[4] = {};
  constexpr int64_t kTile = kReduceThreads * 4;
  for (int64_t tile = blockIdx.x * kTile; tile < n; tile += gridDim.x * kTile) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int64_t i = tile + k * kReduceThreads + threadIdx.x;
      if (i < n) sum[k] += x[i];
    }
  }
  const float total = block_sum<kReduceThreads>((sum[0] + sum[1]) + (sum[2] + sum[3]));
  if (threadIdx.x == 0) out[blockIdx.x] = beta == 0 ? total : fmaf(beta, out[blockIdx.x], total);
}

}  // namespace

void CudaBackend::fill(Tensor x, double value) {
  if (x.contiguous()) x = x.flat();
  dispatch_storage(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int kWidth = 16 / sizeof(T);
    T converted;  // the conversion is written for the host here: from_f is device code
    if constexpr (std::is_same_v<T, float>) converted = static_cast<float>(value);
    else converted = std::bit_cast<T>(to_bf16(static_cast<float>(value)));
    const FillBody<T> body{static_cast<T*>(x.data), x.stride, converted};
    launch_map<kWidth, 4>(stream(), body, x.rows, x.cols, packs_fit(x, kWidth));
  });
}

void CudaBackend::axpby(Tensor y, Tensor x, double alpha, double beta) {
  if (y.contiguous() && x.contiguous()) y = y.flat(), x = x.flat();
  dispatch_storage(y.dtype, [&](auto y0) {
    dispatch_storage(x.dtype,
                     [&](auto x0) { launch_axpby<decltype(y0), decltype(x0)>(stream(), y, x, nullptr, alpha, beta); });
  });
}

void CudaBackend::gather_rows(Tensor y, Tensor x, Tensor index, double beta) {
  IRQ_CHECK(x.dtype == y.dtype, "%s is %s, %s is %s", x.name, name_of(x.dtype), y.name, name_of(y.dtype));
  dispatch_storage(y.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_axpby<T, T>(stream(), y, x, index.as<int32_t>(), 1.0, beta);
  });
}

void CudaBackend::scatter_rows(Tensor y, Tensor x, Tensor index) {
  dispatch_storage(y.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int kWidth = 16 / sizeof(T);
    const ScatterBody<T> body{static_cast<T*>(y.data), static_cast<const T*>(x.data), index.as<int32_t>(), y.stride,
                              x.stride};
    launch_map<kWidth, 1>(stream(), body, x.rows, x.cols, packs_fit(y, kWidth) && packs_fit(x, kWidth));
  });
}

void CudaBackend::reduce_sum(Tensor total, Tensor x, double beta) {
  IRQ_CHECK(x.contiguous(), "%s is strided", x.name);
  const int64_t n = x.numel();
  const float* in = x.as<float>();
  float* out = total.as<float>();
  const int64_t blocks = n <= kReducePerBlock ? 1 : std::min(ceil_div(n, kReducePerBlock), kReduceBlocks);
  if (blocks > 1) {
    float* partial = static_cast<float*>(workspace(blocks * int64_t{sizeof(float)}));
    reduce_kernel<<<static_cast<unsigned>(blocks), kReduceThreads, 0, stream()>>>(partial, in, n, 0.f);
    CUDA_LAUNCHED();
    reduce_kernel<<<1, kReduceThreads, 0, stream()>>>(out, partial, blocks, static_cast<float>(beta));
  } else {
    reduce_kernel<<<1, kReduceThreads, 0, stream()>>>(out, in, n, static_cast<float>(beta));
  }
  CUDA_LAUNCHED();
}

}  // namespace irq
