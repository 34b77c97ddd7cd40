// What  : variant 1 of attention_fwd: one thread per query row and head, one key at a time.
// Math  : S = scale * q K^T, o = softmax(S) V, lse = max + ln(sum), causal; the softmax is online: when a larger score
//         comes, what was summed is rescaled, so no row of S is ever stored.
// Shapes: q, k, v, o (N, H*128) BF16 in sequences of one length; lse (H, N) F32.
// Cost  : 4 * 128 FLOPs per (query, key): 8192 rows in sequences of 2048, 32 heads, are 137 GFLOP, 0.18 ms of tensor cores,
//         2.1 ms of FMAs. Per key a warp issues 256 FMAs and 256 conversions of bf16, and 32 loads: 5e9 warp instructions,
//         5.6 ms.
// Tricky: all lanes of a warp read the same key, so a load is one request. q (packed, 64 registers) and o (128) fill the
//         registers: two blocks per multiprocessor, too few to hide the latency of L1.
// Change: none, this is the beginning.
// Predicted: 12 ms, 11 TFLOP/s.
// Measured: 17.1 ms, 8.0 TFLOP/s.
#include "bench/variants/attention.cuh"

namespace irq {
namespace {

constexpr int kThreads = 128, kPacks = kDim / 8;
using Eight = Pack<__nv_bfloat16>;

__global__ void __launch_bounds__(kThreads) attention(CausalArgs a) {
  const int row = blockIdx.x * kThreads + threadIdx.x, head = blockIdx.y;
  if (row >= a.rows) return;
  const auto* k = reinterpret_cast<const Eight*>(a.k + row / a.length * a.length * a.k_stride + head * kDim);
  const auto* v = reinterpret_cast<const Eight*>(a.v + row / a.length * a.length * a.v_stride + head * kDim);
  Eight q[kPacks];
#pragma unroll
  for (int c = 0; c < kPacks; ++c) q[c] = reinterpret_cast<const Eight*>(a.q + row * a.q_stride + head * kDim)[c];
  float o[kDim] = {}, largest = -INFINITY, sum = 0;
#pragma unroll 1
  for (int key = 0; key <= row % a.length; ++key) {
    float s = 0;
#pragma unroll
    for (int c = 0; c < kPacks; ++c) {
      const Eight x = k[c];
#pragma unroll
      for (int e = 0; e < 8; ++e) s = fmaf(to_f(q[c].v[e]), to_f(x.v[e]), s);
    }
    s *= a.scale;
    if (s > largest) {
      const float shrink = expf(largest - s);
      largest = s, sum *= shrink;
#pragma unroll
      for (int d = 0; d < kDim; ++d) o[d] *= shrink;
    }
    const float p = expf(s - largest);
    sum += p;
#pragma unroll
    for (int c = 0; c < kPacks; ++c) {
      const Eight x = v[c];
#pragma unroll
      for (int e = 0; e < 8; ++e) o[8 * c + e] = fmaf(p, to_f(x.v[e]), o[8 * c + e]);
    }
    k += a.k_stride / 8, v += a.v_stride / 8;
  }
  a.lse[head * a.lse_stride + row] = largest + logf(sum);
#pragma unroll
  for (int c = 0; c < kPacks; ++c) {
    Eight out;
#pragma unroll
    for (int e = 0; e < 8; ++e) out.v[e] = from_f<__nv_bfloat16>(o[8 * c + e] / sum);
    reinterpret_cast<Eight*>(a.o + row * a.o_stride + head * kDim)[c] = out;
  }
}

void run(Backend& backend, const std::vector<Tensor>& t) {
  const CausalArgs a = causal_args(t);
  attention<<<dim3(static_cast<unsigned>(ceil_div(a.rows, kThreads)), static_cast<unsigned>(a.heads)), kThreads, 0,
              stream_of(backend)>>>(a);
  CUDA_LAUNCHED();
}
[[maybe_unused]] const bool added = add_variant({"attention_fwd", "v1_row_per_thread", run});

}  // namespace
}  // namespace irq
