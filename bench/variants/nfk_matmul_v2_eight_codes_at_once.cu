// What  : variant 2 of nfk_matmul: a lane takes eight neighbouring weights, and all rows of x.
// Math  : as variant 1, the sum in another order.
// Shapes: as variant 1, x aligned to 16 bytes.
// Cost  : for eight weights one 4-byte load, one scale, one shift; then 5 instructions per weight and one FMA per row of x:
//         about 9 per weight at m = 1, 14 us of issuing.
// Tricky: eight weights never leave their block. x is read again by every warp, 16 bytes a lane, from L1 or L2.
// Change: 8 weights per step instead of one; each weight is dequantized once for all rows of x.
// Predicted: m = 1: 250 -> 60 us (loads that wait for each other: code, map, group; one row per warp has 16 steps of them);
//         m = 8: 2,000 -> 120 us.
// Measured: m = 1: 33.2 us (4.83x); m = 8: 103 us (10.6x).
#include "bench/variants/nfk_matmul.cuh"

namespace irq {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarp, kPerLane = 8;

template <int kTokens>
__global__ void __launch_bounds__(kThreads) matmul(MatmulArgs a) {
  __shared__ MatmulTables tables;
  fill(tables, a);
  const int lane = threadIdx.x % kWarp;
  const uint32_t row = blockIdx.x * kWarps + threadIdx.x / kWarp, cols = static_cast<uint32_t>(a.q.cols);
  if (row >= a.q.rows) return;
  const float offset = a.q.scale_offset[0];
  float sum[kTokens] = {};
#pragma unroll 1
  for (uint32_t c = lane * kPerLane; c < cols; c += kWarp * kPerLane) {
    const uint32_t eight = (row * cols + c) / kPerLane;
    const uint32_t codes = __byte_perm(reinterpret_cast<const uint32_t*>(a.q.codes)[eight], 0, 0x0123);
    const BlockFactors f = block_factors(a.q, tables.map, offset, eight / (kBlock / kPerLane));
    float w[kPerLane];
#pragma unroll
    for (int i = 0; i < kPerLane; ++i)
      w[i] = dequantized<true>(tables.level[(codes >> (28 - 4 * i)) & 15], f.scale, f.tau);
#pragma unroll
    for (int m = 0; m < kTokens; ++m) {
      if (m >= a.tokens) break;
      const auto x = *reinterpret_cast<const Pack<__nv_bfloat16>*>(a.x + m * a.x_stride + c);
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) sum[m] = fmaf(to_f(x.v[i]), w[i], sum[m]);
    }
  }
#pragma unroll
  for (int m = 0; m < kTokens; ++m) {
    if (m >= a.tokens) break;
    const float total = warp_sum(sum[m]);
    if (lane == 0) a.y[m * a.y_stride + row] = __float2bfloat16_rn(total);
  }
}

void run(Backend& backend, const std::vector<Tensor>& t) {
  const MatmulArgs a = matmul_args(t);
  dispatch_tokens(a.tokens, [&](auto tokens) {
    matmul<tokens.value><<<static_cast<unsigned>(ceil_div(a.q.rows, kWarps)), kThreads, 0, stream_of(backend)>>>(a);
  });
  CUDA_LAUNCHED();
}
[[maybe_unused]] const bool added = add_variant({"nfk_matmul", "v2_eight_codes_at_once", run});

}  // namespace
}  // namespace irq
