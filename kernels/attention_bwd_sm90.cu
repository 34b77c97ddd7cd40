// What    Backward of causal softmax attention on the warpgroup products of sm_90a; attention_bwd.cu's two kernels with other tiles.
// Math    delta = rowsum(dO . o);  P = exp(scale Q K^T - lse);  dS = P (dO V^T - delta);
//         dq = scale dS K;  dk = scale dS^T Q;  dv = P^T dO, summed over the H/G query heads of a key/value head;
//         with rope dq and dk are turned back by each row's angles before they are rounded.
// Shapes  q, o, dout, dq (N, H*D), k, v, dk, dv (K, G*D) bf16, rows of 16-byte chunks; lse, delta (H, N) f32; D = 64, 128.
// Cost    14 D FLOPs per (query, key) pair and head: 6 for dq, 8 for dk and dv; bytes as in attention_bwd.cu. D = 128, H = 32,
//         N = 8192: sequences of 512 are 120 GFLOP, 135 with what lies behind the diagonal in 64 x 64 tiles; 0.27 ms was
//         expected, at 500 TFLOP/s or by two times 400 MB from DRAM (measured: 0.44 ms); 2048 x 4 measured 1.01 to 1.17 ms.
// Tricky  A block is a warpgroup with 64 rows (queries for dq, keys for dk and dv) that visits tiles of 64, and a multiprocessor
//         has two, so that one computes while the other starts, ends or waits for a tile (two warpgroups in one block, sharing
//         each visit's tiles, took 20 % longer). Scores stay in registers, where they are the left operand of the next product;
//         all other operands stay in shared memory, and a tile serves along its rows (S = Q K^T) and down them (dq = dS K).
//         Products run on while the threads do something else: dP during exp, dv during dS. They need whole warpgroups:
//         visits are skipped by 64 rows, not by 16.
#include "kernels/attention_bwd.cuh"
#include "kernels/sm90.cuh"

namespace irq {
namespace {

constexpr int kThreads = 128;
constexpr int kTile = 64;                // rows of a block, and of the tiles it visits
constexpr int kStages = 2, kBlocks = 2;  // of a multiprocessor
static_assert(KeyTiles::kKeys == kTile && kQueryTile == kTile);

constexpr int kPanelBytes = kTile * 128;
template <int D>
constexpr int kTileBytes = kTile* D * 2;  // D / 64 panels
template <int D>
constexpr int kStageBytes = 2 * kTileBytes<D>;  // two tiles
template <int D>
constexpr int kSharedBytes = 1024 + (1 + kStages) * kStageBytes<D> + kStages * 2 * kTile * 4;

// Panels start at multiples of 1024 bytes, dynamic shared memory need not.
__device__ __forceinline__ unsigned char* aligned_memory(unsigned char* memory) {
  return memory + (1024 - smem_address(memory) % 1024) % 1024;
}

// Starts copying rows [first, first + kTile) of one head, x (rows, D) bf16, into panels; rows from `end` on become zeros.
template <int D>
__device__ __forceinline__ void load_panels(uint32_t tile, const void* x, int64_t stride, int column, int first,
                                            int end) {
  constexpr int kChunks = D / 8, kStep = kThreads / kChunks;
  static_assert(kStep % 8 == 0 && kThreads == 2 * kTile, "a thread's rows have their chunks at the same places");
  const int thread = fresh_thread_index(), row = thread / kChunks, chunk = thread % kChunks;
  const __nv_bfloat16* from = static_cast<const __nv_bfloat16*>(x) + (first + row) * stride + column + chunk * 8;
  const uint32_t to = tile + chunk / 8 * kPanelBytes + panel_byte(row, chunk % 8);
#pragma unroll
  for (int i = 0; i < kTile; i += kStep) {
    cp_async_16(to + i * 128, from, i < end - first - row);
    from += kStep * stride;  // may end up outside the buffer, where nothing is read
  }
}

// s = A B^T of two tiles (64, D); started, not waited for.
template <int D>
__device__ __forceinline__ void start_abt(float (&s)[kTile / 8][4], uint32_t a_tile, uint32_t b_tile) {
#pragma unroll
  for (int kk = 0; kk < D / 16; ++kk) {
    const uint32_t at = kk / 4 * kPanelBytes + kk % 4 * 32;
    wgmma_panels(s, panel_along(a_tile + at), panel_along(b_tile + at), kk > 0);
  }
  wgmma_commit();
}
// acc += P B: P (64, 64) packed in registers, B a tile (64, D).
template <int D>
__device__ __forceinline__ void start_pb(float (&acc)[D / 8][4], const uint32_t (&p)[kTile / 16][4], uint32_t b_tile) {
#pragma unroll
  for (int kk = 0; kk < kTile / 16; ++kk) wgmma_registers(acc, p[kk], panel_down(b_tile + kk * 16 * 128, kPanelBytes));
  wgmma_commit();
}
// rope's inverse on a warpgroup's 64 rows in registers: a thread has both halves of its pairs.
template <int D>
__device__ __forceinline__ void turn_back(const AttentionArgs& a, float (&acc)[D / 8][4], int first, int end) {
  if (!a.cosine) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first + static_cast<int>(threadIdx.x) / kWarp * 16 + half * 8 + lane / 4;
    const int64_t position = row < end ? max(a.positions[row], 0) : 0;  // dead rows have zeros
    const float* cosine = a.cosine + position * a.cosine_stride + lane % 4 * 2;
    const float* sine = a.sine + position * a.sine_stride + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < D / 16; ++n) {
      const float2 c = __ldg(reinterpret_cast<const float2*>(cosine + n * 8));
      const float2 s = __ldg(reinterpret_cast<const float2*>(sine + n * 8));
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float &x = acc[n][2 * half + e], &y = acc[n + D / 16][2 * half + e];
        const float cos = e ? c.y : c.x, sin = e ? s.y : s.x, from = x;
        x = from * cos + y * sin;
        y = y * cos - from * sin;
      }
    }
  }
}
// Writes a warpgroup's 64 rows; `staging` is the place of its own two tiles, which nothing reads any more.
template <int D>
__device__ __forceinline__ void store_group(void* x, int64_t stride, int column, int first, int end,
                                            unsigned char* staging, const float (&acc)[D / 8][4], float scale) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const float scales[1][2] = {{scale, scale}};
  static_assert(16 * kPitchBytes<D> <= kStageBytes<D> / 4);
  store_rows<D>(static_cast<__nv_bfloat16*>(x) + column, stride, first + warp * 16, end,
                staging + warp * (kStageBytes<D> / 4), reinterpret_cast<const float(&)[1][D / 8][4]>(acc), scales);
}

// ---- dq and delta -------------------------------------------------------------------------------------------------
// delta of this warp's 16 rows, into shared memory and to a.delta.
template <int D>
__device__ __forceinline__ void compute_delta(const AttentionArgs& a, float* delta, int head, int row, int end) {
  constexpr int kLanes = D / 8;  // of a row
  const int lane = static_cast<int>(threadIdx.x) % kWarp, column = head * D + lane % kLanes * 8;
#pragma unroll
  for (int r = lane / kLanes; r < 16; r += kWarp / kLanes) {
    float sum = 0;
    if (row + r < end) {
      const auto x = *reinterpret_cast<const Pack<__nv_bfloat16>*>(static_cast<const __nv_bfloat16*>(a.o) +
                                                                   (row + r) * a.o_stride + column);
      const auto y = *reinterpret_cast<const Pack<__nv_bfloat16>*>(static_cast<const __nv_bfloat16*>(a.dout) +
                                                                   (row + r) * a.dout_stride + column);
#pragma unroll
      for (int e = 0; e < 8; ++e) sum += to_f(x.v[e]) * to_f(y.v[e]);
    }
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (lane % kLanes == 0) delta[r] = sum;
    if (lane % kLanes == 0 && row + r < end) a.delta[head * a.delta_stride + row + r] = sum;
  }
  __syncwarp();
}

template <int D>
__global__ void __launch_bounds__(kThreads, kBlocks) attention_dq_sm90_kernel(AttentionArgs a) {
  extern __shared__ unsigned char shared_memory[];  // Q, dO, stages of K and V
  __shared__ float delta_rows[kTile];
  const int head = blockIdx.y, kv_head = head / a.group, lane = static_cast<int>(threadIdx.x) % kWarp;
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
  unsigned char* memory = aligned_memory(shared_memory);
  const uint32_t q_tile = smem_address(memory), dout_tile = q_tile + kTileBytes<D>, stages = q_tile + kStageBytes<D>;
  const auto load_kv = [&](int t) {
    const uint32_t stage = stages + t % kStages * kStageBytes<D>;
    if (t < keys.count) {
      load_panels<D>(stage, a.k, a.k_stride, kv_head * D, keys.first(t), keys.end(t));
      load_panels<D>(stage + kTileBytes<D>, a.v, a.v_stride, kv_head * D, keys.first(t), keys.end(t));
    }
    cp_async_commit();
  };
  const int first = seq.q_begin + tile.first, warp_row = static_cast<int>(threadIdx.x) / kWarp * 16;
  load_panels<D>(q_tile, a.q, a.q_stride, head * D, first, seq.q_end);
  load_panels<D>(dout_tile, a.dout, a.dout_stride, head * D, first, seq.q_end);
  load_kv(0);  // in one group with Q and dO
  compute_delta<D>(a, delta_rows + warp_row, head, first + warp_row, seq.q_end);
  float dq[D / 8][4] = {}, lse2[2], delta[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = warp_row + half * 8 + lane / 4;
    lse2[half] = tile.first + r < seq.queries() ? a.lse[head * a.lse_stride + first + r] * kLog2E : 0.f;
    delta[half] = delta_rows[r];
  }
  const float c = a.scale * kLog2E;
  for (int t = 0; t < keys.count; ++t) {
    cp_async_wait<0>();
    wgmma_wait<0>();
    publish_to_products();
    __syncthreads();  // tile t is there, and the products of tile t - 1, whose place the next load takes, are done
    load_kv(t + 1);
    const uint32_t k_tile = stages + t % kStages * kStageBytes<D>;
    float s[kTile / 8][4], dp[kTile / 8][4];
    wgmma_fence();
    start_abt<D>(s, q_tile, k_tile);
    start_abt<D>(dp, dout_tile, k_tile + kTileBytes<D>);
    wgmma_wait<1>();
    results_are_there(s);
    const int limit[2] = {keys.limit(t, tile.first + warp_row + lane / 4) - lane % 4 * 2,
                          keys.limit(t, tile.first + warp_row + lane / 4 + 8) - lane % 4 * 2};
    if (keys.limit(t, tile.first) < kTile) {
#pragma unroll
      for (int n = 0; n < kTile / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (n * 8 + e % 2 >= limit[e / 2]) s[n][e] = -INFINITY;
    }
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) s[n][e] = exp2_hardware(s[n][e] * c - lse2[e / 2]);
    float all = 0;
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n) all += (s[n][0] + s[n][1]) + (s[n][2] + s[n][3]);
    finish_first(all, q_tile);  // not behind the wait for dP
    wgmma_wait<0>();
    results_are_there(dp);
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) s[n][e] *= dp[n][e] - delta[e / 2];
    uint32_t ds[kTile / 16][4];
    pack_operand(ds, s);
    wgmma_fence();
    start_pb<D>(dq, ds, k_tile);
  }
  wgmma_wait<0>();
  results_are_there(dq);
  cp_async_wait<0>();
  turn_back<D>(a, dq, first, seq.q_end);
  __syncthreads();  // no warp's products read Q and dO any more
  store_group<D>(a.dq, a.dq_stride, head * D, first, seq.q_end, memory, dq, a.scale);
}

// ---- dk and dv ----------------------------------------------------------------------------------------------------
// P = exp(S c - lse), for the 64 keys from first_key on and 64 queries whose lse are in shared memory.
__device__ __forceinline__ void transposed_probabilities(float (&s)[kTile / 8][4], const float* lse, const Seen& seen,
                                                         int first_key, int first_query, float c) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const bool whole = first_key >= seen.key_begin && first_key + kTile <= seen.key_end &&
                     first_key + kTile - 1 - seen.key_lead <= first_query;
  if (!whole) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = first_key + static_cast<int>(threadIdx.x) / kWarp * 16 + half * 8 + lane / 4;
      const bool inside = key >= seen.key_begin && key < seen.key_end;
      const int from =
          inside ? key - seen.key_lead - first_query - lane % 4 * 2 : kTile;  // the column that sees it first
#pragma unroll
      for (int n = 0; n < kTile / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          if (n * 8 + e < from) s[n][2 * half + e] = -INFINITY;
    }
  }
#pragma unroll
  for (int n = 0; n < kTile / 8; ++n) {
    const float2 row_lse = *reinterpret_cast<const float2*>(lse + n * 8 + lane % 4 * 2);
    const float lse2[2] = {row_lse.x * kLog2E, row_lse.y * kLog2E};
#pragma unroll
    for (int e = 0; e < 4; ++e) s[n][e] = exp2_hardware(s[n][e] * c - lse2[e % 2]);
  }
}

template <int D>
__global__ void __launch_bounds__(kThreads, kBlocks) attention_dkv_sm90_kernel(AttentionArgs a) {
  extern __shared__ unsigned char shared_memory[];  // K, V, stages of Q and dO, of lse and delta
  __shared__ Seen list[2 * kThreads + 1];
  __shared__ int parts;
  const KeyTile tile(a, static_cast<int>(blockIdx.x));
  find_parts<kThreads>(a, tile, parts);
  if (parts == 0) return;
  const int tile_begin = tile.begin, tile_end = tile.end, kv_head = blockIdx.y;
  unsigned char* memory = aligned_memory(shared_memory);
  const uint32_t k_tile = smem_address(memory), v_tile = k_tile + kTileBytes<D>, stages = k_tile + kStageBytes<D>;
  constexpr int kRowBytes = 2 * kTile * 4;  // lse and delta of a stage
  const float* row_values = reinterpret_cast<const float*>(memory + (1 + kStages) * kStageBytes<D>);
  load_panels<D>(k_tile, a.k, a.k_stride, kv_head * D, tile_begin, tile_end);
  load_panels<D>(v_tile, a.v, a.v_stride, kv_head * D, tile_begin, tile_end);
  cp_async_commit();  // where no query sees these keys, no visit's group holds the copies, and results take their place
  const float c = a.scale * kLog2E;
  float dk[D / 8][4] = {}, dv[D / 8][4] = {};

  // alone: all visits are the block's own. With one loop for both cases everything unshared takes 2 % longer.
  const auto visit_all = [&](auto alone) {
    const auto step = [&](Visit& v, int entries) {
      if constexpr (alone.value) {
        if (v.entry < entries) v.next(list, a.group);
      } else {
        v.skip(parts, list, entries, a.group);
      }
    };
    for (int chunk = 0; chunk < a.n_seqs; chunk += kThreads) {
      const int entries = list_seen<kThreads>(a, chunk, tile_begin, tile_end, list);
      if (entries == 0) continue;
      const auto load = [&](const Visit& v, int slot) {
        if (v.entry < entries) {
          const Seen& s = list[v.entry];
          const int head = kv_head * a.group + v.head, first = s.q_begin + v.tile * kTile;
          const uint32_t stage = stages + slot * kStageBytes<D>;
          load_panels<D>(stage, a.q, a.q_stride, head * D, first, s.q_end);
          load_panels<D>(stage + kTileBytes<D>, a.dout, a.dout_stride, head * D, first, s.q_end);
          const int i = static_cast<int>(threadIdx.x) % kTile;
          const float* rows = threadIdx.x < kTile ? a.lse + head * a.lse_stride : a.delta + head * a.delta_stride;
          cp_async_4(stages + kStages * kStageBytes<D> + slot * kRowBytes + threadIdx.x * 4,
                     rows + (first + i < s.q_end ? first + i : 0), first + i < s.q_end);
        }
        cp_async_commit();
      };
      Visit visit = {0, 0, list[0].first_tile};
      if constexpr (!alone.value) visit.skip(tile.part, list, entries, a.group);
      Visit ahead = visit;
      load(ahead, 0);
      step(ahead, entries);
      for (int slot = 0; visit.entry < entries; slot = (slot + 1) % kStages) {
        cp_async_wait<0>();
        wgmma_wait<0>();
        publish_to_products();
        __syncthreads();  // this visit's tiles are there, and the last one's products, whose place is loaded, are done
        load(ahead, (slot + 1) % kStages);
        step(ahead, entries);
        const Seen& seen = list[visit.entry];
        const int first_query = visit.tile * kTile, low = max(seen.key_begin, tile_begin);
        step(visit, entries);
        if (low >= min(seen.key_end, tile_begin + kTile) || low - seen.key_lead >= first_query + kTile) continue;
        const uint32_t q_tile = stages + slot * kStageBytes<D>, dout_tile = q_tile + kTileBytes<D>;
        const float* lse = row_values + slot * 2 * kTile;
        float s[kTile / 8][4], dp[kTile / 8][4];
        wgmma_fence();
        start_abt<D>(s, k_tile, q_tile);
        start_abt<D>(dp, v_tile, dout_tile);
        wgmma_wait<1>();
        results_are_there(s);
        transposed_probabilities(s, lse, seen, tile_begin, first_query, c);
        uint32_t p[kTile / 16][4], ds[kTile / 16][4];
        pack_operand(p, s);
        wgmma_fence();
        start_pb<D>(dv, p, dout_tile);
        wgmma_wait<1>();
        results_are_there(dp);
#pragma unroll
        for (int n = 0; n < kTile / 8; ++n) {
          const float2 delta =
              *reinterpret_cast<const float2*>(lse + kTile + n * 8 + static_cast<int>(threadIdx.x) % 4 * 2);
#pragma unroll
          for (int e = 0; e < 4; ++e) s[n][e] *= dp[n][e] - (e % 2 ? delta.y : delta.x);
        }
        pack_operand(ds, s);
        wgmma_fence();
        start_pb<D>(dk, ds, q_tile);
      }
      wgmma_wait<0>();
      __syncthreads();  // the next chunk's list and loads take the place of this one's
    }
  };
  if (parts == 1) visit_all(std::true_type{});
  else visit_all(std::false_type{});
  results_are_there(dk);
  results_are_there(dv);
  cp_async_wait<0>();
  if (!add_parts<kThreads>(a, tile, parts, dk, dv)) return;
  turn_back<D>(a, dk, tile_begin, tile_end);
  __syncthreads();
  store_group<D>(a.dk, a.dk_stride, kv_head * D, tile_begin, tile_end, memory, dk, a.scale);
  store_group<D>(a.dv, a.dv_stride, kv_head * D, tile_begin, tile_end, memory, dv, 1);
}

template <int D>
void launch(const AttentionArgs& a, cudaStream_t stream) {
  if (a.queries > 0) {
    const dim3 grid(static_cast<unsigned>(ceil_div(a.queries, kTile) + a.n_seqs + 1), static_cast<unsigned>(a.heads));
    allow_shared_memory(attention_dq_sm90_kernel<D>, kSharedBytes<D>);
    attention_dq_sm90_kernel<D><<<grid, kThreads, kSharedBytes<D>, stream>>>(a);
    CUDA_LAUNCHED();
  }
  if (a.keys > 0) {
    const dim3 grid(key_tile_blocks(a), static_cast<unsigned>(a.kv_heads));
    allow_shared_memory(attention_dkv_sm90_kernel<D>, kSharedBytes<D>);
    attention_dkv_sm90_kernel<D><<<grid, kThreads, kSharedBytes<D>, stream>>>(a);
    CUDA_LAUNCHED();
  }
}

}  // namespace

void attention_bwd_sm90(const AttentionArgs& args, cudaStream_t stream) {
  if (args.head_dim == 64) launch<64>(args, stream);
  else launch<128>(args, stream);
}

}  // namespace irq
