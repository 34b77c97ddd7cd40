// What:    embedding lookup and its backward.
// Math:    y[i] = table[tokens[i]];  dtable[v] = beta dtable[v] + sum over i with tokens[i] = v of dy[i], i
//          ascending.
// Shapes:  y, dy (N, C) storage, table (V, C) storage, dtable (V, C) float, tokens (1, N); token -1 = no row.
// Cost:    forward 2 N C elements: 8192 x 4096 bf16 moves 134 MB, 48 us at 2.8 TB/s. Backward, V = 32000, N = 16384,
//          C = 4096, beta = 0: 524 MB of dtable and 134 MB of dy, 235 us, plus V/8 * C/1024 scans of the tokens from
//          L2 (1 GB, about 250 us, overlapped in part).
// Tricky:  backward needs no atomics and no sort: a warp owns one vocabulary row (and 1024 of its columns), looks
//          through all tokens, 128 at a time, and adds the rows that match in ascending order, in registers. Tokens
//          pass through shared memory once for the 8 warps of a block. A token that makes up much of the batch is
//          slow in its one warp.
#include "kernels/map.cuh"

namespace irq {
namespace {

constexpr int kWarps = 8, kTile = 2048, kPacks = 4;

// Adds row dy[i] to the sums of this lane: packs at columns col + p * 32 * W.
template <int W, class T>
__device__ __forceinline__ void load_row(Vec<T, W> (&x)[kPacks], const T* row, int64_t col, int64_t cols) {
#pragma unroll
  for (int p = 0; p < kPacks; ++p)
    if (col + p * kWarp * W < cols) x[p] = load_vec<W>(row + col + p * kWarp * W);
}
template <int W, class T>
__device__ __forceinline__ void add_row(Vec<float, W> (&sum)[kPacks], const Vec<T, W> (&x)[kPacks], int64_t col,
                                        int64_t cols) {
#pragma unroll
  for (int p = 0; p < kPacks; ++p)
    if (col + p * kWarp * W < cols) {
#pragma unroll
      for (int k = 0; k < W; ++k) sum[p].v[k] += to_f(x[p].v[k]);
    }
}

template <int W, class T>
__global__ void __launch_bounds__(kWarps* kWarp)
    embedding_bwd_kernel(float* dtable, int64_t table_stride, const T* dy, int64_t dy_stride, const int32_t* tokens,
                         int64_t n, int64_t vocab, int64_t cols, float beta) {
  __shared__ int32_t tile[kTile];
  const int lane = threadIdx.x % kWarp;
  const int64_t v = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  const int64_t col = (int64_t{blockIdx.y} * kPacks * kWarp + lane) * W;
  Vec<float, W> sum[kPacks] = {};
  bool any = false;
  for (int64_t base = 0; base < n; base += kTile) {
    __syncthreads();  // nobody still reads the previous tile
    for (int i = threadIdx.x; i < kTile; i += kWarps * kWarp) tile[i] = base + i < n ? tokens[base + i] : -1;
    __syncthreads();
    for (int i = 0; i < kTile; i += 4 * kWarp) {
      bool hit = false;
#pragma unroll
      for (int k = 0; k < 4; ++k) hit = hit || tile[i + k * kWarp + lane] == v;
      if (!__any_sync(0xffffffffu, hit)) continue;
      any = true;
#pragma unroll 1  // the rare path: one copy of it is enough
      for (int k = 0; k < 4; ++k) {
        // Ascending bits are ascending rows.
        unsigned mask = __ballot_sync(0xffffffffu, tile[i + k * kWarp + lane] == v);
        const T* rows = dy + (base + i + k * kWarp) * dy_stride;
        while (mask != 0) {  // two rows in flight
          const int first = __ffs(mask) - 1;
          mask &= mask - 1;
          const int second = mask != 0 ? __ffs(mask) - 1 : -1;
          mask &= mask - 1;  // 0 & anything = 0
          Vec<T, W> x[kPacks], z[kPacks];
          load_row<W>(x, rows + first * dy_stride, col, cols);
          if (second >= 0) load_row<W>(z, rows + second * dy_stride, col, cols);
          add_row<W>(sum, x, col, cols);
          if (second >= 0) add_row<W>(sum, z, col, cols);
        }
      }
    }
  }
  if (v >= vocab || (!any && beta == 1.f)) return;
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int64_t c = col + p * kWarp * W;
    if (c >= cols) return;
    float* out = dtable + v * table_stride + c;
    if (beta != 0) {
      const Vec<float, W> old = load_vec<W>(out);
#pragma unroll
      for (int k = 0; k < W; ++k) sum[p].v[k] = fmaf(beta, old.v[k], sum[p].v[k]);
    }
    store_vec<W>(out, sum[p]);
  }
}

template <int W, class T>
void launch_bwd(cudaStream_t stream, Tensor dtable, Tensor dy, Tensor tokens, float beta) {
  const dim3 grid(static_cast<unsigned>(ceil_div(dtable.rows, kWarps)),
                  static_cast<unsigned>(ceil_div(dtable.cols, kPacks * kWarp * W)));
  if (dtable.numel() == 0) return;
  embedding_bwd_kernel<W, T>
      <<<grid, kWarps * kWarp, 0, stream>>>(dtable.as<float>(), dtable.stride, static_cast<const T*>(dy.data),
                                            dy.stride, tokens.as<int32_t>(), dy.rows, dtable.rows, dtable.cols, beta);
  CUDA_LAUNCHED();
}

}  // namespace

void CudaBackend::embedding_fwd(Tensor y, Tensor table, Tensor tokens) { gather_rows(y, table, tokens, 0.0); }

void CudaBackend::embedding_bwd(Tensor dtable, Tensor dy, Tensor tokens, double beta) {
  dispatch_storage(dy.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int kWidth = 16 / sizeof(T);
    if (dtable.cols % kWidth == 0 && packs_fit(dtable, kWidth) && packs_fit(dy, kWidth))
      launch_bwd<kWidth, T>(stream(), dtable, dy, tokens, static_cast<float>(beta));
    else launch_bwd<1, T>(stream(), dtable, dy, tokens, static_cast<float>(beta));
  });
}

}  // namespace irq
