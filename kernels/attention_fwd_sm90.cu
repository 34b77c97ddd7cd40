// What    Forward of causal softmax attention on the warpgroup products of sm_90a, by blocks that stay.
// Math    S = scale * Q K^T;  P = exp(S - max);  o = P V / rowsum(P);  lse = max + ln(rowsum(P)).
// Shapes  q, o (N, H*D), k, v (K, G*D) bf16, rows of 16-byte chunks; lse (H, N) f32; D = 64, 128; at most 512 sequences.
// Cost    FLOPs and bytes as in attention_fwd.cu. D = 128, H = 32, N = 8192: sequences of 128 and 512 are 268 MB, 88 us at
//         3.03 TB/s; 2048 x 4 are 137 GFLOP, 146 with what lies behind the diagonal in 128 x 128 tiles.
// Tricky  A block is two warpgroups that compute, 64 query rows each, and one that only copies: Q of the next tile of queries
//         and tiles of 128 keys, K and V in turn, through a ring of four places. It runs ahead over the end of a tile of
//         queries, so that no block waits for its first tiles but once. The threads that copy also take the next tile of
//         queries from a queue; the order is by sequence, some heads at a time (their K and V should stay in L2), the longest
//         tiles first. Scores of the next tile of keys and P V of this one run while the threads take exponentials.
#include "kernels/attention.cuh"
#include "kernels/sm90.cuh"

namespace irq {
namespace {

constexpr int kGroup = 128, kComputing = 2;  // threads of a warpgroup; warpgroups that compute
constexpr int kThreads = (kComputing + 1) * kGroup;
constexpr int kRows = 64 * kComputing, kKeys = 128;
constexpr int kPlaces = 4, kQueries = 2;  // tiles of keys or values, tiles of queries in shared memory
constexpr int kComputingRegisters = 232, kCopyingRegisters = 40;
constexpr int64_t kL2Share = 16 << 20;  // bytes of K and V that blocks work on at a time
constexpr float kLog2E = 1.4426950408889634f;
using Keys = KeyTilesOf<kKeys>;

constexpr int kQueryPanel = 64 * 128, kKeyPanel = kKeys * 128;  // bytes
template <int D>
constexpr int kGroupBytes = D / 64 * kQueryPanel;  // a warpgroup's queries
template <int D>
constexpr int kQueryBytes = kComputing* kGroupBytes<D>;
template <int D>
constexpr int kPlaceBytes = D / 64 * kKeyPanel;
template <int D>
constexpr int kSharedBytes = 1024 + kQueries * kQueryBytes<D> + kPlaces * kPlaceBytes<D>;

enum Meeting { kEveryone = 0, kCopiers, kFirstTurn, kFirstGroup = kFirstTurn + kComputing };

// A tile of queries of one head; head < 0: there are no more.
struct Work {
  SeqRange seq;
  int first, head;
};

struct Shared {
  SeqRange seqs[kMostSeqsSm90];
  int tile_end[kMostSeqsSm90];  // tiles of queries up to and with this sequence
  Work work[kQueries];
  int next[2];
  uint64_t queries_full[kQueries], queries_empty[kQueries], full[kPlaces], empty[kPlaces];
};
static_assert(kSharedBytes<128> + sizeof(Shared) + 1024 <= 227 * 1024);

// Fills the table of sequences; returns the number of tiles of one head. `rows` gets the rows in any sequence.
__device__ inline int list_sequences(const AttentionArgs& a, Shared& shared, int& rows) {
  int tiles = 0;
  rows = 0;
  for (int chunk = 0; chunk < a.n_seqs; chunk += kThreads) {
    const int i = chunk + static_cast<int>(threadIdx.x);
    const SeqRange seq = i < a.n_seqs ? load_seq(a, i) : SeqRange{};
    int chunk_tiles = 0, chunk_rows = 0;
    const int end = tiles + block_scan<kThreads>((seq.queries() + kRows - 1) / kRows, chunk_tiles);
    block_scan<kThreads>(seq.queries(), chunk_rows);
    if (i < a.n_seqs) shared.seqs[i] = seq, shared.tile_end[i] = end;
    tiles += chunk_tiles, rows += chunk_rows;
  }
  return tiles;
}

template <int D>
__device__ inline Work find_work(const AttentionArgs& a, const Shared& shared, int index) {
  const int x = index / a.heads;
  int low = 0, high = a.n_seqs - 1;  // the first sequence whose tiles end behind x
  while (low < high) {
    const int middle = (low + high) / 2;
    if (shared.tile_end[middle] > x) high = middle;
    else low = middle + 1;
  }
  Work work = {shared.seqs[low], 0, 0};
  const int begin = low > 0 ? shared.tile_end[low - 1] : 0, tiles = shared.tile_end[low] - begin;
  const int64_t head_bytes = int64_t{work.seq.k_end - work.seq.k_begin} * (D * 4) / a.group;
  const int heads = static_cast<int>(max(int64_t{1}, min(int64_t{a.heads}, kL2Share / max(head_bytes, int64_t{1}))));
  const int j = index - begin * a.heads, part = j / (tiles * heads), inside = j - part * tiles * heads;
  const int part_heads = min(heads, a.heads - part * heads), rank = inside / part_heads;
  work.first = (tiles - 1 - rank) * kRows;
  work.head = part * heads + inside - rank * part_heads;
  return work;
}

// Starts copying kTileRows rows from `first` on, of one head, into panels of kTileRows rows; rows from `end` on become zeros.
template <int D, int kTileRows>
__device__ __forceinline__ void copy_panels(uint32_t tile, const void* x, int64_t stride, int column, int first,
                                            int end) {
  constexpr int kChunks = D / 8, kStep = kGroup / kChunks;
  static_assert(kStep % 8 == 0, "a thread's rows have their chunks at the same places");
  const int thread = fresh_thread_index() % kGroup, row = thread / kChunks, chunk = thread % kChunks;
  const __nv_bfloat16* from = static_cast<const __nv_bfloat16*>(x) + (first + row) * stride + column + chunk * 8;
  const uint32_t to = tile + chunk / 8 * (kTileRows * 128) + panel_byte(row, chunk % 8);
#pragma unroll
  for (int i = 0; i < kTileRows; i += kStep) {
    cp_async_16(to + i * 128, from, i < end - first - row);
    from += kStep * stride;  // may end up outside the buffer, where nothing is read
  }
}

// What the threads that copy do: tiles of queries from the queue until there are no more.
template <int D>
__device__ __forceinline__ void copy_everything(const AttentionArgs& a, Shared& shared, uint32_t queries,
                                                uint32_t places, int* queue, int total) {
  const bool leader = threadIdx.x % kGroup == 0;
  int index = static_cast<int>(blockIdx.x), copied = 0;
  for (int n = 0;; ++n) {
    const int buffer = n % kQueries;
    const uint32_t full = smem_address(&shared.queries_full[buffer]);
    barrier_wait(smem_address(&shared.queries_empty[buffer]), n / kQueries + 1);
    if (index >= total) {
      if (leader) shared.work[buffer].head = -1, barrier_arrive(full);
      barrier_arrive_after_copies(full);
      return cp_async_wait<0>();
    }
    const Work work = find_work<D>(a, shared, index);
    int taken = 0;
    if (leader) {
      shared.work[buffer] = work;
      barrier_arrive(full);
      taken = atomicAdd(queue, 1);
    }
    const int kv_head = work.head / a.group, row = work.seq.q_begin + work.first;
#pragma unroll
    for (int g = 0; g < kComputing; ++g)
      copy_panels<D, 64>(queries + buffer * kQueryBytes<D> + g * kGroupBytes<D>, a.q, a.q_stride, work.head * D,
                         row + g * 64, work.seq.q_end);
    barrier_arrive_after_copies(full);
    const Keys keys(work.seq, min(work.first + kRows, work.seq.queries()));
    for (int t = 0; t < 2 * keys.count; ++t, ++copied) {
      const int place = copied % kPlaces;
      barrier_wait(smem_address(&shared.empty[place]), copied / kPlaces + 1);
      copy_panels<D, kKeys>(places + place * kPlaceBytes<D>, t % 2 ? a.v : a.k, t % 2 ? a.v_stride : a.k_stride,
                            kv_head * D, keys.first(t / 2), keys.end(t / 2));
      barrier_arrive_after_copies(smem_address(&shared.full[place]));
    }
    if (leader) {
      if (taken == total - 1) *queue = 0;  // the last block to come: each one that found work leaves empty-handed once
      shared.next[n % 2] = taken + static_cast<int>(gridDim.x);
    }
    meet(kCopiers, kGroup);
    index = shared.next[n % 2];
  }
}

// s = Q K^T: started, not waited for.
template <int D>
__device__ __forceinline__ void start_scores(float (&s)[kKeys / 8][4], uint32_t q_tile, uint32_t k_tile) {
#pragma unroll
  for (int kk = 0; kk < D / 16; ++kk)
    wgmma_panels(s, panel_along(q_tile + kk / 4 * kQueryPanel + kk % 4 * 32),
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

__device__ __forceinline__ void pack_operand(uint32_t (&p)[kKeys / 16][4], const float (&s)[kKeys / 8][4]) {
#pragma unroll
  for (int kk = 0; kk < kKeys / 16; ++kk)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      p[kk][2 * e] = pack_bf16(s[2 * kk + e][0], s[2 * kk + e][1]);
      p[kk][2 * e + 1] = pack_bf16(s[2 * kk + e][2], s[2 * kk + e][3]);
    }
}

// Writes o / sum and lse of a warp's 16 rows; `tile`, its warpgroup's queries, is where they are put in order.
template <int D>
__device__ __forceinline__ void store_results(const AttentionArgs& a, const Work& work, unsigned char* tile,
                                              const float (&o)[D / 8][4], const float (&row_max)[2],
                                              const float (&row_sum)[2]) {
  const int thread = fresh_thread_index(), lane = thread % kWarp, warp_row = thread % kGroup / kWarp * 16;
  const int first = work.first + thread / kGroup * 64 + warp_row, head = work.head;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = row_sum[half];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    const float inverse = sum == 0 ? 0.f : 1 / sum;
    const int r = half * 8 + lane / 4;
    if (lane % 4 == 0 && first + r < work.seq.queries())
      a.lse[head * a.lse_stride + work.seq.q_begin + first + r] = sum == 0 ? 0.f : row_max[half] * a.scale + logf(sum);
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
      *reinterpret_cast<uint32_t*>(tile + n / 8 * kQueryPanel + panel_byte(warp_row + r, n % 8) + lane % 4 * 4) =
          pack_bf16(o[n][2 * half] * inverse, o[n][2 * half + 1] * inverse);
  }
  __syncwarp();
  constexpr int kChunks = D / 8;
  __nv_bfloat16* to = static_cast<__nv_bfloat16*>(a.o) + (work.seq.q_begin + first) * a.o_stride + head * D;
#pragma unroll
  for (int i = lane; i < 16 * kChunks; i += kWarp) {
    const int row = i / kChunks, chunk = i % kChunks;
    if (first + row < work.seq.queries())
      *reinterpret_cast<uint4*>(to + row * a.o_stride + chunk * 8) = *reinterpret_cast<const uint4*>(
          tile + chunk / 8 * kQueryPanel + panel_byte(warp_row + row, chunk % 8));
  }
}

// One tile of queries of a warpgroup. `used`: places of the ring that earlier ones have used.
template <int D, bool kTurns>
__device__ __forceinline__ void attend(const AttentionArgs& a, Shared& shared, const Work& work, const Keys& keys,
                                       unsigned char* tile, uint32_t places, int used, bool both) {
  const int group = static_cast<int>(threadIdx.x) / kGroup, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp_row = work.first + static_cast<int>(threadIdx.x) / kWarp * 16;
  const uint32_t q_tile = smem_address(tile);
  const auto wait_for = [&](int i) { barrier_wait(smem_address(&shared.full[i % kPlaces]), i / kPlaces); };
  const auto leave = [&](int i) {
    if (lane == 0) barrier_arrive(smem_address(&shared.empty[i % kPlaces]));
  };
  const auto at = [&](int i) { return places + i % kPlaces * kPlaceBytes<D>; };
  float s[kKeys / 8][4], o[D / 8][4] = {}, row_max[2] = {-INFINITY, -INFINITY}, row_sum[2] = {}, shrink[2];
  uint32_t p[kKeys / 16][4];
  const float c = a.scale * kLog2E;
  if (keys.count > 0) {
    wait_for(used);
    publish_to_products();
    wgmma_fence();
    start_scores<D>(s, q_tile, at(used));
    wgmma_wait<0>();
    results_are_there(s);
    leave(used);
    mask_scores(s, keys, 0, warp_row);
    online_softmax(s, row_max, row_sum, shrink, c);
    pack_operand(p, s);
    for (int t = 1; t < keys.count; ++t) {
      const int k = used + 2 * t, v = k - 1;
      wait_for(k);
      wait_for(v);
      publish_to_products();
      if (kTurns && both) meet(kFirstTurn + group, kComputing * kGroup);
      operands_are_there(p);
      wgmma_fence();
      start_scores<D>(s, q_tile, at(k));
      start_output<D>(o, p, at(v));
      if (kTurns && both) let_pass(kFirstTurn + 1 - group, kComputing * kGroup);
      wgmma_wait<1>();
      results_are_there(s);
      leave(k);
      mask_scores(s, keys, t, warp_row);
      online_softmax(s, row_max, row_sum, shrink, c);
      finish_first(row_sum[0] + row_sum[1], q_tile);
      wgmma_wait<0>();
      results_are_there(o);
      leave(v);
#pragma unroll
      for (int n = 0; n < D / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) o[n][e] *= shrink[e / 2];
      pack_operand(p, s);
    }
    const int v = used + 2 * keys.count - 1;
    wait_for(v);
    publish_to_products();
    operands_are_there(p);
    wgmma_fence();
    start_output<D>(o, p, at(v));
    wgmma_wait<0>();
    results_are_there(o);
    leave(v);
  }
  meet(kFirstGroup + group, kGroup);  // no warp's products read the queries any more
  store_results<D>(a, work, tile, o, row_max, row_sum);
}

template <int D, bool kTurns>
__global__ void __launch_bounds__(kThreads, 1) attention_fwd_sm90_kernel(AttentionArgs a, int* queue) {
  extern __shared__ unsigned char shared_memory[];  // queries, tiles of keys and values
  __shared__ Shared shared;
  unsigned char* memory = shared_memory + (1024 - smem_address(shared_memory) % 1024) % 1024;
  int rows = 0;
  const int group = static_cast<int>(threadIdx.x) / kGroup, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int total = list_sequences(a, shared, rows) * a.heads;
  if (threadIdx.x == 0) {
    constexpr int kWarps = kComputing * kGroup / kWarp;
    for (int i = 0; i < kQueries; ++i) {
      barrier_init(smem_address(&shared.queries_full[i]), kGroup + 1);
      barrier_init(smem_address(&shared.queries_empty[i]), kWarps);
    }
    for (int i = 0; i < kPlaces; ++i) {
      barrier_init(smem_address(&shared.full[i]), kGroup);
      barrier_init(smem_address(&shared.empty[i]), kWarps);
    }
  }
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
    if (kTurns && group == 1) let_pass(kFirstTurn, kComputing * kGroup);
    int used = 0;
    for (int n = 0;; ++n) {
      const int buffer = n % kQueries;
      barrier_wait(smem_address(&shared.queries_full[buffer]), n / kQueries);
      const Work& work = shared.work[buffer];
      if (work.head < 0) break;
      const Keys keys(work.seq, min(work.first + kRows, work.seq.queries()));
      const bool both = work.first + 64 < work.seq.queries();
      if (group == 0 || both) {
        attend<D, kTurns>(a, shared, work, keys, memory + buffer * kQueryBytes<D> + group * kGroupBytes<D>, places, used,
                          both);
      } else {  // no rows
        for (int i = used; i < used + 2 * keys.count; ++i) {
          barrier_wait(smem_address(&shared.full[i % kPlaces]), i / kPlaces);
          if (lane == 0) barrier_arrive(smem_address(&shared.empty[i % kPlaces]));
        }
      }
      used += 2 * keys.count;
      __syncwarp();
      if (lane == 0) barrier_arrive(smem_address(&shared.queries_empty[buffer]));
    }
    if (kTurns && group == 0) meet(kFirstTurn, kComputing * kGroup);  // what group 1 began with
  }
}

template <int D, bool kTurns>
void launch(const AttentionArgs& a, int* queue, int sm_count, cudaStream_t stream) {
  const int64_t most = (ceil_div(a.queries, kRows) + a.n_seqs) * a.heads;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(sm_count, most));
  allow_shared_memory(attention_fwd_sm90_kernel<D, kTurns>, kSharedBytes<D>);
  attention_fwd_sm90_kernel<D, kTurns><<<blocks, kThreads, kSharedBytes<D>, stream>>>(a, queue);
  CUDA_LAUNCHED();
}

}  // namespace

void attention_fwd_sm90(const AttentionArgs& args, int* queue, int sm_count, cudaStream_t stream) {
  static const bool turns = std::getenv("TURNS") != nullptr;
  if (args.head_dim == 64) turns ? launch<64, true>(args, queue, sm_count, stream) : launch<64, false>(args, queue, sm_count, stream);
  else turns ? launch<128, true>(args, queue, sm_count, stream) : launch<128, false>(args, queue, sm_count, stream);
}

}  // namespace irq
