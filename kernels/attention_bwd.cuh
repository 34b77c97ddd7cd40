// What the two backward kernels of attention share: which sequences see a block's keys, and the order of its visits.
#pragma once
#include "kernels/attention.cuh"

namespace irq {

// Some keys of a block's tile, seen by one sequence: its own keys, or its prefix.
struct Seen {
  int q_begin, q_end;
  int key_begin, key_end;  // key rows of the buffer, clipped to the tile
  int key_lead;  // key row j is seen from query j - key_lead on, counted from q_begin; a prefix: always (kAlways)
  int first_tile, tiles;  // query tiles to visit: [first_tile, tiles) of kQueryTile rows, anchored at q_begin
};
constexpr int kAlways = 1 << 30, kQueryTile = 64;

// The part of sequence i's prefix or own keys that lies in [tile_begin, tile_end); tiles = 0 if none does.
__device__ inline Seen find_seen(const AttentionArgs& a, int i, bool prefix, int tile_begin, int tile_end) {
  if (i >= a.n_seqs) return {};
  const SeqRange s = load_seq(a, i);
  Seen seen = {s.q_begin,
               s.q_end,
               max(tile_begin, prefix ? s.p_begin : s.k_begin),
               min(tile_end, prefix ? s.p_end : s.k_end),
               prefix ? kAlways : s.k_begin + s.lead(),
               0,
               0};
  if (seen.key_begin >= seen.key_end || s.queries() <= 0) return {};
  seen.tiles = (s.queries() + kQueryTile - 1) / kQueryTile;
  seen.first_tile = max(0, seen.key_begin - seen.key_lead) / kQueryTile;
  return seen;
}

// Where the block is in its visits: for each entry of the list, each query head of the group, each query tile.
struct Visit {
  int entry, head, tile;
  __device__ void next(const Seen* list, int group) {
    if (++tile < list[entry].tiles) return;
    if (++head == group) ++entry, head = 0;
    tile = list[entry].first_tile;
  }
};

// The entries of kThreads sequences from `chunk` on, in their order, into `list` (2 kThreads of them at most); the number of them.
// Every thread has left the last chunk's list when it is called.
template <int kThreads>
__device__ inline int list_seen(const AttentionArgs& a, int chunk, int tile_begin, int tile_end, Seen* list) {
  const Seen prefix = find_seen(a, chunk + static_cast<int>(threadIdx.x), true, tile_begin, tile_end);
  const Seen own = find_seen(a, chunk + static_cast<int>(threadIdx.x), false, tile_begin, tile_end);
  const int mine = (prefix.tiles > 0) + (own.tiles > 0);
  int entries = 0;
  const int at = block_scan<kThreads>(mine, entries) - mine;
  if (prefix.tiles > 0) list[at] = prefix;
  if (own.tiles > 0) list[at + mine - 1] = own;
  if (entries > 0) __syncthreads();
  return entries;
}

// attention_bwd_sm90.cu: D = 64 and 128, bf16 with aligned rows, on compute capability 9.0.
void attention_bwd_sm90(const AttentionArgs& args, cudaStream_t stream);

}  // namespace irq
