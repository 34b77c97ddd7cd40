// What    Backward of causal softmax attention on bf16 tensor cores: one kernel for dq and delta, one for dk and dv.
// Math    delta = rowsum(dO . o);  P = exp(scale Q K^T - lse);  dS = P (dO V^T - delta);
//         dq = scale dS K;  dk = scale dS^T Q;  dv = P^T dO, summed over the H/G query heads of a key/value head.
// Shapes  q, o, dout, dq (N, H*D), k, v, dk, dv (K, G*D) bf16; lse, delta (H, N) f32; D = 32, 48, 64, 128.
// Cost    14 D FLOPs per (query, key) pair and head: 6 for dq, 8 for dk and dv. P and dO V^T are computed in both kernels; a
//         single kernel needs 10 D, but then several blocks add to one dq and the order of the sums changes from run to run.
//         Bytes: each kernel reads q, k, v, dout once, 12 N H D + 8 K G D with the outputs. D = 128, H = 32, N = 8192:
//         sequences of 512 are 120 GFLOP, 0.35 ms on an H100 at 350 TFLOP/s (measured: 0.63 ms); 2048 x 4 are 481 GFLOP, measured 1.89 ms.
// Tricky  Both kernels keep S and dP in registers: dq's rows are queries (S = Q K^T), dk's and dv's rows are keys (S^T = K Q^T),
//         so P and dS are already where the next product wants its left operand. Key tiles are tiles of the buffer, not of
//         a sequence: such a block visits, in the order of seqs, everything that sees any of its keys, hence a shared prefix
//         needs no atomics and keys in no sequence get their zeros (where prefixes lie, in front, several blocks divide the
//         visits and add up their sums in order). Query rows behind a sequence's end are loaded as zeros
//         with lse = delta = 0: their P is 1, but dO = 0 makes their share of dv, dS and dk exactly 0.
#include "kernels/attention_bwd.cuh"
#include "kernels/kernel_choice.h"

namespace irq {
namespace {

constexpr int kThreads = 128;
constexpr int kTile = 64;  // rows of a block, and of the tiles it visits; 16 rows for each of 4 warps
static_assert(KeyTiles::kKeys == kTile && kQueryTile == kTile);

template <int D>
constexpr int kTileBytes = kTile* kPitchBytes<D>;

// ---- dq and delta -------------------------------------------------------------------------------------------------
// delta of this warp's 16 rows, into shared memory and to a.delta. o comes from global memory, dout from its tile.
template <int D>
__device__ __forceinline__ void compute_delta(const AttentionArgs& a, float* delta, const unsigned char* dout_rows,
                                              int head, int row, int end) {
  constexpr int kChunks = D / 8, kLanes = kChunks <= 4 ? 4 : kChunks <= 8 ? 8 : 16;  // lanes of a row
  const int lane = threadIdx.x % kWarp, chunk = lane % kLanes;
  const auto* o = static_cast<const __nv_bfloat16*>(a.o) + head * D;
#pragma unroll
  for (int r = lane / kLanes; r < 16; r += kWarp / kLanes) {
    float sum = 0;
    if (chunk < kChunks && row + r < end) {
      const auto x = *reinterpret_cast<const Pack<__nv_bfloat16>*>(o + (row + r) * a.o_stride + chunk * 8);
      const auto y = *reinterpret_cast<const Pack<__nv_bfloat16>*>(dout_rows + r * kPitchBytes<D> + chunk * 16);
#pragma unroll
      for (int e = 0; e < 8; ++e) sum += to_f(x.v[e]) * to_f(y.v[e]);
    }
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (chunk == 0) delta[r] = sum;
    if (chunk == 0 && row + r < end) a.delta[head * a.delta_stride + row + r] = sum;
  }
  __syncwarp();
}

// S -> dS in place, given dP = dO V^T. Row half h of the thread sees the keys below limit[h].
__device__ __forceinline__ void score_gradient(float (&s)[1][kTile / 8][4], const float (&dp)[1][kTile / 8][4],
                                               const float (&lse2)[2], const float (&delta)[2], const int (&limit)[2],
                                               float c) {
#pragma unroll
  for (int n = 0; n < kTile / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float p = n * 8 + e % 2 < limit[e / 2] ? exp2_hardware(s[0][n][e] * c - lse2[e / 2]) : 0.f;
      s[0][n][e] = p * (dp[0][n][e] - delta[e / 2]);
    }
}

template <int D>
__global__ void __launch_bounds__(kThreads, 2) attention_dq_kernel(AttentionArgs a) {
  extern __shared__ __align__(16) unsigned char shared_memory[];  // Q, dO, two stages of K and V
  __shared__ float delta_rows[kTile];
  const int head = blockIdx.y, kv_head = head / a.group, lane = threadIdx.x % kWarp;
  const QueryTile& tile = find_query_tile<kThreads>(a, kTile, blockIdx.x);
  if (!tile.found) {
    for_dead_rows<kThreads>(a, blockIdx.x - tile.total, gridDim.x - tile.total, [&](int row) {
      __nv_bfloat16* dq = static_cast<__nv_bfloat16*>(a.dq) + row * a.dq_stride + head * D;
      if (lane < D / 8) *reinterpret_cast<uint4*>(dq + lane * 8) = uint4{0, 0, 0, 0};
      if (lane == 0) a.delta[head * a.delta_stride + row] = 0;
    });
    return;
  }
  const SeqRange& seq = tile.seq;
  const KeyTiles keys(seq, min(tile.first + kTile, seq.queries()));
  const uint32_t q_tile = smem_address(shared_memory), dout_tile = q_tile + kTileBytes<D>,
                 kv_tiles = dout_tile + kTileBytes<D>;
  const auto load_kv = [&](int t) {
    const uint32_t stage = kv_tiles + t % 2 * 2 * kTileBytes<D>;
    load_tile<D, kTile, kThreads>(stage, static_cast<const __nv_bfloat16*>(a.k) + kv_head * D, a.k_stride,
                                  keys.first(t), keys.end(t));
    load_tile<D, kTile, kThreads>(stage + kTileBytes<D>, static_cast<const __nv_bfloat16*>(a.v) + kv_head * D,
                                  a.v_stride, keys.first(t), keys.end(t));
    cp_async_commit();
  };
  const int first = seq.q_begin + tile.first;
  load_tile<D, kTile, kThreads>(q_tile, static_cast<const __nv_bfloat16*>(a.q) + head * D, a.q_stride, first,
                                seq.q_end);
  load_tile<D, kTile, kThreads>(dout_tile, static_cast<const __nv_bfloat16*>(a.dout) + head * D, a.dout_stride, first,
                                seq.q_end);
  cp_async_commit();
  if (keys.count > 0) load_kv(0);

  const int warp_row = threadIdx.x / kWarp * 16,
            row = tile.first + warp_row;  // row: this warp's first, counted from q_begin
  cp_async_wait<0>();
  __syncthreads();
  compute_delta<D>(a, delta_rows + warp_row, shared_memory + kTileBytes<D> + warp_row * kPitchBytes<D>, head,
                   first + warp_row, seq.q_end);
  float dq[1][D / 8][4] = {}, lse2[2], delta[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = half * 8 + lane / 4;
    lse2[half] = row + r < seq.queries() ? a.lse[head * a.lse_stride + first + warp_row + r] * kLog2E : 0.f;
    delta[half] = delta_rows[warp_row + r];
  }
  for (int t = 0; t < keys.count; ++t) {
    cp_async_wait<0>();
    __syncthreads();  // tile t is there, and every warp has left tile t - 1, whose place the next load takes
    if (t + 1 < keys.count) load_kv(t + 1);
    if (row >= seq.queries() || keys.limit(t, row + 15) <= 0) continue;
    const uint32_t k_tile = kv_tiles + t % 2 * 2 * kTileBytes<D>;
    float s[1][kTile / 8][4] = {}, dp[1][kTile / 8][4] = {};
    multiply_abt<D, kTile>(s, q_tile + warp_row * kPitchBytes<D>, k_tile);
    multiply_abt<D, kTile>(dp, dout_tile + warp_row * kPitchBytes<D>, k_tile + kTileBytes<D>);
    const int limit[2] = {keys.limit(t, row + lane / 4) - lane % 4 * 2,
                          keys.limit(t, row + lane / 4 + 8) - lane % 4 * 2};
    score_gradient(s, dp, lse2, delta, limit, a.scale * kLog2E);
    multiply_pb<D, kTile>(dq, s, k_tile);
  }
  const float scale[1][2] = {{a.scale, a.scale}};
  store_rows<D>(static_cast<__nv_bfloat16*>(a.dq) + head * D, a.dq_stride, first + warp_row, seq.q_end,
                shared_memory + warp_row * kPitchBytes<D>, dq, scale);
}

// ---- dk and dv ----------------------------------------------------------------------------------------------------
// What one visit loads: a tile of Q, of dO, and the lse and delta of its rows.
template <int D>
struct QueryStage {
  static constexpr int kBytes = 2 * kTileBytes<D> + 2 * kTile * 4;
  __device__ static void load(uint32_t stage, const AttentionArgs& a, int head, int first, int end) {
    load_tile<D, kTile, kThreads>(stage, static_cast<const __nv_bfloat16*>(a.q) + head * D, a.q_stride, first, end);
    load_tile<D, kTile, kThreads>(stage + kTileBytes<D>, static_cast<const __nv_bfloat16*>(a.dout) + head * D,
                                  a.dout_stride, first, end);
    const int i = threadIdx.x % kTile;
    const float* rows = threadIdx.x < kTile ? a.lse + head * a.lse_stride : a.delta + head * a.delta_stride;
    cp_async_4(stage + 2 * kTileBytes<D> + threadIdx.x * 4, rows + (first + i < end ? first + i : 0), first + i < end);
  }
};
static_assert(kThreads == 2 * kTile, "one thread loads one lse or delta");

// One visit: this warp's 16 keys against 64 queries; first_query counts from q_begin.
template <int D>
__device__ __forceinline__ void add_visit(float (&dk)[1][D / 8][4], float (&dv)[1][D / 8][4], uint32_t k_rows,
                                          uint32_t v_rows, uint32_t q_tile, const float* lse, const Seen& seen,
                                          int first_query, int warp_key, float c) {
  const int lane = threadIdx.x % kWarp;
  const int low = max(seen.key_begin, warp_key);  // this warp's first key that the entry has
  if (low >= min(seen.key_end, warp_key + 16) || low - seen.key_lead >= first_query + kTile) return;
  float p[1][kTile / 8][4] = {}, ds[1][kTile / 8][4] = {};
  multiply_abt<D, kTile>(p, k_rows, q_tile);
  int from[2];  // the thread's two keys are seen from this column on
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int key = warp_key + half * 8 + lane / 4;
    const bool inside = key >= seen.key_begin && key < seen.key_end;
    from[half] = inside ? key - seen.key_lead - first_query - lane % 4 * 2 : kTile;
  }
#pragma unroll
  for (int n = 0; n < kTile / 8; ++n) {
    const float2 row_lse = *reinterpret_cast<const float2*>(lse + n * 8 + lane % 4 * 2);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float lse2 = (e % 2 ? row_lse.y : row_lse.x) * kLog2E;
      p[0][n][e] = n * 8 + e % 2 >= from[e / 2] ? exp2_hardware(p[0][n][e] * c - lse2) : 0.f;
    }
  }
  multiply_abt<D, kTile>(ds, v_rows, q_tile + kTileBytes<D>);  // dP^T = V dO^T
#pragma unroll
  for (int n = 0; n < kTile / 8; ++n) {
    const float2 delta = *reinterpret_cast<const float2*>(lse + kTile + n * 8 + lane % 4 * 2);
#pragma unroll
    for (int e = 0; e < 4; ++e) ds[0][n][e] = p[0][n][e] * (ds[0][n][e] - (e % 2 ? delta.y : delta.x));
  }
  multiply_pb<D, kTile>(dv, p, q_tile + kTileBytes<D>);
  multiply_pb<D, kTile>(dk, ds, q_tile);
}

template <int D>
__global__ void __launch_bounds__(kThreads, 2) attention_dkv_kernel(AttentionArgs a) {
  extern __shared__ __align__(16) unsigned char shared_memory[];  // K, V, two query stages
  __shared__ Seen list[2 * kThreads + 1];
  __shared__ int parts;
  const KeyTile tile(a, static_cast<int>(blockIdx.x));
  find_parts<kThreads>(a, tile, parts);
  if (parts == 0) return;
  const int tile_begin = tile.begin, tile_end = tile.end, kv_head = blockIdx.y;
  const uint32_t k_tile = smem_address(shared_memory), stages = k_tile + 2 * kTileBytes<D>;
  load_tile<D, kTile, kThreads>(k_tile, static_cast<const __nv_bfloat16*>(a.k) + kv_head * D, a.k_stride, tile_begin,
                                tile_end);
  load_tile<D, kTile, kThreads>(k_tile + kTileBytes<D>, static_cast<const __nv_bfloat16*>(a.v) + kv_head * D,
                                a.v_stride, tile_begin, tile_end);
  cp_async_commit();
  const int warp_row = threadIdx.x / kWarp * 16;
  const uint32_t k_rows = k_tile + warp_row * kPitchBytes<D>, v_rows = k_rows + kTileBytes<D>;
  float dk[1][D / 8][4] = {}, dv[1][D / 8][4] = {};

  for (int chunk = 0; chunk < a.n_seqs; chunk += kThreads) {
    const int entries = list_seen<kThreads>(a, chunk, tile_begin, tile_end, list);
    if (entries == 0) continue;
    const auto load = [&](const Visit& v, int stage) {
      const Seen& s = list[v.entry];
      QueryStage<D>::load(stages + stage * QueryStage<D>::kBytes, a, kv_head * a.group + v.head,
                          s.q_begin + v.tile * kTile, s.q_end);
      cp_async_commit();
    };
    Visit visit = {0, 0, list[0].first_tile};
    visit.skip(tile.part, list, entries, a.group);
    if (visit.entry < entries) load(visit, 0);
    for (int stage = 0; visit.entry < entries; stage ^= 1) {
      Visit next = visit;
      next.skip(parts, list, entries, a.group);
      cp_async_wait<0>();
      __syncthreads();  // this visit's tiles are there, and every warp has left the last one's
      if (next.entry < entries) load(next, stage ^ 1);
      const float* lse = reinterpret_cast<const float*>(shared_memory + 2 * kTileBytes<D> +
                                                        stage * QueryStage<D>::kBytes + 2 * kTileBytes<D>);
      add_visit<D>(dk, dv, k_rows, v_rows, stages + stage * QueryStage<D>::kBytes, lse, list[visit.entry],
                   visit.tile * kTile, tile_begin + warp_row, a.scale * kLog2E);
      visit = next;
    }
    __syncthreads();  // the next chunk's first load goes to stage 0
  }
  cp_async_wait<0>();
  if (!add_parts<kThreads>(a, tile, parts, dk[0], dv[0])) return;
  __syncthreads();
  const float scale[1][2] = {{a.scale, a.scale}}, one[1][2] = {{1.f, 1.f}};
  unsigned char* staging = shared_memory + warp_row * kPitchBytes<D>;
  store_rows<D>(static_cast<__nv_bfloat16*>(a.dk) + kv_head * D, a.dk_stride, tile_begin + warp_row, tile_end, staging,
                dk, scale);
  store_rows<D>(static_cast<__nv_bfloat16*>(a.dv) + kv_head * D, a.dv_stride, tile_begin + warp_row, tile_end, staging,
                dv, one);
}

template <int D>
void launch(const AttentionArgs& a, cudaStream_t stream) {
  constexpr int kDqBytes = 6 * kTileBytes<D>, kDkvBytes = 2 * kTileBytes<D> + 2 * QueryStage<D>::kBytes;
  if (a.queries > 0) {
    const dim3 grid(static_cast<unsigned>(ceil_div(a.queries, kTile) + a.n_seqs + 1), static_cast<unsigned>(a.heads));
    allow_shared_memory(attention_dq_kernel<D>, kDqBytes);
    attention_dq_kernel<D><<<grid, kThreads, kDqBytes, stream>>>(a);
    CUDA_LAUNCHED();
  }
  if (a.keys > 0) {
    const dim3 grid(key_tile_blocks(a), static_cast<unsigned>(a.kv_heads));
    allow_shared_memory(attention_dkv_kernel<D>, kDkvBytes);
    attention_dkv_kernel<D><<<grid, kThreads, kDkvBytes, stream>>>(a);
    CUDA_LAUNCHED();
  }
}

constexpr int kSplitTiles = 4, kMostSplitShift = 3;    // a prefix of up to 256 tokens; 8 parts are 0.5 MB to add up
constexpr int64_t kMostPartBytes = int64_t{32} << 20;  // of the backend's scratch memory

int64_t part_bytes(const AttentionArgs& a) {
  return int64_t{a.kv_heads} * a.split_tiles * 2 * kTile * a.head_dim * static_cast<int64_t>(sizeof(float));
}

// As many parts as leave no multiprocessor idle where two tiles have keys of prefixes; none where there cannot be two sequences on one.
void divide_first_tiles(AttentionArgs& a, int sm_count) {
  if (a.n_seqs < 3) return;
  a.split_tiles = static_cast<int>(std::min<int64_t>(kSplitTiles, ceil_div(a.keys, kTile)));
  while (a.split_shift < kMostSplitShift && a.kv_heads << (a.split_shift + 1) <= sm_count &&
         part_bytes(a) << (a.split_shift + 1) <= kMostPartBytes)
    ++a.split_shift;
  if (a.split_shift == 0) a.split_tiles = 0;
}

}  // namespace

unsigned key_tile_blocks(const AttentionArgs& a) {
  return static_cast<unsigned>(ceil_div(a.keys, kTile) + a.split_tiles * ((1 << a.split_shift) - 1));
}

void CudaBackend::attention_bwd(Tensor dq, Tensor dk, Tensor dv, Tensor delta, Tensor dout, Tensor q, Tensor k,
                                Tensor v, Tensor o, Tensor lse, Tensor seqs, int head_dim, Rope turned) {
  AttentionArgs a = make_attention_args(q, k, v, lse, seqs, head_dim);
  a.o = o.data, a.dq = dq.data, a.dk = dk.data, a.dv = dv.data, a.dout = dout.data,
  a.delta = static_cast<float*>(delta.data);
  a.o_stride = o.stride, a.dq_stride = dq.stride, a.dk_stride = dk.stride, a.dv_stride = dv.stride,
  a.dout_stride = dout.stride;
  a.delta_stride = delta.stride;
  divide_first_tiles(a, sm_count());
  if (a.split_tiles > 0)
    a.sums = static_cast<float*>(workspace(part_bytes(a) << a.split_shift)), a.arrived = meetings();
  bool tiles = q.dtype == DType::BF16;
  for (const Tensor& x : {q, k, v, o, dout, dq, dk, dv}) tiles = tiles && rows_are_aligned(x);
  const bool hopper = runs_sm90_kernels(properties_.major, properties_.minor);
  if (tiles && hopper && (head_dim == 64 || head_dim == 128)) {
    const bool pairs = turned.cos_table && turned.cos_table.stride % 2 == 0 && turned.sin_table.stride % 2 == 0;
    if (pairs) {
      a.cosine = turned.cos_table.as<float>(), a.sine = turned.sin_table.as<float>();
      a.cosine_stride = turned.cos_table.stride, a.sine_stride = turned.sin_table.stride;
      a.positions = turned.positions.as<int32_t>();
    }
    attention_bwd_sm90(a, stream());
    if (pairs) return;
  } else {
    const bool launched = tiles && dispatch_head_dim(head_dim, [&](auto dim) { launch<dim>(a, stream()); });
    if (!launched) attention_bwd_simple(a, q.dtype, stream());
  }
  if (!turned.cos_table) return;
  for (const Tensor& d : {dq, dk}) rope(d, turned.cos_table, turned.sin_table, turned.positions, head_dim, true);
}

}  // namespace irq
