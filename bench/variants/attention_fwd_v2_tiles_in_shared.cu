// What  : variant 2 of attention_fwd: 8 keys at a time in shared memory, as floats.
// Math  : as variant 1; the maximum is renewed once per tile of 8 keys.
// Shapes: as variant 1.
// Cost  : the 256 FMAs per key and warp remain; the conversions are shared by 128 rows, loads are 64 of 16 bytes from
//         shared memory. That is as many cycles of shared memory (one broadcast each) as of FMAs: 2.4 ms.
// Tricky: a score is a dot product of the thread's own q with a row that all lanes read: a broadcast, no bank conflict. The
//         causal end of a tile is per thread: scores behind it are minus infinity, their probabilities 0.
// Change: K and V are read from L2 once per 128 rows instead of once per warp, and converted once; a branch per tile
//         instead of one per key.
// Predicted: 12 -> 5 ms.
// Measured: 7.02 ms (2.44x), 19.6 TFLOP/s.
#include "bench/variants/attention.cuh"

namespace irq {
namespace {

constexpr int kThreads = 128, kPacks = kDim / 8, kKeys = 8;
using Eight = Pack<__nv_bfloat16>;

// Rows [first, first + kKeys) of one head as floats, zeros from `end` on.
__device__ __forceinline__ void load_tile(float (*tile)[kDim], const __nv_bfloat16* x, int64_t stride, int first,
                                          int end) {
  for (int i = threadIdx.x; i < kKeys * kPacks; i += kThreads) {
    const int row = i / kPacks, c = i % kPacks;
    Eight eight{};
    if (first + row < end) eight = reinterpret_cast<const Eight*>(x + (first + row) * stride)[c];
#pragma unroll
    for (int e = 0; e < 8; ++e) tile[row][8 * c + e] = to_f(eight.v[e]);
  }
}

__global__ void __launch_bounds__(kThreads) attention(CausalArgs a) {
  __shared__ __align__(16) float k_tile[kKeys][kDim], v_tile[kKeys][kDim];
  const CausalTile<kThreads> tile(a);
  const int head = blockIdx.y, row = tile.first + threadIdx.x, own = min(row, tile.end - 1);
  Eight q[kPacks];
#pragma unroll
  for (int c = 0; c < kPacks; ++c) q[c] = reinterpret_cast<const Eight*>(a.q + own * a.q_stride + head * kDim)[c];
  float o[kDim] = {}, largest = -INFINITY, sum = 0;
#pragma unroll 1
  for (int key = tile.begin; key < tile.end; key += kKeys) {
    __syncthreads();  // everybody has left the last tile
    load_tile(k_tile, a.k + head * kDim, a.k_stride, key, tile.end);
    load_tile(v_tile, a.v + head * kDim, a.v_stride, key, tile.end);
    __syncthreads();
    if (key > own) continue;
    float s[kKeys], top = largest;
#pragma unroll
    for (int j = 0; j < kKeys; ++j) {
      float dot = 0;
#pragma unroll
      for (int c = 0; c < kPacks; ++c)
#pragma unroll
        for (int e = 0; e < 8; ++e) dot = fmaf(to_f(q[c].v[e]), k_tile[j][8 * c + e], dot);
      s[j] = key + j <= own ? dot * a.scale : -INFINITY;
      top = fmaxf(top, s[j]);
    }
    const float shrink = expf(largest - top);
    largest = top, sum *= shrink;
#pragma unroll
    for (int d = 0; d < kDim; ++d) o[d] *= shrink;
#pragma unroll
    for (int j = 0; j < kKeys; ++j) {
      const float p = expf(s[j] - largest);
      sum += p;
#pragma unroll
      for (int d = 0; d < kDim; ++d) o[d] = fmaf(p, v_tile[j][d], o[d]);
    }
  }
  if (row >= tile.end) return;
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
  attention<<<dim3(CausalTile<kThreads>::count(a), static_cast<unsigned>(a.heads)), kThreads, 0, stream_of(backend)>>>(
      a);
  CUDA_LAUNCHED();
}
[[maybe_unused]] const bool added = add_variant({"attention_fwd", "v2_tiles_in_shared", run});

}  // namespace
}  // namespace irq
