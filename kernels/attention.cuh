// What the attention kernels share: their arguments, which sequence a block works for, and products of tiles.
#pragma once
#include "kernels/common.cuh"
#include "kernels/sm80.cuh"

namespace irq {

struct AttentionArgs {
  void *o = nullptr, *dq = nullptr, *dk = nullptr, *dv = nullptr;  // (N, H*D), (N, H*D), (K, G*D), (K, G*D)
  const void *q = nullptr, *k = nullptr, *v = nullptr, *dout = nullptr;
  float *lse = nullptr, *delta = nullptr;  // (H, N)
  const int32_t* seqs = nullptr;           // (n_seqs, 6)
  int64_t o_stride = 0, dq_stride = 0, dk_stride = 0, dv_stride = 0, q_stride = 0, k_stride = 0, v_stride = 0,
          dout_stride = 0;
  int64_t lse_stride = 0, delta_stride = 0, seqs_stride = 0;
  int n_seqs = 0, queries = 0, keys = 0, heads = 0, kv_heads = 0, group = 0, head_dim = 0;
  float scale = 0;
  const float *cosine = nullptr, *sine = nullptr;  // (T, D/2), only backward's; null: q and k were not turned
  const int32_t* positions = nullptr;              // (1, N)
  int64_t cosine_stride = 0, sine_stride = 0;
  // Only backward's: the first split_tiles tiles of 64 keys have 2^split_shift blocks each (attention_bwd.cuh).
  float* sums = nullptr;   // (kv_heads, split_tiles, 2^split_shift, 2, 64, D)
  int* arrived = nullptr;  // (kv_heads, split_tiles), zero before and after
  int split_tiles = 0, split_shift = 0;
};
AttentionArgs make_attention_args(Tensor q, Tensor k, Tensor v, Tensor lse, Tensor seqs, int head_dim);
// Whether rows may be read and written 16 bytes at a time.
bool rows_are_aligned(Tensor x);

// attention_simple.cu: any even head_dim up to 256, any stride, F32 or BF16.
constexpr int kMaxSimpleDim = 256;
constexpr float kLog2E = 1.4426950408889634f;
void attention_fwd_simple(const AttentionArgs& args, DType storage, cudaStream_t stream);
void attention_bwd_simple(const AttentionArgs& args, DType storage, cudaStream_t stream);

struct SeqRange {
  int q_begin, q_end, k_begin, k_end, p_begin, p_end;
  __device__ int queries() const { return q_end - q_begin; }
  // Query i (from q_begin) sees own keys [0, i + 1 + lead()); own key j is seen from query j - lead() on.
  __device__ int lead() const { return (k_end - k_begin) - (q_end - q_begin); }
};
__device__ inline SeqRange load_seq(const AttentionArgs& a, int i) {
  const int32_t* s = a.seqs + i * a.seqs_stride;
  return {s[0], s[1], s[2], s[3], s[4], s[5]};
}

// Inclusive sum over the block in thread order; `total` gets the sum over all. Ends with every thread past its reads.
template <int kThreads>
__device__ inline int block_scan(int x, int& total) {
  __shared__ int warp_total[kThreads / kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const int lower = __shfl_up_sync(0xffffffffu, x, offset);
    if (lane >= offset) x += lower;
  }
  if (lane == kWarp - 1) warp_total[warp] = x;
  __syncthreads();
  int before = 0;
  total = 0;
  for (int w = 0; w < kThreads / kWarp; ++w) {
    if (w < warp) before += warp_total[w];
    total += warp_total[w];
  }
  __syncthreads();
  return x + before;
}

// Query tiles are numbered through the sequences in order; the host cannot know their number and launches
// ceil(N / rows) + n_seqs + 1 blocks, an upper bound and one more.
struct QueryTile {
  SeqRange seq;
  int first;  // first query row, counted from q_begin
  bool found;
  int total;  // if not found: the number of tiles
};
// The result stays in shared memory: what a kernel reads from there after its main loop costs no registers during it.
template <int kThreads>
__device__ inline const QueryTile& find_query_tile(const AttentionArgs& a, int rows_per_tile, int index) {
  __shared__ QueryTile result;
  int base = 0;
  for (int chunk = 0; chunk < a.n_seqs; chunk += kThreads) {
    const int i = chunk + threadIdx.x;
    int tiles = 0, total = 0;
    if (i < a.n_seqs)
      tiles = (a.seqs[i * a.seqs_stride + 1] - a.seqs[i * a.seqs_stride] + rows_per_tile - 1) / rows_per_tile;
    const int end = base + block_scan<kThreads>(tiles, total), begin = end - tiles;
    // The last tile of a sequence first: it has the most keys to visit.
    if (index >= begin && index < end) result = {load_seq(a, i), (end - 1 - index) * rows_per_tile, true, 0};
    base += total;
    if (index < base) break;
  }
  if (index >= base && threadIdx.x == 0) result = {{}, 0, false, base};
  __syncthreads();
  return result;
}

// The blocks without a tile look for query rows in no sequence: f(row) is called by a whole warp for each of them.
// Block `part` of `parts` takes its share of the rows.
template <int kThreads, class F>
__device__ inline void for_dead_rows(const AttentionArgs& a, int part, int parts, F&& f) {
  constexpr int kChunk = 256;
  __shared__ unsigned char live[kChunk];
  for (int64_t chunk = int64_t{part} * kChunk; chunk < a.queries; chunk += int64_t{parts} * kChunk) {
    const int first = static_cast<int>(chunk), end = min(a.queries, first + kChunk);
    for (int r = threadIdx.x; r < kChunk; r += kThreads) live[r] = 0;
    __syncthreads();
    int all_live = 0;
    for (int i = threadIdx.x; i < a.n_seqs; i += kThreads) {
      const int low = max(a.seqs[i * a.seqs_stride], first), high = min(a.seqs[i * a.seqs_stride + 1], end);
      if (low == first && high == end) all_live = 1;
      else
        for (int r = low; r < high; ++r) live[r - first] = 1;
    }
    if (!__syncthreads_or(all_live))
      for (int r = threadIdx.x / kWarp; r < end - first; r += kThreads / kWarp)
        if (!live[r]) f(first + r);
    __syncthreads();
  }
}

// The key tiles that a tile of queries visits: all of the prefix, then its own keys up to the last one seen by row_end - 1.
template <int kTileKeys>
struct KeyTilesOf {
  static constexpr int kKeys = kTileKeys;
  int prefix_tiles, count;
  int p_begin, p_end, own_begin, own_end;  // own_begin: where tile 0 would lie if the own tiles were numbered from 0
  int own_limit;                           // query i sees own rows of the buffer below own_limit + i
  __device__ KeyTilesOf(const SeqRange& s, int row_end) : p_begin(s.p_begin), p_end(s.p_end) {
    const int own = min(max(row_end + s.lead(), 0), s.k_end - s.k_begin);
    prefix_tiles = (p_end - p_begin + kKeys - 1) / kKeys;
    count = prefix_tiles + (own + kKeys - 1) / kKeys;
    own_begin = s.k_begin - prefix_tiles * kKeys, own_end = s.k_begin + own, own_limit = s.k_begin + 1 + s.lead();
  }
  __device__ bool prefix(int t) const { return t < prefix_tiles; }
  __device__ int first(int t) const { return (prefix(t) ? p_begin : own_begin) + t * kKeys; }  // row of the buffer
  __device__ int end(int t) const { return prefix(t) ? p_end : own_end; }
  // Query i sees the keys of tile t below this many.
  __device__ int limit(int t, int i) const { return (prefix(t) ? p_end : own_limit + i) - first(t); }
};
using KeyTiles = KeyTilesOf<64>;

// ---- tiles in shared memory ---------------------------------------------------------------------------------------
// A tile is row-major bf16 with 8 elements of padding: the pitch in 16-byte units is odd, so the eight rows that ldmatrix
// reads at once lie in different banks.
template <int D>
constexpr int kPitchBytes = (D + 8) * 2;

// Starts copying rows [first, first + kRows) of one head, x (rows, D) bf16; rows from `end` on become zeros.
template <int D, int kRows, int kThreads>
__device__ __forceinline__ void load_tile(uint32_t tile, const __nv_bfloat16* x, int64_t stride, int first, int end) {
  constexpr int kChunks = D / 8, kLanes = kChunks <= 4   ? 4
                                          : kChunks <= 8 ? 8
                                                         : 16;  // threads of a row, some idle if D = 48
  constexpr int kStep = kThreads / kLanes;
  const int thread = fresh_thread_index(), row = thread / kLanes, chunk = thread % kLanes;
  if (chunk >= kChunks) return;
  const __nv_bfloat16* from = x + (first + row) * stride + chunk * 8;
  const uint32_t to = tile + row * kPitchBytes<D> + chunk * 16;
  const int rows_left = end - first - row;
#pragma unroll
  for (int i = 0; i < kRows; i += kStep) {
    cp_async_16(to + i * kPitchBytes<D>, from, i < rows_left);
    from += kStep * stride;  // may end up outside the buffer, where nothing is read
  }
}

// acc[m] += A[m] B^T for kTiles tiles of 16 rows: A (16 * kTiles, D), B (kN, D) in shared memory, acc in mma's C layout.
template <int D, int kN, int kTiles>
__device__ __forceinline__ void multiply_abt(float (&acc)[kTiles][kN / 8][4], uint32_t a_tile, uint32_t b_tile) {
  const int lane = threadIdx.x % kWarp;
  const uint32_t a_lane = a_tile + (lane % 16) * kPitchBytes<D> + (lane / 16) * 16;
  const uint32_t b_lane = b_tile + (lane / 16 * 8 + lane % 8) * kPitchBytes<D> + (lane / 8 % 2) * 16;
  constexpr int kUnroll = kTiles == 1 ? D / 16 : 2;  // 32 rows a warp need every register
#pragma unroll kUnroll
  for (int kk = 0; kk < D / 16; ++kk) {
    uint32_t a[kTiles][4];
#pragma unroll
    for (int m = 0; m < kTiles; ++m) ldmatrix_x4(a[m], a_lane + m * 16 * kPitchBytes<D> + kk * 32);
#pragma unroll
    for (int n = 0; n < kN / 16; ++n) {
      uint32_t b[4];
      ldmatrix_x4(b, b_lane + n * 16 * kPitchBytes<D> + kk * 32);
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        mma_m16n8k16(acc[m][2 * n], a[m], b[0], b[1]);
        mma_m16n8k16(acc[m][2 * n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

// acc[m] += bf16(P[m]) B: P in registers in mma's C layout (which is also its A layout, two tiles of 8 columns making one
// of 16), B (kK, D) in shared memory.
template <int D, int kK, int kTiles>
__device__ __forceinline__ void multiply_pb(float (&acc)[kTiles][D / 8][4], const float (&p)[kTiles][kK / 8][4],
                                            uint32_t b_tile) {
  const int lane = threadIdx.x % kWarp;
  const uint32_t b_lane = b_tile + (lane % 16) * kPitchBytes<D> + (lane / 16) * 16;
#pragma unroll
  for (int kk = 0; kk < kK / 16; ++kk) {
    uint32_t a[kTiles][4];
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      a[m][0] = pack_bf16(p[m][2 * kk][0], p[m][2 * kk][1]);
      a[m][1] = pack_bf16(p[m][2 * kk][2], p[m][2 * kk][3]);
      a[m][2] = pack_bf16(p[m][2 * kk + 1][0], p[m][2 * kk + 1][1]);
      a[m][3] = pack_bf16(p[m][2 * kk + 1][2], p[m][2 * kk + 1][3]);
    }
#pragma unroll
    for (int n = 0; n < D / 16; ++n) {
      uint32_t b[4];
      ldmatrix_x4_trans(b, b_lane + kk * 16 * kPitchBytes<D> + n * 32);
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        mma_m16n8k16(acc[m][2 * n], a[m], b[0], b[1]);
        mma_m16n8k16(acc[m][2 * n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

// Writes a warp's acc, row g of tile m times scale[m][0] and row g + 8 times scale[m][1], to rows [first, end) of
// x (rows, D), through shared memory that belongs to this warp (its own rows of a tile), so that 16 bytes are stored at once.
template <int D, int kTiles>
__device__ __forceinline__ void store_rows(__nv_bfloat16* x, int64_t stride, int first, int end, unsigned char* staging,
                                           const float (&acc)[kTiles][D / 8][4], const float (&scale)[kTiles][2]) {
  const int lane = threadIdx.x % kWarp;
  __syncwarp();
#pragma unroll
  for (int m = 0; m < kTiles; ++m)
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      unsigned char* at = staging + (m * 16 + lane / 4) * kPitchBytes<D> + n * 16 + lane % 4 * 4;
      *reinterpret_cast<uint32_t*>(at) = pack_bf16(acc[m][n][0] * scale[m][0], acc[m][n][1] * scale[m][0]);
      *reinterpret_cast<uint32_t*>(at + 8 * kPitchBytes<D>) =
          pack_bf16(acc[m][n][2] * scale[m][1], acc[m][n][3] * scale[m][1]);
    }
  __syncwarp();
  constexpr int kChunks = D / 8;
  for (int i = lane; i < kTiles * 16 * kChunks; i += kWarp) {
    const int row = i / kChunks, chunk = i % kChunks;
    if (first + row < end)
      *reinterpret_cast<uint4*>(x + (first + row) * stride + chunk * 8) =
          *reinterpret_cast<const uint4*>(staging + row * kPitchBytes<D> + chunk * 16);
  }
}

// Calls f with head_dim as a compile-time constant if the tensor-core kernels are built for it; false if they are not.
template <class F>
bool dispatch_head_dim(int head_dim, F&& f) {
  switch (head_dim) {
    case 32: f(std::integral_constant<int, 32>{}); return true;
    case 48: f(std::integral_constant<int, 48>{}); return true;
    case 64: f(std::integral_constant<int, 64>{}); return true;
    case 128: f(std::integral_constant<int, 128>{}); return true;
    default: return false;
  }
}

// A product's result (16, 8 kTiles) of a warp, as bf16, is the next one's left operand. For the kernels on sm_90a.
template <int kTiles>
__device__ __forceinline__ void pack_operand(uint32_t (&p)[kTiles / 2][4], const float (&s)[kTiles][4]) {
#pragma unroll
  for (int kk = 0; kk < kTiles / 2; ++kk)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      p[kk][2 * e] = pack_bf16(s[2 * kk + e][0], s[2 * kk + e][1]);
      p[kk][2 * e + 1] = pack_bf16(s[2 * kk + e][2], s[2 * kk + e][3]);
    }
}

// attention_fwd_sm90.cu: D = 64 and 128, bf16 with aligned rows, at most kMostSeqsSm90 sequences, on compute capability 9.0.
// `queue`: an int that is zero before and after.
constexpr int kMostSeqsSm90 = 512;
void attention_fwd_sm90(const AttentionArgs& args, int* queue, int sm_count, cudaStream_t stream);

// A kernel may use more than 48 KB of shared memory only after being told so.
template <class Kernel>
void allow_shared_memory(Kernel kernel, int bytes) {
  CUDA_CHECK(
      cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
}

}  // namespace irq
