// What  : variant 3 of nfk_matmul: scale and shift are applied to sums of a block, and four rows of w share x.
// Math  : sum_c x (level s + tau) = s sum_c x level + tau sum_c x: the second sum does not depend on the row of w.
// Shapes: as variant 2.
// Cost  : per weight a shift, a mask, a lookup and an FMA; conversions and the sum of x are shared by four rows: about 6
//         instructions per weight at m = 1, 9 us of issuing.
// Tricky: the weight itself is never made, so its two roundings are not either: the result is not that of dequantizing
//         first, only as close to the exact one. Four rows a warp also mean four independent chains of loads in flight.
// Change: 2 of 6 operations per weight become 2 per block and lane; x is read once for four rows.
// Predicted: m = 1: 60 -> 35 us; m = 8: 120 -> 90 us.
// Measured: m = 1: 30.8 us (1.08x); m = 8: 96.0 us (1.08x). Missed: neither FMAs nor x were what binds, but lookups and
//         latency.
#include "bench/variants/nfk_matmul.cuh"

namespace irq {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarp, kPerLane = 8, kRows = 4;

template <int kTokens>
__global__ void __launch_bounds__(kThreads) matmul(MatmulArgs a) {
  __shared__ MatmulTables tables;
  fill(tables, a);
  const int lane = threadIdx.x % kWarp;
  const uint32_t first = (blockIdx.x * kWarps + threadIdx.x / kWarp) * kRows, cols = static_cast<uint32_t>(a.q.cols);
  const uint32_t last = static_cast<uint32_t>(a.q.rows - 1);
  if (first > last) return;
  const float offset = a.q.scale_offset[0];
  float sum[kRows][kTokens] = {};
#pragma unroll 1
  for (uint32_t c = lane * kPerLane; c < cols; c += kWarp * kPerLane) {
    uint32_t codes[kRows];
    float scale[kRows], tau[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const uint32_t eight = (min(first + r, last) * cols + c) / kPerLane;  // rows past the end repeat the last
      codes[r] = __byte_perm(reinterpret_cast<const uint32_t*>(a.q.codes)[eight], 0, 0x0123);
      const BlockFactors f = block_factors(a.q, tables.map, offset, eight / (kBlock / kPerLane));
      scale[r] = f.scale, tau[r] = f.tau;
    }
#pragma unroll
    for (int m = 0; m < kTokens; ++m) {
      if (m >= a.tokens) break;
      const auto pack = *reinterpret_cast<const Pack<__nv_bfloat16>*>(a.x + m * a.x_stride + c);
      float x[kPerLane], total = 0;
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) x[i] = to_f(pack.v[i]), total += x[i];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        float product = 0;
#pragma unroll
        for (int i = 0; i < kPerLane; ++i) product = fmaf(x[i], tables.level[(codes[r] >> (28 - 4 * i)) & 15], product);
        sum[r][m] = fmaf(scale[r], product, fmaf(tau[r], total, sum[r][m]));
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int m = 0; m < kTokens; ++m) {
      if (m >= a.tokens) break;
      const float total = warp_sum(sum[r][m]);
      if (lane == 0 && first + r <= last) a.y[m * a.y_stride + first + r] = __float2bfloat16_rn(total);
    }
}

void run(Backend& backend, const std::vector<Tensor>& t) {
  const MatmulArgs a = matmul_args(t);
  dispatch_tokens(a.tokens, [&](auto tokens) {
    matmul<tokens.value>
        <<<static_cast<unsigned>(ceil_div(a.q.rows, kWarps * kRows)), kThreads, 0, stream_of(backend)>>>(a);
  });
  CUDA_LAUNCHED();
}
[[maybe_unused]] const bool added = add_variant({"nfk_matmul", "v3_scale_after_the_sum", run});

}  // namespace
}  // namespace irq
