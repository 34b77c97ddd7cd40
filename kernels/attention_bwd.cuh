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

// A shared prefix's keys are seen by all sequences that hang on it: one block would still be visiting them when all others are done.
// So the first tiles (pack() puts prefixes in front) have several blocks, which share the visits where the tile has keys of a prefix.
struct KeyTile {
  int index, part;  // the block's tile of keys; every parts-th visit from `part` on is its own
  int begin, end;   // rows of the buffer
  __device__ KeyTile(const AttentionArgs& a, int block) {
    const int divided = a.split_tiles << a.split_shift;
    index = block < divided ? block >> a.split_shift : block - divided + a.split_tiles;
    part = block < divided ? block & ((1 << a.split_shift) - 1) : 0;
    begin = index * kQueryTile, end = min(begin + kQueryTile, a.keys);
  }
};
// parts, for the whole block: 0 where another one has all visits. In shared memory, so that it costs no register in the main loop.
template <int kThreads>
__device__ inline void find_parts(const AttentionArgs& a, const KeyTile& tile, int& parts) {
  bool shared = false;
  if (tile.index < a.split_tiles) {
    for (int i = threadIdx.x; i < a.n_seqs; i += kThreads) {
      const SeqRange s = load_seq(a, i);
      shared = shared || (s.queries() > 0 && max(s.p_begin, tile.begin) < min(s.p_end, tile.end));
    }
    shared = __syncthreads_or(shared);
  }
  if (threadIdx.x == 0) parts = shared ? 1 << a.split_shift : tile.part == 0 ? 1 : 0;
  __syncthreads();
}

// Where the block is in its visits: for each entry of the list, each query head of the group, each query tile.
struct Visit {
  int entry, head, tile;
  __device__ void next(const Seen* list, int group) {
    if (++tile < list[entry].tiles) return;
    if (++head == group) ++entry, head = 0;
    tile = list[entry].first_tile;
  }
  __device__ void skip(int visits, const Seen* list, int entries, int group) {
    for (int i = 0; i < visits && entry < entries; ++i) next(list, group);
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

// The sums of a tile's parts, in their order, in the block that comes last: true there, and in a block that has all visits.
template <int kThreads, int kCount>
__device__ inline bool add_parts(const AttentionArgs& a, const KeyTile& tile, int parts, float (&dk)[kCount][4],
                                 float (&dv)[kCount][4]) {
  if (parts == 1) return true;
  __shared__ bool last;
  const int slot = blockIdx.y * a.split_tiles + tile.index;
  const auto sums = [&](int part) {
    return reinterpret_cast<float4*>(a.sums) + int64_t{slot * parts + part} * 2 * kCount * kThreads + threadIdx.x;
  };
  float4* mine = sums(tile.part);
#pragma unroll
  for (int n = 0; n < kCount; ++n) {
    __stcg(mine + n * kThreads, float4{dk[n][0], dk[n][1], dk[n][2], dk[n][3]});
    __stcg(mine + (kCount + n) * kThreads, float4{dv[n][0], dv[n][1], dv[n][2], dv[n][3]});
    dk[n][0] = dk[n][1] = dk[n][2] = dk[n][3] = dv[n][0] = dv[n][1] = dv[n][2] = dv[n][3] = 0;
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(a.arrived + slot, 1) == parts - 1;
    if (last) a.arrived[slot] = 0;
  }
  __syncthreads();
  if (!last) return false;
  __threadfence();
  const auto add = [](float(&x)[4], const float4& y) { x[0] += y.x, x[1] += y.y, x[2] += y.z, x[3] += y.w; };
  for (int part = 0; part < parts; ++part) {
    const float4* from = sums(part);
#pragma unroll
    for (int n = 0; n < kCount; ++n)
      add(dk[n], __ldcg(from + n * kThreads)), add(dv[n], __ldcg(from + (kCount + n) * kThreads));
  }
  return true;
}

// Blocks of a head's keys.
unsigned key_tile_blocks(const AttentionArgs& a);

// attention_bwd_sm90.cu: D = 64 and 128, bf16 with aligned rows, on compute capability 9.0.
void attention_bwd_sm90(const AttentionArgs& args, cudaStream_t stream);

}  // namespace irq
