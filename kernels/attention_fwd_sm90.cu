// What    Forward of causal softmax attention on the warpgroup products of sm_90a, by blocks that stay.
// Math    S = scale * Q K^T;  P = exp(S - max);  o = P V / rowsum(P);  lse = max + ln(rowsum(P)).
// Shapes  q, o (N, H*D), k, v (K, G*D) bf16, rows of 16-byte chunks; lse (H, N) f32; D = 64, 128; at most 512 sequences.
// Cost    FLOPs and bytes as in attention_fwd.cu. D = 128, H = 32, N = 8192: sequences of 128 and 512 are 268 MB, 88 us at
//         3.03 TB/s (measured: 94 and 117); 2048 x 4 are 137 GFLOP, 146 with what lies behind the diagonal in 128 x 128
//         tiles, measured 276 to 289 us, 475 TFLOP/s and more.
// Tricky  The warpgroups that compute have 64 query rows each and visit tiles of 128 keys, K and V in turn through a ring of four
//         places. P V of one tile of keys runs while the threads take the exponentials of the next one's scores, and the
//         warpgroups take turns in issuing products, so that one computes exponentials during the other's. P is packed when
//         P V is done with its registers. Rows that see no key yet have max = -inf, which must not meet another -inf.
#include "kernels/attention_sm90.cuh"

namespace irq {
namespace {

using namespace attention_sm90;

constexpr int kKeys = 128;                // of a tile
constexpr int kPlaces = 4, kQueries = 2;  // in shared memory: tiles of keys or values, tiles of queries
using Keys = KeyTilesOf<kKeys>;
constexpr int kKeyPanel = kKeys * 128;  // bytes
template <int D>
constexpr int kQueryBytes = kComputing* kTileBytes<D>;
template <int D>
constexpr int kPlaceBytes = D / 64 * kKeyPanel;
template <int D>
constexpr int kSharedBytes = 1024 + kQueries* kQueryBytes<D> + kPlaces* kPlaceBytes<D>;

struct Shared {
  Sequences table;
  Work work[kQueries];
  Tickets tickets;
  Ring<kQueries> queries;
  Ring<kPlaces> ring;
};
static_assert(kSharedBytes<128> + sizeof(Shared) + 1024 <= 227 * 1024);

// What the threads that copy do: tiles of queries from the queue until there are no more.
template <int D>
__device__ __forceinline__ void copy_everything(const AttentionArgs& a, Shared& shared, uint32_t queries,
                                                uint32_t places, int* queue, int total) {
  const bool leader = threadIdx.x % kGroup == 0;
  int index = static_cast<int>(blockIdx.x), copied = 0;
  for (int n = 0;; ++n) {
    const int buffer = n % kQueries;
    shared.queries.wait_empty(n);
    if (index >= total) {
      if (leader) shared.work[buffer].head = -1, barrier_arrive(shared.queries.full(n));
      barrier_arrive_after_copies(shared.queries.full(n));
      return cp_async_wait<0>();
    }
    const Work work = find_work<D>(a, shared.table, index);
    int ticket = 0;
    if (leader) {
      shared.work[buffer] = work;
      barrier_arrive(shared.queries.full(n));
      ticket = shared.tickets.take(queue);
    }
    const int kv_head = work.head / a.group, row = work.seq.q_begin + work.first;
#pragma unroll
    for (int g = 0; g < kComputing; ++g)
      copy_panels<D, 64>(queries + buffer * kQueryBytes<D> + g * kTileBytes<D>, a.q, a.q_stride, work.head * D,
                         row + g * 64, work.seq.q_end);
    barrier_arrive_after_copies(shared.queries.full(n));
    const Keys keys(work.seq, min(work.first + kRows, work.seq.queries()));
    for (int t = 0; t < 2 * keys.count; ++t, ++copied) {
      shared.ring.wait_empty(copied);
      copy_panels<D, kKeys>(places + copied % kPlaces * kPlaceBytes<D>, t % 2 ? a.v : a.k,
                            t % 2 ? a.v_stride : a.k_stride, kv_head * D, keys.first(t / 2), keys.end(t / 2));
      barrier_arrive_after_copies(shared.ring.full(copied));
    }
    index = shared.tickets.tell(queue, ticket, total, n);
  }
}

// s = Q K^T: started, not waited for.
template <int D>
__device__ __forceinline__ void start_scores(float (&s)[kKeys / 8][4], uint32_t q_tile, uint32_t k_tile) {
#pragma unroll
  for (int kk = 0; kk < D / 16; ++kk)
    wgmma_panels(s, panel_along(q_tile + kk / 4 * kPanel + kk % 4 * 32),
                 panel_along(k_tile + kk / 4 * kKeyPanel + kk % 4 * 32), kk > 0);
  wgmma_commit();
}
// o += P V
template <int D>
__device__ __forceinline__ void start_output(float (&o)[D / 8][4], const uint32_t (&p)[kKeys / 16][4],
                                             uint32_t v_tile) {
#pragma unroll
  for (int kk = 0; kk < kKeys / 16; ++kk) wgmma_registers(o, p[kk], panel_down(v_tile + kk * 16 * 128, kKeyPanel));
  wgmma_commit();
}

__device__ __forceinline__ void mask_scores(float (&s)[kKeys / 8][4], const Keys& keys, int t, int warp_row) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if (keys.limit(t, warp_row) >= kKeys) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int limit = keys.limit(t, warp_row + half * 8 + lane / 4) - lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
      if (n * 8 >= limit) s[n][2 * half] = -INFINITY;
      if (n * 8 + 1 >= limit) s[n][2 * half + 1] = -INFINITY;
    }
  }
}

// Scores -> probabilities in place, running max and sum; `shrink`: what o is multiplied by. c = scale * log2(e).
__device__ __forceinline__ void online_softmax(float (&s)[kKeys / 8][4], float (&row_max)[2], float (&row_sum)[2],
                                               float (&shrink)[2], float c) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float largest = row_max[half];
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) largest = fmaxf(largest, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));  // the four lanes of a row
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
    const float shift = largest == -INFINITY ? 0.f : largest * c;
    shrink[half] = exp2_hardware(row_max[half] * c - shift);
    row_max[half] = largest;
    float sum = 0;
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
      for (int e = 2 * half; e < 2 * half + 2; ++e) {
        s[n][e] = exp2_hardware(s[n][e] * c - shift);
        sum += s[n][e];
      }
    row_sum[half] = row_sum[half] * shrink[half] + sum;  // of this lane's columns; the four lanes meet at the end
  }
}

// Writes o / sum and lse of a warp's 16 rows; `tile`: its warpgroup's queries.
template <int D>
__device__ __forceinline__ void store_results(const AttentionArgs& a, const Work& work, unsigned char* tile,
                                              const float (&o)[D / 8][4], const float (&row_max)[2],
                                              const float (&row_sum)[2]) {
  const int thread = fresh_thread_index(), lane = thread % kWarp, warp_row = thread % kGroup / kWarp * 16;
  const int first = work.seq.q_begin + work.first + thread / kGroup * 64 + warp_row, head = work.head;
  float inverse[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = row_sum[half];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    inverse[half] = sum == 0 ? 0.f : 1 / sum;
    const int row = first + half * 8 + lane / 4;
    if (lane % 4 == 0 && row < work.seq.q_end)
      a.lse[head * a.lse_stride + row] = sum == 0 ? 0.f : row_max[half] * a.scale + logf(sum);
  }
  store_panels<D>(static_cast<__nv_bfloat16*>(a.o) + head * D, a.o_stride, first, work.seq.q_end, tile, warp_row, o,
                  inverse);
}

// One tile of queries of a warpgroup. `used`: places of the ring that earlier ones have used; `both`: the other one has rows too.
template <int D>
__device__ __forceinline__ void attend(const AttentionArgs& a, Shared& shared, const Work& work, const Keys& keys,
                                       unsigned char* tile, uint32_t places, int used, bool both) {
  const int group = static_cast<int>(threadIdx.x) / kGroup;
  const int warp_row = work.first + static_cast<int>(threadIdx.x) / kWarp * 16;
  const uint32_t q_tile = smem_address(tile);
  const auto at = [&](int i) { return places + i % kPlaces * kPlaceBytes<D>; };
  float s[kKeys / 8][4], o[D / 8][4] = {}, row_max[2] = {-INFINITY, -INFINITY}, row_sum[2] = {}, shrink[2];
  uint32_t p[kKeys / 16][4];
  const float c = a.scale * kLog2E;
  if (keys.count > 0) {
    shared.ring.wait_full(used);
    publish_to_products();
    wgmma_fence();
    start_scores<D>(s, q_tile, at(used));
    wgmma_wait<0>();
    results_are_there(s);
    shared.ring.leave(used);
    mask_scores(s, keys, 0, warp_row);
    online_softmax(s, row_max, row_sum, shrink, c);
    pack_operand(p, s);
    for (int t = 1; t < keys.count; ++t) {
      const int k = used + 2 * t, v = k - 1;
      shared.ring.wait_full(k);
      shared.ring.wait_full(v);
      publish_to_products();
      if (both) meet(kFirstTurn + group, kComputing * kGroup);
      operands_are_there(p);
      wgmma_fence();
      start_scores<D>(s, q_tile, at(k));
      start_output<D>(o, p, at(v));
      if (both) let_pass(kFirstTurn + 1 - group, kComputing * kGroup);
      wgmma_wait<1>();
      results_are_there(s);
      shared.ring.leave(k);
      mask_scores(s, keys, t, warp_row);
      online_softmax(s, row_max, row_sum, shrink, c);
      finish_first(row_sum[0] + row_sum[1], q_tile);
      wgmma_wait<0>();
      results_are_there(o);
      shared.ring.leave(v);
#pragma unroll
      for (int n = 0; n < D / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) o[n][e] *= shrink[e / 2];
      pack_operand(p, s);
    }
    const int v = used + 2 * keys.count - 1;
    shared.ring.wait_full(v);
    publish_to_products();
    operands_are_there(p);
    wgmma_fence();
    start_output<D>(o, p, at(v));
    wgmma_wait<0>();
    results_are_there(o);
    shared.ring.leave(v);
  }
  meet(kFirstGroup + group, kGroup);  // no warp's products read the queries any more
  store_results<D>(a, work, tile, o, row_max, row_sum);
}

template <int D>
__global__ void __launch_bounds__(kThreads, 1) attention_fwd_sm90_kernel(AttentionArgs a, int* queue) {
  extern __shared__ unsigned char shared_memory[];  // queries, tiles of keys and values
  __shared__ Shared shared;
  unsigned char* memory = aligned_memory(shared_memory);
  int rows = 0;
  const int group = static_cast<int>(threadIdx.x) / kGroup, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int total = list_sequences(a, shared.table, rows) * a.heads;
  if (threadIdx.x == 0) shared.queries.init(1), shared.ring.init(0);
  __syncthreads();
  if (rows < a.queries)
    for_dead_rows<kThreads>(a, blockIdx.x, gridDim.x, [&](int row) {
      __nv_bfloat16* o = static_cast<__nv_bfloat16*>(a.o) + row * a.o_stride;
      for (int i = lane; i < a.heads * (D / 8); i += kWarp) *reinterpret_cast<uint4*>(o + i * 8) = uint4{0, 0, 0, 0};
      for (int head = lane; head < a.heads; head += kWarp) a.lse[head * a.lse_stride + row] = 0;
    });
  const uint32_t places = smem_address(memory) + kQueries * kQueryBytes<D>;
  if (group == kComputing) {
    give_up_registers<kCopyingRegisters>();
    copy_everything<D>(a, shared, smem_address(memory), places, queue, total);
  } else {
    take_registers<kComputingRegisters>();
    if (group == 1) let_pass(kFirstTurn, kComputing * kGroup);
    for (int n = 0, used = 0;; ++n) {
      const int buffer = n % kQueries;
      shared.queries.wait_full(n);
      const Work& work = shared.work[buffer];
      if (work.head < 0) break;
      const Keys keys(work.seq, min(work.first + kRows, work.seq.queries()));
      const bool both = work.first + 64 < work.seq.queries();
      if (group == 0 || both) {
        attend<D>(a, shared, work, keys, memory + buffer * kQueryBytes<D> + group * kTileBytes<D>, places, used, both);
      } else {
        for (int i = used; i < used + 2 * keys.count; ++i) shared.ring.wait_full(i), shared.ring.leave(i);
      }
      used += 2 * keys.count;
      __syncwarp();
      shared.queries.leave(n);
    }
    if (group == 0) meet(kFirstTurn, kComputing * kGroup);  // the turn that group 1 began with
  }
}

template <int D>
void launch(const AttentionArgs& a, int* queue, int sm_count, cudaStream_t stream) {
  const int64_t most = (ceil_div(a.queries, kRows) + a.n_seqs) * a.heads;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(sm_count, most));
  allow_shared_memory(attention_fwd_sm90_kernel<D>, kSharedBytes<D>);
  attention_fwd_sm90_kernel<D><<<blocks, kThreads, kSharedBytes<D>, stream>>>(a, queue);
  CUDA_LAUNCHED();
}

}  // namespace

void attention_fwd_sm90(const AttentionArgs& args, int* queue, int sm_count, cudaStream_t stream) {
  if (args.head_dim == 64) launch<64>(args, queue, sm_count, stream);
  else launch<128>(args, queue, sm_count, stream);
}

}  // namespace irq
