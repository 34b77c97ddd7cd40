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
  const StreamCore& core;
  const StreamAttention& a;
  const int n, unit;  // linear in front; head and split
  const int thread = fresh_thread_index(), lane = thread % kWarp, warp = thread / kWarp, part = lane % kLanes;
  int query_at, column;  // first elements of this lane's: of the query among all heads, of a row of keys
  int first, count;      // keys of this split
  bool newest;           // the last of them is the token's own, which lies in row cache_row of the cache

  __device__ __forceinline__ StreamAttend(const StreamCore& c, const StreamAttention& args, int linear, int u)
      : core(c), a(args), n(linear), unit(u) {
    const int head = unit / a.splits, split = unit - head * a.splits;
    query_at = head * D + part * 8, column = head / a.group * D + part * 8;
    const int keys = core.slot(n).visible.keys, per_split = (keys + a.splits - 1) / a.splits;
    first = min(split * per_split, keys), count = min(per_split, keys - first);
    newest = count > 0 && first + count == keys && row_of(count - 1) == core.slot(n).cache_row;
  }
  __device__ __forceinline__ int key_of(int step, int i) const {  // among this split's
    return (step * kStreamKeys + i) * kPerStep + warp * kPerWarp + lane / kLanes;
  }
  __device__ __forceinline__ int row_of(int key) const {
    const StreamVisible& v = core.slot(n).visible;
    const int i = first + key;
    return i + (i < v.prefix ? v.p_begin : v.k_begin);
  }
  // Keys and values of a step. What lies behind the last key stays as it is, and gets no weight.
  __device__ __forceinline__ void load_all(StreamKeys& to, int step) const {
#pragma unroll
    for (int i = 0; i < kStreamKeys; ++i) {
      const int key = key_of(step, i);
      if (key >= count) continue;
      const int64_t at = static_cast<int64_t>(row_of(key)) * a.kv_stride + column;
      to.k[i] = __ldcg(reinterpret_cast<const uint4*>(a.keys + at));
      to.v[i] = __ldcg(reinterpret_cast<const uint4*>(a.values + at));
    }
  }

  // What linear n gives is waited for in words: the query, and key and value of the token itself. `ahead`: the first keys,
  // loaded before that. The block's result becomes words of record `unit`.
  __device__ __forceinline__ void run(StreamKeys& ahead, float* scratch) const {
    float o[8] = {}, largest = -INFINITY, sum = 0;
    if (count > 0) {
      const uint2* words = core.p.all.result[0];
      const uint4 query = core.wait_for_pack(words + query_at / 2, n);
#pragma unroll 1
      for (int step = 0; step * kStreamKeys * kPerStep < count; ++step) {
        if (step > 0) load_all(ahead, step);
        const int behind = count - 1 - key_of(step, 0);  // from this lane's first key to the last
        if (newest && behind >= 0 && behind < kStreamKeys * kPerStep && behind % kPerStep == 0) {
          const uint4 k = core.wait_for_pack(words + (a.first_key + column) / 2, n),
                      v = core.wait_for_pack(words + (a.first_value + column) / 2, n);
#pragma unroll
          for (int i = 0; i < kStreamKeys; ++i)
            if (behind == i * kPerStep) ahead.k[i] = k, ahead.v[i] = v;
        }
        add(ahead, step, query, o, largest, sum);
      }
    }
    write(o, largest, sum, scratch);
  }
  __device__ __forceinline__ void add(const StreamKeys& from, int step, const uint4& packed, float (&o)[8],
                                      float& largest, float& sum) const {
    float query[8], score[kStreamKeys], best = largest;
    unpack(query, packed);
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
  __device__ __forceinline__ void write(float (&o)[8], float largest, float sum, float* scratch) const {
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
    if (thread < D) {
      float top = -INFINITY, total = 0, all = 0;
#pragma unroll
      for (int w = 0; w < kStreamWarps; ++w) top = fmaxf(top, maxima[w]);
#pragma unroll
      for (int w = 0; w < kStreamWarps; ++w) {
        const float share = maxima[w] == -INFINITY ? 0.f : expf(maxima[w] - top);
        total = fmaf(share, scratch[w * D + thread], total), all = fmaf(share, sums[w], all);
      }
      core.send(core.p.all.record_o + unit * D + thread, __float_as_uint(total), n);
      if (thread < 2) core.send(core.p.all.record_sum + unit * 2 + thread, __float_as_uint(thread == 0 ? top : all), n);
    }
  }
};

// Where the token's own key is not among those that it sees, nobody has waited for all of the head's words in front of attention.
// That is done here: nobody may go on while a block's rows are unfinished, since words for it would be overwritten.
template <int D>
__device__ __forceinline__ void wait_for_unused(const StreamCore& core, const StreamAttention& a, int head, int n) {
  const StreamSlot& s = core.slot(n);
  const StreamVisible& v = s.visible;
  const int last = v.keys - 1;
  if (v.keys > 0 && last + (last < v.prefix ? v.p_begin : v.k_begin) == s.cache_row) return;
  const int part = core.lane % (D / 8) * 8, column = head / a.group * D + part;
  const uint2* const words = core.p.all.result[0];
  core.wait_for_pack(words + (head * D + part) / 2, n);
  core.wait_for_pack(words + (a.first_key + column) / 2, n);
  core.wait_for_pack(words + (a.first_value + column) / 2, n);
}

// Every splits-th pack of a head's result is put together by the block with that split, each by a warp: lane 4 j + k has
// column j of split k.
template <int D>
__device__ __forceinline__ void merge_splits(const StreamCore& core, const StreamAttention& a, int unit, int n) {
  static_assert(kStreamSplits == 4 && D / 8 <= kStreamWarps);
  const int head = unit / a.splits, split = unit - head * a.splits, lane = core.lane;
  wait_for_unused<D>(core, a, head, n);
  const int pack = split + core.warp * a.splits, k = lane % 4, column = pack * 8 + lane / 4;
  if (pack >= D / 8) return;
  const int record = head * a.splits + min(k, a.splits - 1);
  const uint2* from = core.p.all.record_o + record * D + column;
  uint4 sums = core.look(core.p.all.record_sum + record * 2);
  uint2 value = core.look_at_one(from);
  while (!core.is_there(sums, n) || value.y != sums.y)
    sums = core.look(core.p.all.record_sum + record * 2), value = core.look_at_one(from);
  const float top = __uint_as_float(sums.x), all = __uint_as_float(sums.z);
  float largest = top;
#pragma unroll
  for (int offset = 1; offset < 4; offset *= 2) largest = fmaxf(largest, __shfl_xor_sync(kFullWarp, largest, offset));
  const float weight = k < a.splits && all > 0 ? expf(top - largest) : 0.f;
  float sum = weight * all, total = weight > 0 ? weight * __uint_as_float(value.x) : 0.f;
#pragma unroll
  for (int offset = 1; offset < 4; offset *= 2) {
    sum += __shfl_xor_sync(kFullWarp, sum, offset);
    total += __shfl_xor_sync(kFullWarp, total, offset);
  }
  const float z = sum > 0 ? total / sum : 0.f, next = __shfl_down_sync(kFullWarp, z, 4);
  if (lane % 8 == 0) core.send(core.p.all.attended + (head * D + column) / 2, pack_bf16(z, next), n);
}

}  // namespace irq
