// What    Attention forward of decoding: one query row for each sequence, its keys split over blocks.
// Math    As ops.inc: o = softmax(scale q K^T) V, lse. Each split has its own maximum, sum and unnormalized o; all F32.
// Shapes  q, o (N, H*D), k, v (K, G*D) BF16, rows aligned to 16 bytes, D = 64 or 128, up to 8 query heads a key/value head.
// Cost    Reads K and V once, whatever the group: LLaMA-7B, 512 keys: 8.4 MB a layer, 3 us at 2.8 TB/s, plus launch, two
//         passes over a split and the meeting: 13 us measured, 21 at 2048 keys.
// Tricky  The length lives on the device, so the grid has kSplits blocks for every row and key/value head, and how many
//         keys each takes follows from the length alone: the result of a row does not depend on its batch. Scores of a
//         split lie in shared memory between the two passes. The block that comes last to a row and head (a counter, set
//         back for the next launch) merges the splits in ascending order: which block that is changes no bit.
#include "kernels/attention_decode.cuh"
#include "kernels/dependent_launch.cuh"

namespace irq {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarp;
constexpr int kSplits = 16;
constexpr int kSplitKeys = 64;  // a split's keys are a multiple of this
constexpr int kTileKeys = 512;  // scores that exist at a time
constexpr int kMaxGroup = 8;
constexpr int kRecord = 2;  // floats of a split beside its o: maximum, sum

// Key row number i of the sequence: the prefix first, then its own.
__device__ __forceinline__ int key_row(const SeqRange& s, int i) {
  const int prefix = s.p_end - s.p_begin;
  return i < prefix ? s.p_begin + i : s.k_begin + i - prefix;
}

__device__ __forceinline__ void to_floats(float (&out)[8], const uint4& v) {
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = __uint_as_float(words[i] << 16);
    out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

// The partial result of one split and query head: {maximum, sum, o[D]}.
template <int D>
__device__ __forceinline__ float* record_of(float* partial, int row, int head, int heads, int split) {
  return partial + ((int64_t{row} * heads + head) * kSplits + split) * (D + kRecord);
}

template <int D, int kGroup>
struct Shared {
  float score[kGroup][kTileKeys];
  float o[kWarps][kGroup][D];
  float largest[kGroup], sum[kGroup];
  int sequence;
  bool last;
};

// A tile of keys [first, first + count) of a split: scores, then their share of o. Lane l of a warp holds 8 elements of a
// key's row, D/8 lanes a key.
template <int D, int kGroup>
__device__ __forceinline__ void add_tile(Shared<D, kGroup>& s, const AttentionArgs& a, const SeqRange& seq, int kv_head,
                                         int first, int count, const float (&q)[kGroup][8], float (&o)[kGroup][8],
                                         float (&largest)[kGroup], float (&sum)[kGroup]) {
  constexpr int kLanes = D / 8, kAtOnce = kWarp / kLanes, kStep = kWarps * kAtOnce, kUnroll = 4;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, part = lane % kLanes;
  const int mine = warp * kAtOnce + lane / kLanes;
  const auto load = [&](const void* base, int64_t stride, int key) {
    const __nv_bfloat16* row =
        static_cast<const __nv_bfloat16*>(base) + key_row(seq, first + min(key, count - 1)) * stride;
    return *reinterpret_cast<const uint4*>(row + kv_head * D + part * 8);
  };
  for (int begin = 0; begin < count; begin += kStep * kUnroll) {
    uint4 raw[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) raw[i] = load(a.k, a.k_stride, begin + i * kStep + mine);
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int key = begin + i * kStep + mine;
      float k[8];
      to_floats(k, raw[i]);
#pragma unroll
      for (int h = 0; h < kGroup; ++h) {
        float dot = 0;
#pragma unroll
        for (int d = 0; d < 8; ++d) dot = fmaf(q[h][d], k[d], dot);
#pragma unroll
        for (int offset = kLanes / 2; offset > 0; offset /= 2) dot += __shfl_xor_sync(0xffffffffu, dot, offset);
        if (part == 0 && key < count) s.score[h][key] = dot * a.scale;
      }
    }
  }
  __syncthreads();
#pragma unroll
  for (int h = 0; h < kGroup; ++h) {
    float best = -INFINITY;
    for (int key = threadIdx.x; key < count; key += kThreads) best = fmaxf(best, s.score[h][key]);
    best = fmaxf(largest[h], block_max<kThreads>(best));
    float added = 0;
    for (int key = threadIdx.x; key < count; key += kThreads) {
      const float weight = expf(s.score[h][key] - best);
      s.score[h][key] = weight;
      added += weight;
    }
    const float shrink = expf(largest[h] - best);  // 0 the first time
    sum[h] = sum[h] * shrink + block_sum<kThreads>(added);
    largest[h] = best;
#pragma unroll
    for (int d = 0; d < 8; ++d) o[h][d] *= shrink;
  }
  __syncthreads();
  for (int begin = 0; begin < count; begin += kStep * kUnroll) {
    uint4 raw[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) raw[i] = load(a.v, a.v_stride, begin + i * kStep + mine);
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int key = begin + i * kStep + mine;
      float v[8];
      to_floats(v, raw[i]);
#pragma unroll
      for (int h = 0; h < kGroup; ++h) {
        const float weight = key < count ? s.score[h][key] : 0.f;
#pragma unroll
        for (int d = 0; d < 8; ++d) o[h][d] = fmaf(weight, v[d], o[h][d]);
      }
    }
  }
  __syncthreads();  // the scores may be overwritten
}

// Adds the warps' shares of o and writes the split's record.
template <int D, int kGroup>
__device__ __forceinline__ void write_records(Shared<D, kGroup>& s, const AttentionArgs& a, float* partial, int row,
                                              int kv_head, int split, float (&o)[kGroup][8],
                                              const float (&largest)[kGroup], const float (&sum)[kGroup]) {
  constexpr int kLanes = D / 8;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int h = 0; h < kGroup; ++h)
#pragma unroll
    for (int d = 0; d < 8; ++d) {
#pragma unroll
      for (int offset = kLanes; offset < kWarp; offset *= 2) o[h][d] += __shfl_xor_sync(0xffffffffu, o[h][d], offset);
      if (lane < kLanes) s.o[warp][h][lane * 8 + d] = o[h][d];
    }
  __syncthreads();
#pragma unroll
  for (int h = 0; h < kGroup; ++h) {
    if (h >= a.group) break;
    float* record = record_of<D>(partial, row, kv_head * a.group + h, a.heads, split);
    for (int d = threadIdx.x; d < D; d += kThreads) {
      float total = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) total += s.o[w][h][d];
      __stcg(record + kRecord + d, total);
    }
    if (threadIdx.x == 0) __stcg(record, largest[h]), __stcg(record + 1, sum[h]);
  }
}

// o and lse of one row and the group's heads from the records of the first `splits` splits.
template <int D>
__device__ __forceinline__ void merge(const AttentionArgs& a, float* partial, int row, int kv_head, int splits) {
  for (int h = 0; h < a.group; ++h) {
    const int head = kv_head * a.group + h;
    const auto record = [&](int split) { return record_of<D>(partial, row, head, a.heads, split); };
    float largest = -INFINITY;
    for (int i = 0; i < splits; ++i) largest = fmaxf(largest, __ldcg(record(i)));
    float sum = 0, weight[kSplits];
#pragma unroll
    for (int i = 0; i < kSplits; ++i) {
      weight[i] = i < splits ? expf(__ldcg(record(i)) - largest) : 0.f;
      if (i < splits) sum += weight[i] * __ldcg(record(i) + 1);
    }
    for (int d = threadIdx.x; d < D; d += kThreads) {
      float total = 0;
#pragma unroll
      for (int i = 0; i < kSplits; ++i)
        if (i < splits) total = fmaf(weight[i], __ldcg(record(i) + kRecord + d), total);
      static_cast<__nv_bfloat16*>(a.o)[row * a.o_stride + head * D + d] =
          __float2bfloat16_rn(splits > 0 ? total / sum : 0.f);
    }
    if (threadIdx.x == 0) a.lse[head * a.lse_stride + row] = splits > 0 ? largest + logf(sum) : 0.f;
  }
}

template <int D, int kGroup>
__global__ void __launch_bounds__(kThreads) decode_kernel(AttentionArgs a, float* partial, int* meet) {
  __shared__ Shared<D, kGroup> s;
  const int split = blockIdx.x, kv_head = blockIdx.y, row = blockIdx.z;
  let_next_kernel_begin();
  wait_for_previous_kernel();
  if (threadIdx.x == 0) s.sequence = -1;
  __syncthreads();
  for (int i = threadIdx.x; i < a.n_seqs; i += kThreads)
    if (row >= a.seqs[i * a.seqs_stride] && row < a.seqs[i * a.seqs_stride + 1]) s.sequence = i;
  __syncthreads();
  const SeqRange seq = s.sequence >= 0 ? load_seq(a, s.sequence) : SeqRange{};
  // Row q_begin + i sees the prefix and own keys [0, i + 1 + lead).
  const int keys = s.sequence >= 0 ? seq.p_end - seq.p_begin + max(0, row - seq.q_begin + 1 + seq.lead()) : 0;
  const int per_split = max(kSplitKeys, (keys + kSplits * kSplitKeys - 1) / (kSplits * kSplitKeys) * kSplitKeys);
  const int splits = (keys + per_split - 1) / per_split;
  if (split >= max(splits, 1)) return;  // a row without keys still has its zeros to write
  const int first = split * per_split, count = min(per_split, keys - first);

  if (count > 0) {
    const int part = threadIdx.x % kWarp % (D / 8);
    float q[kGroup][8], o[kGroup][8] = {}, largest[kGroup], sum[kGroup] = {};
#pragma unroll
    for (int h = 0; h < kGroup; ++h) {
      const int head = kv_head * a.group + min(h, a.group - 1);
      to_floats(q[h], *reinterpret_cast<const uint4*>(static_cast<const __nv_bfloat16*>(a.q) + row * a.q_stride +
                                                      head * D + part * 8));
      largest[h] = -INFINITY;
    }
    for (int tile = 0; tile < count; tile += kTileKeys)
      add_tile(s, a, seq, kv_head, first + tile, min(kTileKeys, count - tile), q, o, largest, sum);
    write_records(s, a, partial, row, kv_head, split, o, largest, sum);
  }
  if (splits > 1) {
    int* arrived = meet + row * a.kv_heads + kv_head;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      s.last = atomicAdd(arrived, 1) == splits - 1;
      if (s.last) *arrived = 0;
    }
    __syncthreads();
    if (!s.last) return;
    __threadfence();
  } else {
    __syncthreads();
  }
  merge<D>(a, partial, row, kv_head, splits);
}

}  // namespace

int64_t attention_decode_scratch(const AttentionArgs& a) {
  return int64_t{a.queries} * a.heads * kSplits * (a.head_dim + kRecord) * static_cast<int64_t>(sizeof(float));
}

bool attention_decode_takes(const AttentionArgs& a) {
  return (a.head_dim == 64 || a.head_dim == 128) && a.group <= kMaxGroup && a.queries < (1 << 15) &&
         a.kv_heads < (1 << 15);
}

void attention_decode(const AttentionArgs& a, float* partial, int* meet, cudaStream_t stream) {
  const dim3 grid(kSplits, static_cast<unsigned>(a.kv_heads), static_cast<unsigned>(a.queries));
  const auto run = [&](auto dim, auto group) {
    launch_early(decode_kernel<dim.value, group.value>, grid, kThreads, 0, stream, a, partial, meet);
  };
  const auto run_dim = [&](auto dim) {
    if (a.group == 1) run(dim, std::integral_constant<int, 1>{});
    else if (a.group <= 4) run(dim, std::integral_constant<int, 4>{});
    else run(dim, std::integral_constant<int, kMaxGroup>{});
  };
  if (a.head_dim == 64) run_dim(std::integral_constant<int, 64>{});
  else run_dim(std::integral_constant<int, 128>{});
  CUDA_LAUNCHED();
}

}  // namespace irq
