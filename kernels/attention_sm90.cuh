// Blocks that stay, on sm_90a: two warpgroups that compute and one that only copies. The one that copies takes tiles of queries
// from a queue and runs ahead over the end of each, so that a block waits for its first tiles but once. Here: the order of the
// tiles, the queue, the places that are filled and left, and how results are stored; attention_fwd_sm90.cu computes.
#pragma once
#include "kernels/attention.cuh"
#include "kernels/sm90.cuh"

namespace irq {
namespace attention_sm90 {

constexpr int kGroup = 128, kComputing = 2;  // threads of a warpgroup; warpgroups that compute
constexpr int kThreads = (kComputing + 1) * kGroup, kComputingWarps = kComputing * kGroup / kWarp;
constexpr int kRows = 64 * kComputing;  // queries of a tile
constexpr int kComputingRegisters = 232, kCopyingRegisters = 40;
constexpr int64_t kL2Share = 16 << 20;  // bytes of keys and values that blocks should work on at a time

enum Meeting { kEveryone = 0, kCopiers, kFirstTurn, kFirstGroup = kFirstTurn + kComputing };

constexpr int kPanel = 64 * 128;  // bytes of 64 rows
template <int D>
constexpr int kTileBytes = D / 64 * kPanel;

// Panels start at multiples of 1024 bytes, dynamic shared memory need not.
__device__ __forceinline__ unsigned char* aligned_memory(unsigned char* memory) {
  return memory + (1024 - smem_address(memory) % 1024) % 1024;
}

// Every sequence, and how many tiles of queries there are up to and with it.
struct Sequences {
  SeqRange seqs[kMostSeqsSm90];
  int tile_end[kMostSeqsSm90];
};
// Fills the table, by all threads of the block; returns the number of tiles of one head. `rows` gets the rows in any sequence.
__device__ inline int list_sequences(const AttentionArgs& a, Sequences& table, int& rows) {
  int tiles = 0;
  rows = 0;
  for (int chunk = 0; chunk < a.n_seqs; chunk += kThreads) {
    const int i = chunk + static_cast<int>(threadIdx.x);
    const SeqRange seq = i < a.n_seqs ? load_seq(a, i) : SeqRange{};
    int chunk_tiles = 0, chunk_rows = 0;
    const int end = tiles + block_scan<kThreads>((seq.queries() + kRows - 1) / kRows, chunk_tiles);
    block_scan<kThreads>(seq.queries(), chunk_rows);
    if (i < a.n_seqs) table.seqs[i] = seq, table.tile_end[i] = end;
    tiles += chunk_tiles, rows += chunk_rows;
  }
  return tiles;
}

// A tile of queries of one head; head < 0: there are no more.
struct Work {
  SeqRange seq;
  int first, head;
};
// The order: by sequence, some heads at a time (their keys and values should stay in L2), the longest tiles first.
template <int D>
__device__ inline Work find_work(const AttentionArgs& a, const Sequences& table, int index) {
  const int x = index / a.heads;
  int low = 0, high = a.n_seqs - 1;  // the first sequence whose tiles end behind x
  while (low < high) {
    const int middle = (low + high) / 2;
    if (table.tile_end[middle] > x) high = middle;
    else low = middle + 1;
  }
  Work work = {table.seqs[low], 0, 0};
  const int begin = low > 0 ? table.tile_end[low - 1] : 0, tiles = table.tile_end[low] - begin;
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

// Places in shared memory that are filled and left in turn. Copying threads arrive at `full`, computing warps at `empty`.
template <int kPlaces>
struct Ring {
  uint64_t full_[kPlaces], empty_[kPlaces];
  __device__ __forceinline__ uint32_t full(int i) const { return smem_address(&full_[i % kPlaces]); }
  __device__ __forceinline__ uint32_t empty(int i) const { return smem_address(&empty_[i % kPlaces]); }
  // `arrivals`: of a filled place, beyond one for each copying thread.
  __device__ void init(int arrivals) {
    for (int i = 0; i < kPlaces; ++i) {
      barrier_init(full(i), kGroup + arrivals);
      barrier_init(empty(i), kComputingWarps);
    }
  }
  __device__ __forceinline__ void wait_full(int i) const { barrier_wait(full(i), i / kPlaces); }
  __device__ __forceinline__ void wait_empty(int i) const { barrier_wait(empty(i), i / kPlaces + 1); }
  // By a whole warp.
  __device__ __forceinline__ void leave(int i) const {
    if (threadIdx.x % kWarp == 0) barrier_arrive(empty(i));
  }
};

// The leader of the copying threads takes a ticket early and tells it the others later. Each block begins with its own number.
// `queue` ends as it began: the last to come of the blocks, which all leave empty-handed once, sets it back.
struct Tickets {
  int next[2];
  __device__ __forceinline__ int take(int* queue) { return atomicAdd(queue, 1); }
  __device__ __forceinline__ int tell(int* queue, int ticket, int total, int n) {
    if (threadIdx.x % kGroup == 0) {
      if (ticket == total - 1) *queue = 0;
      next[n % 2] = ticket + static_cast<int>(gridDim.x);
    }
    meet(kCopiers, kGroup);
    return next[n % 2];
  }
};

// Writes a warp's 16 rows, acc times scale of each half, to rows [first, end) of x (rows, D). `tile`, 64 rows of its
// warpgroup in panels, is where they are put in order; warp_row: which of those rows are the warp's.
template <int D>
__device__ __forceinline__ void store_panels(__nv_bfloat16* x, int64_t stride, int first, int end, unsigned char* tile,
                                             int warp_row, const float (&acc)[D / 8][4], const float (&scale)[2]) {
  const int lane = fresh_thread_index() % kWarp;
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
      *reinterpret_cast<uint32_t*>(tile + n / 8 * kPanel + panel_byte(warp_row + half * 8 + lane / 4, n % 8) +
                                   lane % 4 * 4) =
          pack_bf16(acc[n][2 * half] * scale[half], acc[n][2 * half + 1] * scale[half]);
  __syncwarp();
  constexpr int kChunks = D / 8;
#pragma unroll
  for (int i = lane; i < 16 * kChunks; i += kWarp) {
    const int row = i / kChunks, chunk = i % kChunks;
    if (first + row < end)
      *reinterpret_cast<uint4*>(x + (first + row) * stride + chunk * 8) =
          *reinterpret_cast<const uint4*>(tile + chunk / 8 * kPanel + panel_byte(warp_row + row, chunk % 8));
  }
  __syncwarp();
}

}  // namespace attention_sm90
}  // namespace irq
