// What    Attention forward and backward without tensor cores: F32 (proof), head_dims and strides that the other
//         kernels do not take.
// Math    As ops.inc: o = softmax(scale Q K^T) V; delta = rowsum(dO . o); dS = P (dO V^T - delta); dq = scale dS K;
//         dk = scale dS^T Q; dv = P^T dO. All in F32.
// Shapes  q, o, dq, dout (N, H*D); k, v, dk, dv (K, G*D), F32 or BF16, any stride; D <= 256.
// Cost    Forward 4 D FLOPs and 4 D bytes from L2 per pair. A single query row reads each K, V row once for each query head: a 7B layer
//         (32 heads of 128) against 1024 keys is 17 MB, about 6 us at 2.8 TB/s.
// Tricky  One block per row and head; its warps take turns over the keys (backward of k and v: over the queries), four at a
//         time so that their loads overlap, and are added up in warp order at the end: the same bits every time.
#include "kernels/attention.cuh"

namespace irq {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kPerLane = kMaxSimpleDim / kWarp;  // lane l holds elements l, l + 32, ... of a head's row
constexpr int kAtOnce = 4;

template <class T>
__device__ __forceinline__ void load_row(float (&x)[kPerLane], const void* base, int64_t stride, int row, int head,
                                         int dim) {
  const T* p = static_cast<const T*>(base) + row * stride + head * dim;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int d = threadIdx.x % kWarp + i * kWarp;
    x[i] = d < dim ? to_f(p[d]) : 0.f;
  }
}
__device__ __forceinline__ float dot(const float (&x)[kPerLane], const float (&y)[kPerLane]) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) sum += x[i] * y[i];
  return warp_sum(sum);
}

// The sequence of query row `row`, found by the whole block; found = false if there is none.
__device__ inline SeqRange find_sequence(const AttentionArgs& a, int row, bool& found) {
  __shared__ int index;
  if (threadIdx.x == 0) index = -1;
  __syncthreads();
  for (int i = threadIdx.x; i < a.n_seqs; i += kThreads)
    if (row >= a.seqs[i * a.seqs_stride] && row < a.seqs[i * a.seqs_stride + 1]) index = i;
  __syncthreads();
  found = index >= 0;
  return found ? load_seq(a, index) : SeqRange{};
}

// Adds up a value of each warp, element by element, and stores it as a row of T times scale.
template <class T>
__device__ inline void combine_and_store(const float (&x)[kPerLane], T* row, int dim, float scale) {
  __shared__ float partial[kWarps][kMaxSimpleDim];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) partial[warp][lane + i * kWarp] = x[i];
  __syncthreads();
  for (int d = threadIdx.x; d < dim; d += kThreads) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += partial[w][d];
    row[d] = from_f<T>(sum * scale);
  }
}

// This warp's share of the keys that query i sees: f(first key row, count) with count <= kAtOnce.
template <class F>
__device__ __forceinline__ void for_my_keys(const SeqRange& s, int i, F&& f) {
  const int prefix = s.p_end - s.p_begin, own = max(0, i + 1 + s.lead()), warp = threadIdx.x / kWarp;
  for (int j = warp * kAtOnce; j < prefix; j += kWarps * kAtOnce) f(s.p_begin + j, min(kAtOnce, prefix - j));
  for (int j = warp * kAtOnce; j < own; j += kWarps * kAtOnce) f(s.k_begin + j, min(kAtOnce, own - j));
}

template <class T>
__global__ void __launch_bounds__(kThreads) simple_fwd_kernel(AttentionArgs a) {
  const int row = blockIdx.x, head = blockIdx.y, kv_head = head / a.group, dim = a.head_dim;
  T* out = static_cast<T*>(a.o) + row * a.o_stride + head * dim;
  bool found;
  const SeqRange seq = find_sequence(a, row, found);
  float q[kPerLane], o[kPerLane] = {}, largest = -INFINITY, sum = 0;
  if (found) {
    load_row<T>(q, a.q, a.q_stride, row, head, dim);
    for_my_keys(seq, row - seq.q_begin, [&](int key, int count) {
      float k[kAtOnce][kPerLane], v[kAtOnce][kPerLane], s[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        load_row<T>(k[j], a.k, a.k_stride, key + min(j, count - 1), kv_head, dim);
        load_row<T>(v[j], a.v, a.v_stride, key + min(j, count - 1), kv_head, dim);
      }
      float new_largest = largest;
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        s[j] = j < count ? dot(q, k[j]) * a.scale : -INFINITY;
        new_largest = fmaxf(new_largest, s[j]);
      }
      const float shrink = expf(largest - new_largest);
      largest = new_largest;
      sum *= shrink;
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) o[i] *= shrink;
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const float p = expf(s[j] - largest);
        sum += p;
#pragma unroll
        for (int i = 0; i < kPerLane; ++i) o[i] += p * v[j][i];
      }
    });
  }
  __shared__ float warp_largest[kWarps], warp_total[kWarps];
  const int warp = threadIdx.x / kWarp;
  if (threadIdx.x % kWarp == 0) warp_largest[warp] = largest, warp_total[warp] = sum;
  __syncthreads();
  float all_largest = -INFINITY, total = 0;
  for (int w = 0; w < kWarps; ++w) all_largest = fmaxf(all_largest, warp_largest[w]);
  for (int w = 0; w < kWarps; ++w)
    if (warp_total[w] != 0) total += warp_total[w] * expf(warp_largest[w] - all_largest);
  const float mine = sum != 0 ? expf(largest - all_largest) : 0.f;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) o[i] *= mine;
  combine_and_store(o, out, dim, total == 0 ? 0.f : 1 / total);
  if (threadIdx.x == 0) a.lse[head * a.lse_stride + row] = total == 0 ? 0.f : all_largest + logf(total);
}

// dq, and delta on the way.
template <class T>
__global__ void __launch_bounds__(kThreads) simple_dq_kernel(AttentionArgs a) {
  const int row = blockIdx.x, head = blockIdx.y, kv_head = head / a.group, dim = a.head_dim;
  bool found;
  const SeqRange seq = find_sequence(a, row, found);
  float q[kPerLane], o[kPerLane], dout[kPerLane], dq[kPerLane] = {}, delta = 0;
  if (found) {
    load_row<T>(q, a.q, a.q_stride, row, head, dim);
    load_row<T>(o, a.o, a.o_stride, row, head, dim);
    load_row<T>(dout, a.dout, a.dout_stride, row, head, dim);
    delta = dot(dout, o);
    const float lse = a.lse[head * a.lse_stride + row];
    for_my_keys(seq, row - seq.q_begin, [&](int key, int count) {
      for (int j = 0; j < count; ++j) {
        float k[kPerLane], v[kPerLane];
        load_row<T>(k, a.k, a.k_stride, key + j, kv_head, dim);
        load_row<T>(v, a.v, a.v_stride, key + j, kv_head, dim);
        const float ds = expf(dot(q, k) * a.scale - lse) * (dot(dout, v) - delta);
#pragma unroll
        for (int i = 0; i < kPerLane; ++i) dq[i] += ds * k[i];
      }
    });
  }
  if (threadIdx.x == 0) a.delta[head * a.delta_stride + row] = delta;
  combine_and_store(dq, static_cast<T*>(a.dq) + row * a.dq_stride + head * dim, dim, a.scale);
}

// dk and dv of one key row: the sum over all sequences that see it, the group's heads and their queries.
template <class T>
__global__ void __launch_bounds__(kThreads) simple_dkv_kernel(AttentionArgs a) {
  const int key = blockIdx.x, kv_head = blockIdx.y, dim = a.head_dim, warp = threadIdx.x / kWarp;
  float k[kPerLane], v[kPerLane], dk[kPerLane] = {}, dv[kPerLane] = {};
  load_row<T>(k, a.k, a.k_stride, key, kv_head, dim);
  load_row<T>(v, a.v, a.v_stride, key, kv_head, dim);
  const auto add_queries = [&](const SeqRange& s, int first) {
    for (int head = kv_head * a.group; head < (kv_head + 1) * a.group; ++head)
      for (int row = s.q_begin + first + warp; row < s.q_end; row += kWarps) {
        float q[kPerLane], dout[kPerLane];
        load_row<T>(q, a.q, a.q_stride, row, head, dim);
        load_row<T>(dout, a.dout, a.dout_stride, row, head, dim);
        const float p = expf(dot(q, k) * a.scale - a.lse[head * a.lse_stride + row]);
        const float ds = p * (dot(dout, v) - a.delta[head * a.delta_stride + row]);
#pragma unroll
        for (int i = 0; i < kPerLane; ++i) dv[i] += p * dout[i], dk[i] += ds * q[i];
      }
  };
  for (int i = 0; i < a.n_seqs; ++i) {
    const SeqRange s = load_seq(a, i);
    if (key >= s.p_begin && key < s.p_end) add_queries(s, 0);
    if (key >= s.k_begin && key < s.k_end) add_queries(s, max(0, key - s.k_begin - s.lead()));
  }
  combine_and_store(dk, static_cast<T*>(a.dk) + key * a.dk_stride + kv_head * dim, dim, a.scale);
  combine_and_store(dv, static_cast<T*>(a.dv) + key * a.dv_stride + kv_head * dim, dim, 1.f);
}

dim3 rows_by_heads(int rows, int heads) { return {static_cast<unsigned>(rows), static_cast<unsigned>(heads), 1}; }

}  // namespace

void attention_fwd_simple(const AttentionArgs& a, DType storage, cudaStream_t stream) {
  dispatch_storage(storage, [&](auto zero) {
    simple_fwd_kernel<decltype(zero)><<<rows_by_heads(a.queries, a.heads), kThreads, 0, stream>>>(a);
    CUDA_LAUNCHED();
  });
}

void attention_bwd_simple(const AttentionArgs& a, DType storage, cudaStream_t stream) {
  dispatch_storage(storage, [&](auto zero) {
    using T = decltype(zero);
    if (a.queries > 0) {
      simple_dq_kernel<T><<<rows_by_heads(a.queries, a.heads), kThreads, 0, stream>>>(a);
      CUDA_LAUNCHED();
    }
    if (a.keys > 0) {
      simple_dkv_kernel<T><<<rows_by_heads(a.keys, a.kv_heads), kThreads, 0, stream>>>(a);
      CUDA_LAUNCHED();
    }
  });
}

}  // namespace irq
