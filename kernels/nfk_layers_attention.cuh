// Attention of one query row inside the kernel of nfk_layers.cu: a block has a share of one head's keys.
#pragma once
#include "kernels/nfk_layers_core.cuh"

namespace irq {

constexpr int kStreamKeys = 4;  // loads of keys, and of values, that a lane has on the way

// Keys and values of a warp's first keys, asked for before the query is there.
struct StreamKeys {
  uint4 k[kStreamKeys], v[kStreamKeys];
};

// D/8 lanes have 8 elements each of a key's row. Each such part of a warp keeps a running softmax of its own; they are put
// together at the end, in a fixed order.
template <int D>
struct StreamAttend {
  static constexpr int kLanes = D / 8, kPerWarp = kWarp / kLanes, kPerStep = kStreamWarps * kPerWarp;
  const StreamAttention& a;
  float* scratch;  // in shared memory: [warp][D], then maxima and sums
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, part = lane % kLanes;
  int head, split, keys, first, count;
  int prefix, p_begin, k_begin;

  __device__ __forceinline__ StreamAttend(const StreamAttention& args, float* shared, int unit)
      : a(args), scratch(shared) {
    head = unit / a.splits, split = unit - head * a.splits;
    const int q_begin = __ldg(a.seq), q_end = __ldg(a.seq + 1), k_end = __ldg(a.seq + 3), p_end = __ldg(a.seq + 5);
    k_begin = __ldg(a.seq + 2), p_begin = __ldg(a.seq + 4);
    prefix = p_end - p_begin;
    // The one row is 0: it sees the prefix, and of its own keys [0, 1 + lead) with lead = keys - queries.
    const bool there = q_begin <= 0 && q_end > 0;
    keys = there ? prefix + max(0, 0 - q_begin + 1 + (k_end - k_begin) - (q_end - q_begin)) : 0;
    const int per_split = (keys + a.splits - 1) / a.splits;
    first = min(split * per_split, keys), count = min(per_split, keys - first);
  }
  __device__ __forceinline__ int key_of(int step, int i) const {  // among this split's
    return (step * kStreamKeys + i) * kPerStep + warp * kPerWarp + lane / kLanes;
  }
  __device__ __forceinline__ int64_t row_of(int key) const {
    const int i = first + min(key, count - 1);
    return i < prefix ? p_begin + i : k_begin + i - prefix;
  }
  __device__ __forceinline__ void load(StreamKeys& to, int step, int i) const {
    const int64_t at = row_of(key_of(step, i)) * a.kv_stride + head / a.group * D + part * 8;
    to.k[i] = __ldcg(reinterpret_cast<const uint4*>(a.keys + at));
    to.v[i] = __ldcg(reinterpret_cast<const uint4*>(a.values + at));
  }
  __device__ __forceinline__ void load_all(StreamKeys& to, int step) const {
    if (count <= 0) return;
#pragma unroll
    for (int i = 0; i < kStreamKeys; ++i) load(to, step, i);
  }

  // `ahead`: the first keys, loaded before the last one was written: whoever has that loads it again. The block's result
  // becomes record `head * splits + split`.
  __device__ __forceinline__ void run(StreamKeys& ahead, float* record_o, float2* record_sum) const {
    float o[8] = {}, largest = -INFINITY, sum = 0;
    if (count > 0) {
#pragma unroll
      for (int i = 0; i < kStreamKeys; ++i)
        if (first + min(key_of(0, i), count - 1) == keys - 1) load(ahead, 0, i);
      float query[8];
      unpack(query, __ldcg(reinterpret_cast<const uint4*>(a.q + head * D + part * 8)));
      for (int step = 0; step * kStreamKeys * kPerStep < count; ++step) {
        if (step > 0) load_all(ahead, step);
        add(ahead, step, query, o, largest, sum);
      }
    }
    write(o, largest, sum, record_o + (head * a.splits + split) * D, record_sum + head * a.splits + split);
  }
  __device__ __forceinline__ void add(const StreamKeys& from, int step, const float (&query)[8], float (&o)[8],
                                      float& largest, float& sum) const {
    float score[kStreamKeys], best = largest;
#pragma unroll
    for (int i = 0; i < kStreamKeys; ++i) {
      float k[8], dot = 0;
      unpack(k, from.k[i]);
#pragma unroll
      for (int d = 0; d < 8; ++d) dot = fmaf(query[d], k[d], dot);
#pragma unroll
      for (int offset = kLanes / 2; offset > 0; offset /= 2) dot += __shfl_xor_sync(kFullWarp, dot, offset);
      score[i] = key_of(step, i) < count ? dot * a.scale : -INFINITY;
      best = fmaxf(best, score[i]);
    }
    if (best == -INFINITY) return;              // no key yet; the lanes of a key agree
    const float shrink = expf(largest - best);  // 0 the first time
    largest = best, sum *= shrink;
#pragma unroll
    for (int d = 0; d < 8; ++d) o[d] *= shrink;
#pragma unroll
    for (int i = 0; i < kStreamKeys; ++i) {
      const float weight = expf(score[i] - best);
      float v[8];
      unpack(v, from.v[i]);
      sum += weight;
#pragma unroll
      for (int d = 0; d < 8; ++d) o[d] = fmaf(weight, v[d], o[d]);
    }
  }
  __device__ __forceinline__ void write(float (&o)[8], float largest, float sum, float* record_o,
                                        float2* record_sum) const {
    float best = largest;
#pragma unroll
    for (int offset = kLanes; offset < kWarp; offset *= 2) best = fmaxf(best, __shfl_xor_sync(kFullWarp, best, offset));
    const float weight = largest == -INFINITY ? 0.f : expf(largest - best);
    sum *= weight;
#pragma unroll
    for (int offset = kLanes; offset < kWarp; offset *= 2) sum += __shfl_xor_sync(kFullWarp, sum, offset);
    float *maxima = scratch + kStreamWarps * D, *sums = maxima + kStreamWarps;
#pragma unroll
    for (int d = 0; d < 8; ++d) {
      o[d] *= weight;
#pragma unroll
      for (int offset = kLanes; offset < kWarp; offset *= 2) o[d] += __shfl_xor_sync(kFullWarp, o[d], offset);
      if (lane < kLanes) scratch[warp * D + lane * 8 + d] = o[d];
    }
    if (lane == 0) maxima[warp] = best, sums[warp] = sum;
    __syncthreads();
    if (threadIdx.x < D) {
      float top = -INFINITY, total = 0, all = 0;
#pragma unroll
      for (int w = 0; w < kStreamWarps; ++w) top = fmaxf(top, maxima[w]);
#pragma unroll
      for (int w = 0; w < kStreamWarps; ++w) {
        const float share = maxima[w] == -INFINITY ? 0.f : expf(maxima[w] - top);
        total = fmaf(share, scratch[w * D + threadIdx.x], total), all = fmaf(share, sums[w], all);
      }
      __stcg(record_o + threadIdx.x, total);
      if (threadIdx.x == 0) __stcg(record_sum, make_float2(top, all));
    }
    __syncthreads();  // the scratch may be overwritten
  }
};

}  // namespace irq
