// What    dq and delta of attention's backward on the warpgroup products of sm_90a, by blocks that stay.
// Math    delta = rowsum(dO . o);  P = exp(scale Q K^T - lse);  dS = P (dO V^T - delta);  dq = scale dS K.
// Shapes  As in attention_bwd_sm90.cu, which comes after it; at most 512 sequences.
// Cost    6 D FLOPs per (query, key) pair and head. D = 128, H = 32, N = 8192: 400 MB, 132 us at 3.03 TB/s; sequences of 2048 are
//         206 GFLOP, 0.26 ms at 800 TFLOP/s.
// Tricky  As in attention_fwd_sm90.cu, with tiles of 64 keys. Q and dO are left operands of every visit and are kept in
//         registers, as products that also read their left operand from shared memory would be bound by its bandwidth; so
//         their place is free for the next tile of queries from the first visit on. dS K of one visit runs, behind the next
//         one's products, while the threads take its exponentials.
#include "kernels/attention_bwd.cuh"
#include "kernels/attention_sm90.cuh"

namespace irq {
namespace {

using namespace attention_sm90;

constexpr int kKeys = 64, kPlaces = 5;  // keys of a tile; tiles of keys or values in memory
using Keys = KeyTilesOf<kKeys>;
template <int D>
constexpr int kQueryBytes = kComputing* kTileBytes<D>;
template <int D>
constexpr int kSharedBytes = 1024 + 4 * kQueryBytes<D> + kPlaces * kTileBytes<D>;  // Q, dO, o, results, keys and values

struct Shared {
  Sequences table;
  Work work;
  Tickets tickets;
  Ring<1> queries;
  Ring<kPlaces> ring;
  float lse[kRows], never;
};
static_assert(kSharedBytes<128> + sizeof(Shared) + 512 <= 227 * 1024);

template <int D>
__device__ __forceinline__ void copy_everything(const AttentionArgs& a, Shared& shared, uint32_t queries,
                                                uint32_t places, int* queue, int total) {
  const int thread = static_cast<int>(threadIdx.x) % kGroup;
  int index = static_cast<int>(blockIdx.x), copied = 0;
  for (int n = 0;; ++n) {
    shared.queries.wait_empty(n);
    if (index >= total) {
      if (thread == 0) shared.work.head = -1, barrier_arrive(shared.queries.full(n));
      barrier_arrive_after_copies(shared.queries.full(n));
      return cp_async_wait<0>();
    }
    const Work work = find_work<D>(a, shared.table, index);
    int ticket = 0;
    if (thread == 0) {
      shared.work = work;
      barrier_arrive(shared.queries.full(n));
      ticket = shared.tickets.take(queue);
    }
    const int row = work.seq.q_begin + work.first;
#pragma unroll
    for (int g = 0; g < kComputing; ++g) {
      const uint32_t to = queries + g * kTileBytes<D>;
      copy_panels<D, 64>(to, a.q, a.q_stride, work.head * D, row + g * 64, work.seq.q_end);
      copy_panels<D, 64>(to + kQueryBytes<D>, a.dout, a.dout_stride, work.head * D, row + g * 64, work.seq.q_end);
      copy_panels<D, 64>(to + 2 * kQueryBytes<D>, a.o, a.o_stride, work.head * D, row + g * 64, work.seq.q_end);
    }
    const bool valid = row + thread < work.seq.q_end;
    cp_async_4(smem_address(&shared.lse[thread]), a.lse + work.head * a.lse_stride + (valid ? row + thread : 0), valid);
    barrier_arrive_after_copies(shared.queries.full(n));
    const Keys keys(work.seq, min(work.first + kRows, work.seq.queries()));
    for (int t = 0; t < 2 * keys.count; ++t, ++copied) {
      shared.ring.wait_empty(copied);
      copy_panels<D, kKeys>(places + copied % kPlaces * kTileBytes<D>, t % 2 ? a.v : a.k, t % 2 ? a.v_stride : a.k_stride,
                            work.head / a.group * D, keys.first(t / 2), keys.end(t / 2));
      barrier_arrive_after_copies(shared.ring.full(copied));
    }
    index = shared.tickets.tell(queue, ticket, total, n);
  }
}

// A warp's 16 rows of a tile as left operands.
template <int D>
__device__ __forceinline__ void load_operand(uint32_t (&x)[D / 16][4], uint32_t tile, int warp_row) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int kk = 0; kk < D / 16; ++kk)
    ldmatrix_x4(x[kk], tile + kk / 4 * kPanel + panel_byte(warp_row + lane % 16, kk % 4 * 2 + lane / 16));
}
// rowsum(x . y) of this thread's two rows; all four lanes of a row get it.
template <int kTiles>
__device__ __forceinline__ void row_products(float (&sum)[2], const uint32_t (&x)[kTiles][4],
                                             const uint32_t (&y)[kTiles][4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    sum[half] = 0;
#pragma unroll
    for (int kk = 0; kk < kTiles; ++kk)
#pragma unroll
      for (int e = half; e < 4; e += 2) {
        const uint32_t u = x[kk][e], v = y[kk][e];
        sum[half] += __uint_as_float(u << 16) * __uint_as_float(v << 16);
        sum[half] += __uint_as_float(u & 0xffff0000u) * __uint_as_float(v & 0xffff0000u);
      }
    sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 1);
    sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 2);
  }
}

// s = X B^T: started, not waited for. X in registers, B a tile of keys or values.
template <int D>
__device__ __forceinline__ void start_scores(float (&s)[kKeys / 8][4], const uint32_t (&x)[D / 16][4], uint32_t tile) {
#pragma unroll
  for (int kk = 0; kk < D / 16; ++kk)
    wgmma_registers_along(s, x[kk], panel_along(tile + kk / 4 * kPanel + kk % 4 * 32), kk > 0);
  wgmma_commit();
}
// dq += dS K
template <int D>
__device__ __forceinline__ void start_dq(float (&dq)[D / 8][4], const uint32_t (&ds)[kKeys / 16][4], uint32_t tile) {
#pragma unroll
  for (int kk = 0; kk < kKeys / 16; ++kk) wgmma_registers(dq, ds[kk], panel_down(tile + kk * 16 * 128, kPanel));
  wgmma_commit();
}

// Scores -> P in place.
__device__ __forceinline__ void probabilities(float (&s)[kKeys / 8][4], const Keys& keys, int t, int warp_row,
                                              const float (&lse2)[2], float c) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if (keys.limit(t, warp_row) < kKeys) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int limit = keys.limit(t, warp_row + half * 8 + lane / 4) - lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          if (n * 8 + e >= limit) s[n][2 * half + e] = -INFINITY;
    }
  }
#pragma unroll
  for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) s[n][e] = exp2_hardware(s[n][e] * c - lse2[e / 2]);
}
__device__ __forceinline__ void times_difference(float (&s)[kKeys / 8][4], const float (&dp)[kKeys / 8][4],
                                                 const float (&delta)[2]) {
#pragma unroll
  for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) s[n][e] *= dp[n][e] - delta[e / 2];
}

// One tile of queries of a warpgroup; `queries`: its Q, with dO and o behind.
template <int D>
__device__ __forceinline__ void differentiate(const AttentionArgs& a, Shared& shared, const Work& work,
                                              const Keys& keys, uint32_t queries, unsigned char* results,
                                              uint32_t places, int n, int used, bool both) {
  const int thread = static_cast<int>(threadIdx.x), group = thread / kGroup, lane = thread % kWarp;
  const int group_row = thread % kGroup / kWarp * 16, warp_row = work.first + group * 64 + group_row;
  const auto at = [&](int i) { return places + i % kPlaces * kTileBytes<D>; };
  uint32_t q[D / 16][4], dout[D / 16][4], ds[kKeys / 16][4];
  float delta[2], lse2[2], s[kKeys / 8][4], dp[kKeys / 8][4], dq[D / 8][4] = {};
  load_operand<D>(dout, queries + kQueryBytes<D>, group_row);
  load_operand<D>(q, queries + 2 * kQueryBytes<D>, group_row);
  row_products(delta, dout, q);  // q holds o
  load_operand<D>(q, queries, group_row);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = half * 8 + lane / 4;
    lse2[half] = shared.lse[group * 64 + group_row + r] * kLog2E;
    if (lane % 4 == 0 && warp_row + r < work.seq.queries())
      a.delta[work.head * a.delta_stride + work.seq.q_begin + warp_row + r] = delta[half];
  }
  const int head = work.head, first = work.seq.q_begin + warp_row, end = work.seq.q_end;
  operands_are_there(q);
  operands_are_there(dout);
  __syncwarp();
  shared.queries.leave(n);  // `work` may be the next one from here on
  const float c = a.scale * kLog2E;
  if (keys.count > 0) {
    shared.ring.wait_full(used);
    shared.ring.wait_full(used + 1);
    publish_to_products();
    wgmma_fence();
    start_scores<D>(s, q, at(used));
    start_scores<D>(dp, dout, at(used + 1));
    wgmma_wait<0>();
    results_are_there(s);
    results_are_there(dp);
    shared.ring.leave(used + 1);
    probabilities(s, keys, 0, warp_row, lse2, c);
    times_difference(s, dp, delta);
    pack_operand(ds, s);
    for (int t = 1; t < keys.count; ++t) {
      const int k = used + 2 * t, v = k + 1;
      shared.ring.wait_full(k);
      shared.ring.wait_full(v);
      publish_to_products();
      if (both) meet(kFirstTurn + group, kComputing * kGroup);
      operands_are_there(ds);
      wgmma_fence();
      start_scores<D>(s, q, at(k));
      start_scores<D>(dp, dout, at(v));
      start_dq<D>(dq, ds, at(k - 2));
      if (both) let_pass(kFirstTurn + 1 - group, kComputing * kGroup);
      wgmma_wait<2>();
      results_are_there(s);
      probabilities(s, keys, t, warp_row, lse2, c);
      finish_first(s, smem_address(&shared.never));
      wgmma_wait<1>();
      results_are_there(dp);
      shared.ring.leave(v);
      times_difference(s, dp, delta);
      wgmma_wait<0>();
      results_are_there(dq);
      shared.ring.leave(k - 2);
      pack_operand(ds, s);
    }
    const int k = used + 2 * keys.count - 2;
    operands_are_there(ds);
    wgmma_fence();
    start_dq<D>(dq, ds, at(k));
    wgmma_wait<0>();
    results_are_there(dq);
    shared.ring.leave(k);
  }
  store_panels<D>(static_cast<__nv_bfloat16*>(a.dq) + head * D, a.dq_stride, first, end, results, group_row, dq,
                  {a.scale, a.scale});
}

template <int D>
__global__ void __launch_bounds__(kThreads, 1) attention_dq_sm90_kernel(AttentionArgs a, int* queue) {
  extern __shared__ unsigned char shared_memory[];
  __shared__ Shared shared;
  unsigned char* memory = aligned_memory(shared_memory);
  int rows = 0;
  const int group = static_cast<int>(threadIdx.x) / kGroup, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int total = list_sequences(a, shared.table, rows) * a.heads;
  if (threadIdx.x == 0) shared.queries.init(1), shared.ring.init(0);
  __syncthreads();
  if (rows < a.queries)
    for_dead_rows<kThreads>(a, blockIdx.x, gridDim.x, [&](int row) {
      __nv_bfloat16* dq = static_cast<__nv_bfloat16*>(a.dq) + row * a.dq_stride;
      for (int i = lane; i < a.heads * (D / 8); i += kWarp) *reinterpret_cast<uint4*>(dq + i * 8) = uint4{0, 0, 0, 0};
      for (int head = lane; head < a.heads; head += kWarp) a.delta[head * a.delta_stride + row] = 0;
    });
  const uint32_t queries = smem_address(memory), places = queries + 4 * kQueryBytes<D>;
  if (group == kComputing) {
    give_up_registers<kCopyingRegisters>();
    copy_everything<D>(a, shared, queries, places, queue, total);
  } else {
    take_registers<kComputingRegisters>();
    if (group == 1) let_pass(kFirstTurn, kComputing * kGroup);
    for (int n = 0, used = 0;; ++n) {
      shared.queries.wait_full(n);
      const Work work = shared.work;
      if (work.head < 0) break;
      const Keys keys(work.seq, min(work.first + kRows, work.seq.queries()));
      const bool both = work.first + 64 < work.seq.queries();
      if (group == 0 || both) {
        differentiate<D>(a, shared, work, keys, queries + group * kTileBytes<D>,
                         memory + 3 * kQueryBytes<D> + group * kTileBytes<D>, places, n, used, both);
      } else {
        __syncwarp();
        shared.queries.leave(n);
        for (int i = used; i < used + 2 * keys.count; ++i) shared.ring.wait_full(i), shared.ring.leave(i);
      }
      used += 2 * keys.count;
    }
    if (group == 0) meet(kFirstTurn, kComputing * kGroup);  // the turn that group 1 began with
  }
}

template <int D>
void launch(const AttentionArgs& a, int* queue, int sm_count, cudaStream_t stream) {
  const int64_t most = (ceil_div(a.queries, kRows) + a.n_seqs) * a.heads;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(sm_count, most));
  allow_shared_memory(attention_dq_sm90_kernel<D>, kSharedBytes<D>);
  attention_dq_sm90_kernel<D><<<blocks, kThreads, kSharedBytes<D>, stream>>>(a, queue);
  CUDA_LAUNCHED();
}

}  // namespace

void attention_dq_sm90(const AttentionArgs& args, int* queue, int sm_count, cudaStream_t stream) {
  if (args.head_dim == 64) launch<64>(args, queue, sm_count, stream);
  else launch<128>(args, queue, sm_count, stream);
}

}  // namespace irq
