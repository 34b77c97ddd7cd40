// What    Causal softmax attention of packed sequences, forward (online softmax, never a T x T matrix), on bf16 tensor cores.
// Math    S = scale * Q K^T;  P = exp(S - max);  o = P V / rowsum(P);  lse = max + ln(rowsum(P)).
// Shapes  q, o (N, H*D) bf16; k, v (K, G*D) bf16; lse (H, N) f32; seqs (n_seqs, 6) i32. D = 32, 48, 64, 128 here, others and
//         F32 in attention_simple.cu.
// Cost    FLOPs 4 D per (query, key) pair and head, 2 s^2 D H per causal sequence of s. Bytes 4 (N H D + K G D) at the least.
//         D = 128, H = 32, N = 8192: sequences of 512 are 34 GFLOP and 268 MB, about 96 us (bandwidth) on an H100 at
//         2.8 TB/s (measured: 181); 2048 x 4 are 137 GFLOP, measured 507 us, 271 TFLOP/s. attention_fwd_sm90.cu: 117 and 276.
// Tricky  A block is one tile of query rows of one head, 4 warps, each owning 16 or 32 rows from start to end: its scores, its
//         running max and sum and its part of o never leave its registers, so the only barrier is for the K/V tiles, which
//         are loaded one step ahead. Which tile a block has is found on the device (find_query_tile), because sequence
//         lengths live there. Rows that see no key yet have max = -inf, which must not meet another -inf in a subtraction.
#include "kernels/attention_decode.cuh"
#include "kernels/kernel_choice.h"

namespace irq {
namespace {

constexpr int kThreads = 128;
constexpr int kKeys = KeyTiles::kKeys;

template <int D, int kTiles>
struct FwdConfig {
  static constexpr int kRows = 64 * kTiles;                                  // query rows of a block
  static constexpr int kSharedBytes = (kRows + 4 * kKeys) * kPitchBytes<D>;  // Q, two stages of K and V
};

// Scores -> probabilities (in place), and the running max and sum of the thread's rows; o is rescaled to the new max.
// c = scale * log2(e): exponentials are taken to base 2.
template <int D, int kTiles>
__device__ __forceinline__ void online_softmax(float (&s)[kTiles][kKeys / 8][4], float (&o)[kTiles][D / 8][4],
                                               float (&row_max)[kTiles][2], float (&row_sum)[kTiles][2], float c) {
#pragma unroll
  for (int m = 0; m < kTiles; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest = row_max[m][half];
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) largest = fmaxf(largest, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));  // the four lanes of a row
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
      const float shift = largest == -INFINITY ? 0.f : largest * c;
      const float shrink = exp2_hardware(row_max[m][half] * c - shift);
      row_max[m][half] = largest;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; ++e) {
          s[m][n][e] = exp2_hardware(s[m][n][e] * c - shift);
          sum += s[m][n][e];
        }
      row_sum[m][half] = row_sum[m][half] * shrink + sum;  // of this lane's columns; the four lanes meet at the end
#pragma unroll
      for (int n = 0; n < D / 8; ++n) o[m][n][2 * half] *= shrink, o[m][n][2 * half + 1] *= shrink;
    }
}

template <int kTiles>
__device__ __forceinline__ void mask_scores(float (&s)[kTiles][kKeys / 8][4], const KeyTiles& keys, int t,
                                            int first_row) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int m = 0; m < kTiles; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int limit = keys.limit(t, first_row + m * 16 + half * 8 + lane / 4) - lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
        if (n * 8 >= limit) s[m][n][2 * half] = -INFINITY;
        if (n * 8 + 1 >= limit) s[m][n][2 * half + 1] = -INFINITY;
      }
    }
}

template <int D>
__device__ inline void zero_dead_rows(const AttentionArgs& a, int head, int part, int parts) {
  for_dead_rows<kThreads>(a, part, parts, [&](int row) {
    const int lane = threadIdx.x % kWarp;
    __nv_bfloat16* o = static_cast<__nv_bfloat16*>(a.o) + row * a.o_stride + head * D;
    if (lane < D / 8) *reinterpret_cast<uint4*>(o + lane * 8) = uint4{0, 0, 0, 0};
    if (lane == 0) a.lse[head * a.lse_stride + row] = 0;
  });
}

template <int D, int kTiles>
__global__ void __launch_bounds__(kThreads, D == 64 && kTiles == 1 ? 3 : 2) attention_fwd_kernel(AttentionArgs a) {
  using Config = FwdConfig<D, kTiles>;
  extern __shared__ __align__(16) unsigned char shared_memory[];
  const int head = blockIdx.y, kv_head = head / a.group;
  const QueryTile& tile = find_query_tile<kThreads>(a, Config::kRows, blockIdx.x);
  if (!tile.found) return zero_dead_rows<D>(a, head, blockIdx.x - tile.total, gridDim.x - tile.total);

  const SeqRange& seq = tile.seq;
  const KeyTiles keys(seq, min(tile.first + Config::kRows, seq.queries()));
  const auto* q = static_cast<const __nv_bfloat16*>(a.q) + head * D;
  const auto* k = static_cast<const __nv_bfloat16*>(a.k) + kv_head * D;
  const auto* v = static_cast<const __nv_bfloat16*>(a.v) + kv_head * D;
  constexpr int kTileBytes = kKeys * kPitchBytes<D>;
  const uint32_t q_tile = smem_address(shared_memory), kv_tiles = q_tile + Config::kRows * kPitchBytes<D>;
  const auto load_kv = [&](int t) {
    const uint32_t stage = kv_tiles + t % 2 * 2 * kTileBytes;
    load_tile<D, kKeys, kThreads>(stage, k, a.k_stride, keys.first(t), keys.end(t));
    load_tile<D, kKeys, kThreads>(stage + kTileBytes, v, a.v_stride, keys.first(t), keys.end(t));
    cp_async_commit();
  };
  load_tile<D, Config::kRows, kThreads>(q_tile, q, a.q_stride, seq.q_begin + tile.first, seq.q_end);
  cp_async_commit();
  if (keys.count > 0) load_kv(0);

  const int lane = threadIdx.x % kWarp, warp_row = threadIdx.x / kWarp * 16 * kTiles;
  // This warp's first query, counted from q_begin.
  const auto fresh_first_row = [&] { return tile.first + fresh_thread_index() / kWarp * 16 * kTiles; };
  const float c = a.scale * kLog2E;
  float o[kTiles][D / 8][4] = {}, row_max[kTiles][2], row_sum[kTiles][2] = {};
#pragma unroll
  for (int m = 0; m < kTiles; ++m) row_max[m][0] = row_max[m][1] = -INFINITY;

  for (int t = 0; t < keys.count; ++t) {
    cp_async_wait<0>();
    __syncthreads();  // tile t is there, and every warp has left tile t - 1, whose place the next load takes
    if (t + 1 < keys.count) load_kv(t + 1);
    const int first_row = fresh_first_row();
    if (first_row >= seq.queries() || keys.limit(t, first_row + 16 * kTiles - 1) <= 0) continue;
    const uint32_t k_tile = kv_tiles + t % 2 * 2 * kTileBytes;
    float s[kTiles][kKeys / 8][4] = {};
    multiply_abt<D, kKeys>(s, q_tile + warp_row * kPitchBytes<D>, k_tile);
    if (keys.limit(t, first_row) < kKeys) mask_scores(s, keys, t, first_row);
    online_softmax<D>(s, o, row_max, row_sum, c);
    multiply_pb<D, kKeys>(o, s, k_tile + kTileBytes);
  }
  cp_async_wait<0>();

  const int first_row = fresh_first_row();
  float inverse[kTiles][2];
#pragma unroll
  for (int m = 0; m < kTiles; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = row_sum[m][half];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      inverse[m][half] = sum == 0 ? 0.f : 1 / sum;
      const int row = first_row + m * 16 + half * 8 + lane / 4;
      if (lane % 4 == 0 && row < seq.queries())
        a.lse[head * a.lse_stride + seq.q_begin + row] = sum == 0 ? 0.f : row_max[m][half] * a.scale + logf(sum);
    }
  store_rows<D>(static_cast<__nv_bfloat16*>(a.o) + head * D, a.o_stride, seq.q_begin + first_row, seq.q_end,
                shared_memory + warp_row * kPitchBytes<D>, o, inverse);
}

template <int D, int kTiles>
void launch(const AttentionArgs& a, cudaStream_t stream) {
  using Config = FwdConfig<D, kTiles>;
  const dim3 grid(static_cast<unsigned>(ceil_div(a.queries, Config::kRows) + a.n_seqs + 1),
                  static_cast<unsigned>(a.heads));
  allow_shared_memory(attention_fwd_kernel<D, kTiles>, Config::kSharedBytes);
  attention_fwd_kernel<D, kTiles><<<grid, kThreads, Config::kSharedBytes, stream>>>(a);
  CUDA_LAUNCHED();
}

}  // namespace

AttentionArgs make_attention_args(Tensor q, Tensor k, Tensor v, Tensor lse, Tensor seqs, int head_dim) {
  AttentionArgs a;
  a.q = q.data, a.k = k.data, a.v = v.data, a.lse = static_cast<float*>(lse.data);
  a.seqs = static_cast<const int32_t*>(seqs.data);
  a.q_stride = q.stride, a.k_stride = k.stride, a.v_stride = v.stride, a.lse_stride = lse.stride,
  a.seqs_stride = seqs.stride;
  a.n_seqs = static_cast<int>(seqs.rows), a.queries = static_cast<int>(q.rows), a.keys = static_cast<int>(k.rows);
  a.head_dim = head_dim, a.heads = static_cast<int>(q.cols / head_dim),
  a.kv_heads = static_cast<int>(k.cols / head_dim);
  IRQ_CHECK(a.kv_heads > 0 && a.heads % a.kv_heads == 0, "%d query heads, %d key/value heads", a.heads, a.kv_heads);
  IRQ_CHECK(head_dim <= kMaxSimpleDim, "head_dim %d is more than %d", head_dim, kMaxSimpleDim);
  IRQ_CHECK(q.rows < (int64_t{1} << 30) && k.rows < (int64_t{1} << 30), "seqs holds 32-bit rows");
  a.group = a.heads / a.kv_heads;
  a.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(head_dim)));
  return a;
}

bool rows_are_aligned(Tensor x) {
  return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.stride * size_of(x.dtype) % 16 == 0;
}

constexpr int64_t kDecodeScratchBytes = int64_t{48} << 20;  // of the 64 MB that a kernel may have

void CudaBackend::attention_fwd(Tensor o, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor seqs, int head_dim) {
  AttentionArgs a = make_attention_args(q, k, v, lse, seqs, head_dim);
  a.o = o.data, a.o_stride = o.stride;
  if (a.queries == 0) return;
  const bool aligned = rows_are_aligned(q) && rows_are_aligned(k) && rows_are_aligned(v) && rows_are_aligned(o);
  // One row for each sequence is decoding: a tile would be 63/64 empty.
  const bool tiles = q.dtype == DType::BF16 && aligned && a.queries > a.n_seqs;
  if (q.dtype == DType::BF16 && aligned && !tiles && attention_decode_takes(a) &&
      attention_decode_scratch(a) <= kDecodeScratchBytes && int64_t{a.queries} * a.kv_heads <= kMeetings)
    return attention_decode(a, static_cast<float*>(workspace(attention_decode_scratch(a))), meetings(), stream());
  // Tiles of the kernel for sm_90a have 128 rows, and a warpgroup 64: sequences much shorter than that are left to smaller blocks.
  const bool hopper = runs_sm90_kernels(properties_.major, properties_.minor);
  if (tiles && hopper && (head_dim == 64 || head_dim == 128) && a.n_seqs <= kMostSeqsSm90 &&
      a.queries > 32 * int64_t{a.n_seqs})
    return attention_fwd_sm90(a, meetings(), sm_count(), stream());
  const bool launched = tiles && dispatch_head_dim(head_dim, [&](auto dim) {
                          // Long sequences: 32 rows a warp halve the shared memory traffic. Short ones would leave half of such a tile empty.
                          if (a.queries > 96 * int64_t{a.n_seqs}) launch<dim, 2>(a, stream());
                          else launch<dim, 1>(a, stream());
                        });
  if (!launched) attention_fwd_simple(a, q.dtype, stream());
}

}  // namespace irq
