// What  : variant 1 of nfk_matmul: a warp per element of y, each weight dequantized where it is used.
// Math  : y[m][r] = sum_c x[m][c] (level[code] s_hat + tau_hat), sums in F32, rounded once.
// Shapes: x (m, cols) BF16, m <= 8, cols % 64 = 0; w (rows, cols) NF4 codes; y (m, rows) BF16.
// Cost  : the codes of 11008 x 4096 are 24 MB, 8.6 us at 2.8 TB/s. Here a weight costs about 50 instructions (its code, its
//         scale and its shift are found anew) and again for each row of x: 7e7 warp instructions at m = 1, 80 us, plus the
//         latency of six loads that wait for each other.
// Tricky: nothing. A warp reads 32 neighbouring codes, 16 bytes: half a sector.
// Change: none, this is the beginning.
// Predicted: m = 1: 250 us; m = 8: 2,000 us.
// Measured: m = 1: 160 us; m = 8: 1,098 us.
#include "bench/variants/nfk_matmul.cuh"

namespace irq {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarp;

__global__ void __launch_bounds__(kThreads) matmul(MatmulArgs a) {
  __shared__ float level[16];
  if (threadIdx.x < 16) level[threadIdx.x] = a.book.level[threadIdx.x];
  __syncthreads();
  const int lane = threadIdx.x % kWarp, m = blockIdx.y;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (row >= a.q.rows) return;
  float sum = 0;
#pragma unroll 1
  for (int64_t c = lane; c < a.q.cols; c += kWarp) {
    const int64_t at = row * a.q.cols + c, block = at / kBlock;
    const float w = dequantized<true>(level[code_at<4>(a.q.codes, at)], block_scale(a.q, block), block_tau(a.q, block));
    sum = fmaf(to_f(a.x[m * a.x_stride + c]), w, sum);
  }
  sum = warp_sum(sum);
  if (lane == 0) a.y[m * a.y_stride + row] = __float2bfloat16_rn(sum);
}

void run(Backend& backend, const std::vector<Tensor>& t) {
  const MatmulArgs a = matmul_args(t);
  matmul<<<dim3(static_cast<unsigned>(ceil_div(a.q.rows, kWarps)), static_cast<unsigned>(a.tokens)), kThreads, 0,
           stream_of(backend)>>>(a);
  CUDA_LAUNCHED();
}
[[maybe_unused]] const bool added = add_variant({"nfk_matmul", "v1_warp_per_output", run});

}  // namespace
}  // namespace irq
