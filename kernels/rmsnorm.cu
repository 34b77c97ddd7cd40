// What:    RMSNorm forward and the gradient of its input; one block per row, the row stays in registers.
// Math:    rstd = 1 / sqrt(mean(x^2) + eps), y = round_S(x rstd) w; g = dy w, dx = beta dx + rstd (g - x rstd^2
//          mean(g x)).
// Shapes:  x, y, dx, dy (N, C) storage, any row stride; rstd (1, N) float; w (1, C) float.
// Cost:    forward 2 N C elements: 8192 x 4096 bf16 moves 134 MB, 48 us at 2.8 TB/s; backward 3 N C (4 with beta),
//          201 MB, 72 us (268 MB, 96 us). 4 and 9 FLOPs per element.
// Tricky:  the variants differ in how many packs of 16 bytes a thread keeps, so that all of a row's loads are in
//          flight at once, forward's w with them, and nothing is read twice. w is read again for every row, but from L1. Rows that are too
//          wide or not aligned take the same path with one element at a time and a second read of the row (from L1 or
//          L2).
#include "kernels/map.cuh"

namespace irq {
namespace {

template <int kThreads, int kPacks, class T>
__global__ void __launch_bounds__(kThreads) fwd_kernel(T* y, int64_t y_stride, float* rstd, const T* x,
                                                       int64_t x_stride, const float* w, int64_t cols, float eps) {
  constexpr int W = Pack<T>::kCount;
  const int64_t row = blockIdx.x;
  Vec<T, W> pack[kPacks];
  Vec<float, W> weight[kPacks];
  float squares = 0;
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int64_t c = int64_t{p * kThreads + static_cast<int>(threadIdx.x)} * W;
    if (c >= cols) continue;
    pack[p] = load_vec<W>(x + row * x_stride + c);
    weight[p] = load_vec<W>(w + c);
  }
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int64_t c = int64_t{p * kThreads + static_cast<int>(threadIdx.x)} * W;
    if (c >= cols) continue;
#pragma unroll
    for (int k = 0; k < W; ++k) squares = fmaf(to_f(pack[p].v[k]), to_f(pack[p].v[k]), squares);
  }
  const float r = 1.f / sqrtf(block_sum<kThreads>(squares) / static_cast<float>(cols) + eps);
  if (threadIdx.x == 0) rstd[row] = r;
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int64_t c = int64_t{p * kThreads + static_cast<int>(threadIdx.x)} * W;
    if (c >= cols) continue;
    Vec<T, W> out;
#pragma unroll
    for (int k = 0; k < W; ++k) out.v[k] = from_f<T>(to_f(from_f<T>(to_f(pack[p].v[k]) * r)) * weight[p].v[k]);
    store_vec<W>(y + row * y_stride + c, out);
  }
}

template <int kThreads, class T>
__global__ void __launch_bounds__(kThreads) fwd_any_kernel(T* y, int64_t y_stride, float* rstd, const T* x,
                                                           int64_t x_stride, const float* w, int64_t cols, float eps) {
  const int64_t row = blockIdx.x;
  const T* in = x + row * x_stride;
  float squares = 0;
  for (int64_t c = threadIdx.x; c < cols; c += kThreads) squares = fmaf(to_f(in[c]), to_f(in[c]), squares);
  const float r = 1.f / sqrtf(block_sum<kThreads>(squares) / static_cast<float>(cols) + eps);
  if (threadIdx.x == 0) rstd[row] = r;
  for (int64_t c = threadIdx.x; c < cols; c += kThreads)
    y[row * y_stride + c] = from_f<T>(to_f(from_f<T>(to_f(in[c]) * r)) * w[c]);
}

// What the two backward kernels share. `old` is read only if beta is not 0.
template <class T>
__device__ __forceinline__ T input_grad(T dy, T x, float w, float r, float slope, T old, float beta) {
  const float d = r * (to_f(dy) * w - to_f(x) * slope);
  return from_f<T>(beta == 0 ? d : fmaf(beta, to_f(old), d));
}

template <class T>
struct BwdArgs {
  T* dx;
  const T* dy;
  const T* x;
  const float* w;
  const float* rstd;
  int64_t dx_stride, dy_stride, x_stride, cols;
  float beta;
};

template <int kThreads, int kPacks, class T>
__global__ void __launch_bounds__(kThreads) bwd_kernel(BwdArgs<T> a) {
  constexpr int W = Pack<T>::kCount;
  const int64_t row = blockIdx.x;
  Vec<T, W> x[kPacks], dy[kPacks], old[kPacks];
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int64_t c = int64_t{p * kThreads + static_cast<int>(threadIdx.x)} * W;
    if (c >= a.cols) continue;
    x[p] = load_vec<W>(a.x + row * a.x_stride + c);
    dy[p] = load_vec<W>(a.dy + row * a.dy_stride + c);
    if (a.beta != 0) old[p] = load_vec<W>(a.dx + row * a.dx_stride + c);
  }
  float dot = 0;
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int64_t c = int64_t{p * kThreads + static_cast<int>(threadIdx.x)} * W;
    if (c >= a.cols) continue;
    const Vec<float, W> weight = load_vec<W>(a.w + c);
#pragma unroll
    for (int k = 0; k < W; ++k) dot = fmaf(to_f(dy[p].v[k]) * weight.v[k], to_f(x[p].v[k]), dot);
  }
  const float r = a.rstd[row], slope = r * r * block_sum<kThreads>(dot) / static_cast<float>(a.cols);
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int64_t c = int64_t{p * kThreads + static_cast<int>(threadIdx.x)} * W;
    if (c >= a.cols) continue;
    const Vec<float, W> weight = load_vec<W>(a.w + c);
    Vec<T, W> out;
#pragma unroll
    for (int k = 0; k < W; ++k)
      out.v[k] = input_grad(dy[p].v[k], x[p].v[k], weight.v[k], r, slope, old[p].v[k], a.beta);
    store_vec<W>(a.dx + row * a.dx_stride + c, out);
  }
}

template <int kThreads, class T>
__global__ void __launch_bounds__(kThreads) bwd_any_kernel(BwdArgs<T> a) {
  const int64_t row = blockIdx.x;
  const T* x = a.x + row * a.x_stride;
  const T* dy = a.dy + row * a.dy_stride;
  T* dx = a.dx + row * a.dx_stride;
  float dot = 0;
  for (int64_t c = threadIdx.x; c < a.cols; c += kThreads) dot = fmaf(to_f(dy[c]) * a.w[c], to_f(x[c]), dot);
  const float r = a.rstd[row], slope = r * r * block_sum<kThreads>(dot) / static_cast<float>(a.cols);
  for (int64_t c = threadIdx.x; c < a.cols; c += kThreads)
    dx[c] = input_grad(dy[c], x[c], a.w[c], r, slope, a.beta == 0 ? from_f<T>(0.f) : dx[c], a.beta);
}

template <int kValue>
using Int = std::integral_constant<int, kValue>;

// Calls f(threads, packs per thread) with the smallest variant that holds a row of `packs`; false if none does.
template <class F>
bool with_variant(int64_t packs, F&& f) {
  if (packs <= 32) f(Int<32>{}, Int<1>{});
  else if (packs <= 128) f(Int<128>{}, Int<1>{});
  else if (packs <= 256) f(Int<256>{}, Int<1>{});
  else if (packs <= 512) f(Int<256>{}, Int<2>{});
  else if (packs <= 1024) f(Int<256>{}, Int<4>{});
  else if (packs <= 2048) f(Int<512>{}, Int<4>{});
  else return false;
  return true;
}

}  // namespace

void CudaBackend::rmsnorm_fwd(Tensor y, Tensor rstd, Tensor x, Tensor w, double eps) {
  if (x.rows == 0) return;
  IRQ_CHECK(x.rows < int64_t{1} << 31, "%ld rows", x.rows);
  const unsigned rows = static_cast<unsigned>(x.rows);
  dispatch_storage(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int W = Pack<T>::kCount;
    T* out = static_cast<T*>(y.data);
    const T* in = static_cast<const T*>(x.data);
    const float e = static_cast<float>(eps);
    bool done = x.cols % W == 0 && packs_fit(x, W) && packs_fit(y, W) && packs_fit(w, W);
    done = done && with_variant(x.cols / W, [&](auto threads, auto packs) {
             fwd_kernel<threads(), packs(), T><<<rows, threads(), 0, stream()>>>(out, y.stride, rstd.as<float>(), in,
                                                                                 x.stride, w.as<float>(), x.cols, e);
           });
    if (!done)
      fwd_any_kernel<256, T>
          <<<rows, 256, 0, stream()>>>(out, y.stride, rstd.as<float>(), in, x.stride, w.as<float>(), x.cols, e);
    CUDA_LAUNCHED();
  });
}

void CudaBackend::rmsnorm_bwd(Tensor dx, Tensor dy, Tensor x, Tensor w, Tensor rstd, double beta) {
  if (x.rows == 0) return;
  IRQ_CHECK(x.rows < int64_t{1} << 31, "%ld rows", x.rows);
  const unsigned rows = static_cast<unsigned>(x.rows);
  dispatch_storage(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int W = Pack<T>::kCount;
    const BwdArgs<T> args{static_cast<T*>(dx.data),
                          static_cast<const T*>(dy.data),
                          static_cast<const T*>(x.data),
                          w.as<float>(),
                          rstd.as<float>(),
                          dx.stride,
                          dy.stride,
                          x.stride,
                          x.cols,
                          static_cast<float>(beta)};
    bool done = x.cols % W == 0 && packs_fit(x, W) && packs_fit(dy, W) && packs_fit(dx, W) && packs_fit(w, W);
    done = done && with_variant(x.cols / W, [&](auto threads, auto packs) {
             bwd_kernel<threads(), packs(), T><<<rows, threads(), 0, stream()>>>(args);
           });
    if (!done) bwd_any_kernel<256, T><<<rows, 256, 0, stream()>>>(args);
    CUDA_LAUNCHED();
  });
}

}  // namespace irq
