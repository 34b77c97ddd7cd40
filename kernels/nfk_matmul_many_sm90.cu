// What  : y = beta * y + x w_hat^T for 9 to 64 rows of x, straight from the codes, on the warpgroup products of sm_90a.
// Math  : y[m][r] = beta * y[m][r] + sum_c w[r][c] x[m][c], w = bf16(level s1 + bf16(level s2 + bf16(tau_hat))), where s1 + s2 = s_hat are two
//         bf16: two instructions for two weights. Rounding tau_hat by itself adds 2^-9 of it to the 2^-9 of the weight that nfk_dequant's
//         rounding costs. Levels are rounded to bf16 (nfk_pairs.cuh). Sums F32.
// Shapes: x (m, cols), y (m, rows) BF16, m <= 64; w (rows, cols) NF2/3/4 codes with dq8 scales, cols % 256 = 0.
// Cost  : k/8 + 0.03 bytes a weight from DRAM; x from L2 once for each cluster: 66 x 512 KB for 64 x 4096 beside 11008 rows.
// Tricky: a cluster of 1 to 8 thread blocks has up to 256 rows of w and splits their columns, so that x is read from L2 a few times
//         only; the blocks' sums meet in distributed shared memory, in the order of the blocks. A warpgroup has 64 rows. The codes become
//         the left operand in registers, a pair of codes one register, looked up in a table with a copy for each lane; x is the right
//         operand and stays in shared memory. The order of k is free within 64 columns: lane (g, p) has the 16 codes 16p .. 16p+15 of rows
//         g and g+8, so x is permuted on its way: pair i of lane p is word p of 16-byte chunk i. Copies by 4 bytes do that for nothing.
#include "kernels/dependent_launch.cuh"
#include "kernels/nfk_matmul_share.cuh"
#include "kernels/sm90.cuh"

namespace irq {
namespace {

// Four warpgroups multiply, a fifth copies. The launch gives each thread 96 registers.
constexpr int kGroups = 4, kWarps = 4 * kGroups, kThreads = kWarps * kWarp, kCopiers = 128,
              kCopyingWarps = kCopiers / kWarp;
constexpr int kMultiplierRegisters = 104, kCopierRegisters = 64;
static_assert(kMultiplierRegisters * kThreads + kCopierRegisters * kCopiers <= 96 * (kThreads + kCopiers));
constexpr int kTileRows = 64;  // of a warpgroup
constexpr int kChunk = 2;      // blocks of 64 columns in a stage
constexpr int kMostCluster = 8;
constexpr int stages(int sets) { return sets == 8 ? 4 : 6; }

struct Args {
  PackedView q;
  const __nv_bfloat16* x;
  int64_t x_stride;
  __nv_bfloat16* y;
  int64_t y_stride;
  int m_count, blocks;
  int cluster, tiles;       // thread blocks of a cluster; warpgroups with rows
  int quads, more_quads;    // of rows: of each cluster; the first more_quads have one more
  int chunks, more_chunks;  // of each thread block, likewise
  bool whole_quads;         // y takes 8 bytes at once
  float beta, unit;
  ShareLayout at;
  int barriers, ring, codes_in_stage, stage_bytes;
  float level[16];  // scaled
};

// Codes of a chunk in shared memory: eight rows start in different banks.
template <int kBits>
struct StageShape {
  static constexpr int kBlockBytes = kBlock / 8 * kBits, kPitch = kChunk * kBlockBytes, kUnits = kPitch / 16;
  __device__ __forceinline__ static int turned(int row) {
    return kBits == 4 ? row >> 1 & 1 : kBits == 2 ? row >> 2 & 1 : 0;
  }
  __device__ __forceinline__ static int place(int row, int unit) { return unit ^ turned(row) * (kUnits / 2); }
  __device__ __forceinline__ static int block_place(int row, int p) {
    return turned(row) * kBlockBytes + p * 2 * kBits;
  }
  __device__ __forceinline__ static uint32_t block(uint32_t first, int j) {
    return kBits == 3 ? first + j * kBlockBytes : first ^ j * kBlockBytes;
  }
};

__device__ __forceinline__ uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;\n" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
// All threads of the cluster that have not left; what they wrote to shared memory before is there afterwards.
__device__ __forceinline__ void meet_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;\n" ::: "memory");
}
// The same where nothing was written.
__device__ __forceinline__ void meet_cluster_again() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.acquire.aligned;\n" ::: "memory");
}
// From the shared memory of thread block `rank` of the cluster.
__device__ __forceinline__ float4 load_cluster_128(uint32_t shared, int rank) {
  float4 x;
  asm volatile(
      "{\n.reg .u32 there;\nmapa.shared::cluster.u32 there, %4, %5;\n"
      "ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [there];\n}\n"
      : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
      : "r"(shared), "r"(rank)
      : "memory");
  return x;
}

// kSets: of eight rows of x.
template <int kBits, int kSets>
struct Block {
  using S = StageShape<kBits>;
  static constexpr int kTokens = kSets * 8, kStages = stages(kSets);
  static constexpr int kPanel = kTokens * 128;  // bytes of x in a block of 64 columns
  const Args& a;
  const uint32_t window;  // where this thread block's shared memory begins: in a cluster, its rank is in the address
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, p = lane % 4;
  const int number = static_cast<int>(blockIdx.x) / a.cluster, rank = static_cast<int>(blockIdx.x) % a.cluster;
  const int row0 = 4 * (number * a.quads + min(number, a.more_quads));
  const int quads = a.quads + (number < a.more_quads ? 1 : 0);
  const int rows = min(4 * quads, static_cast<int>(a.q.rows) - row0);
  const int chunk0 = rank * a.chunks + min(rank, a.more_chunks), chunks = a.chunks + (rank < a.more_chunks ? 1 : 0);
  const Share<kWarps> share{a.q, a.at, a.blocks, rows, row0};

  // Starts copying the scale codes (or tau codes) of this block's columns, in words: the first may begin before them.
  __device__ __forceinline__ void copy_scale_codes(const uint8_t* codes, uint32_t to) const {
    const int word0 = chunk0 * kChunk / 4, words = ((chunk0 + chunks) * kChunk + 3) / 4 - word0;
    const uint8_t* from = codes + static_cast<int64_t>(row0) * a.blocks + word0 * 4;
#pragma unroll 1
    for (int r = threadIdx.x / 16; r < rows; r += (kThreads + kCopiers) / 16)
#pragma unroll 1
      for (int w = threadIdx.x % 16; w < words; w += 16)
        cp_async_4(to + r * a.at.pitch + w * 4, from + r * a.blocks + w * 4, true);
  }
  // And of their factors. The places of block `block` of row `row`.
  __device__ __forceinline__ ShareScales copy_scales(int row, int block) const {
    const int64_t block0 = static_cast<int64_t>(row0) * a.blocks, group0 = block0 / kScaleGroup;
    const int before = static_cast<int>(block0 % kScaleGroup), first = chunk0 * kChunk;
    copy_scale_codes(a.q.scale_codes, window + a.at.scales);
    if (a.q.tau_codes) copy_scale_codes(a.q.tau_codes, window + a.at.shifts);
    const int count = (before + rows * a.blocks - 1) / kScaleGroup + 1;
    const uint32_t groups = window + a.at.groups;
#pragma unroll 1
    for (int i = threadIdx.x; i < count; i += kThreads + kCopiers) {  // a shift's factor is 0 if there are none
      cp_async_4(groups + i * 8, a.q.scale_groups + group0 + i, true);
      cp_async_4(groups + i * 8 + 4, a.q.tau_codes ? a.q.tau_groups + group0 + i : a.q.scale_groups,
                 a.q.tau_codes != nullptr);
    }
    const uint32_t place = row * a.at.pitch + first % 4 + block;
    return {kept(window + a.at.scales + place), kept(window + a.at.shifts + place),
            kept(before + row * a.blocks + first + block)};
  }

  // Of a stage: all copies are there; all products of it are done.
  __device__ __forceinline__ uint32_t full(int stage) const { return window + a.barriers + stage * 16; }
  __device__ __forceinline__ uint32_t empty(int stage) const { return full(stage) + 8; }

  // By a warpgroup of its own: all chunks of all rows of w and of x. Rows past the end stay what they were in shared memory, and
  // so do not count.
  __device__ __forceinline__ void copy() const {
    constexpr int kRowsAtOnce = kCopiers / S::kUnits;
    const int thread = threadIdx.x - kThreads, copier = thread / kWarp;
    const uint32_t row_bytes = a.blocks * S::kBlockBytes;
    const int first = thread / S::kUnits, unit = thread % S::kUnits;
    const uint8_t* codes =
        a.q.codes + (static_cast<int64_t>(row0) + first) * row_bytes + chunk0 * S::kPitch + unit * 16;
    const uint32_t codes_to = a.codes_in_stage + first * S::kPitch + S::place(first, unit) * 16;
    const int row_count = first < kRowsAtOnce ? rows - first : 0;
    const __nv_bfloat16* x = a.x + copier * a.x_stride + chunk0 * (kChunk * kBlock) + lane * 2;
    const uint32_t x_to = copier * 128 + (lane % 8 ^ copier) * 16 + lane / 8 * 4;
    const int tokens = a.m_count - copier;
    int stage = 0, round = 0;
    uint32_t to = window + a.ring;
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk, codes += S::kPitch, x += kChunk * kBlock) {
      barrier_wait(empty(stage), round + 1);
      const uint8_t* from = codes;
      uint32_t place = to + codes_to;
#pragma unroll 4
      for (int r = 0; r < row_count;
           r += kRowsAtOnce, from += kRowsAtOnce * row_bytes, place += kRowsAtOnce * S::kPitch)
        cp_async_16(place, from, true);
      const __nv_bfloat16* token = x;
#pragma unroll
      for (int m = 0; m < kTokens; m += kCopyingWarps, token += kCopyingWarps * a.x_stride) {
        if (m >= tokens) break;
        const uint32_t row =
            (to + x_to + m * 128) ^ (m % 8) * 16;  // the chunk of 16 bytes has changed places with another
#pragma unroll
        for (int j = 0; j < kChunk; ++j) cp_async_4(row + j * kPanel, token + j * kBlock, true);
      }
      barrier_arrive_after_copies(full(stage));
      to += a.stage_bytes;
      if (++stage == kStages) stage = 0, ++round, to = window + a.ring;
    }
  }

  // The weights of 16 rows in a block of 64 columns as operands. scale: of rows g and g + 8, twice the larger part, twice the rest.
  __device__ __forceinline__ void dequantize(uint32_t (&w)[4][4], uint32_t codes, uint32_t column,
                                             const uint32_t (&large)[2], const uint32_t (&small)[2],
                                             const uint32_t (&shift)[2]) const {
    const Codes<kBits> now[2] = {Codes<kBits>(codes), Codes<kBits>(codes + 8 * S::kPitch)};
    const auto weights = [&](int r, uint32_t place) {
      const uint32_t levels = share_levels(place);
      return fma_bf16x2(levels, large[r], fma_bf16x2(levels, small[r], shift[r]));
    };
    const auto step = [&](auto s) {
      constexpr int i = 2 * s.value;
      w[s.value][0] = weights(0, now[0].template wide_address<i>(column));
      w[s.value][1] = weights(1, now[1].template wide_address<i>(column));
      w[s.value][2] = weights(0, now[0].template wide_address<i + 1>(column));
      w[s.value][3] = weights(1, now[1].template wide_address<i + 1>(column));
    };
    step(std::integral_constant<int, 0>{});
    step(std::integral_constant<int, 1>{});
    step(std::integral_constant<int, 2>{});
    step(std::integral_constant<int, 3>{});
  }

  // A block's scale as two bf16, the larger part in the lower half, and its shift twice.
  struct Scales {
    uint32_t scale, shift;
  };
  // Lane p decodes block p / 2 of row g + 8 (p % 2); the places move on to the next chunk.
  __device__ __forceinline__ Scales decode(ShareScales& at, uint32_t column, float offset) const {
    const auto entry = [&](uint32_t codes) { return share_map(load_shared_8(codes) * 256u + column); };
    const uint2 factor = load_shared_64(window + a.at.groups + at.group / kScaleGroup * 8);
    const float s_hat = __fadd_rn(__fmul_rn(entry(at.scales), __uint_as_float(factor.x)), offset),
                scale = s_hat * a.unit;
    const float shift = __fmul_rn(entry(at.shifts), __uint_as_float(factor.y));
    at.scales += kChunk, at.shifts += kChunk, at.group += kChunk;
    const float large = __uint_as_float(pack_bf16(scale, scale) << 16);
    return {pack_bf16(large, scale - large), pack_bf16(shift, shift)};
  }

  // Block j of a chunk of this warpgroup's rows; its products may still run afterwards. x: how products are told of it.
  template <int j>
  __device__ __forceinline__ void multiply(float (&sum)[kSets][4], uint32_t (&w)[4][4], uint32_t codes, uint32_t x,
                                           uint32_t column, const Scales& scales) const {
    uint32_t large[2], small[2], shift[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int from = (lane & ~3) + 2 * j + r;
      const uint32_t both = __shfl_sync(kFullWarp, scales.scale, from);
      large[r] = __byte_perm(both, 0, 0x1010), small[r] = __byte_perm(both, 0, 0x3232);
      shift[r] = __shfl_sync(kFullWarp, scales.shift, from);
    }
    dequantize(w, S::block(codes, j), column, large, small, shift);
    operands_are_there(w);
    wgmma_fence();
    constexpr uint64_t kHigh = (kPanelSwizzle | kPanelGroup) >> 32 << 32;
#pragma unroll
    for (int s = 0; s < 4; ++s) wgmma_registers<false>(sum, w[s], kHigh | (x + (j * kPanel + s * 32) / 16));
    wgmma_commit();
  }

  __device__ __forceinline__ void multiply_all(float (&sum)[kSets][4], ShareScales at, float offset) const {
    const uint32_t column = kept(window + lane * 4);
    const uint32_t codes =
        kept(window + a.ring + a.codes_in_stage + (warp * 16 + g) * S::kPitch + S::block_place(g, p));
    const uint32_t x = static_cast<uint32_t>(panel_along(window + a.ring));
    uint32_t w[kChunk][4][4];
    Scales scales = decode(at, column, offset);
    int stage = 0, round = 0, before = kStages - 1;
    uint32_t begin = 0;  // of the stage
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
      barrier_wait(full(stage), round);
      publish_to_products();
      wgmma_wait<1>();  // the products before the last have read their registers
      multiply<0>(sum, w[0], codes + begin, x + begin / 16, column, scales);
      const Scales after = decode(at, column, offset);  // behind the last one: not used
      wgmma_wait<1>();                                  // all products of the chunk before are done
      if (lane == 0 && chunk > 0) barrier_arrive(empty(before));
      multiply<1>(sum, w[1], codes + begin, x + begin / 16, column, scales);
      scales = after;
      before = stage, begin += a.stage_bytes;
      if (++stage == kStages) stage = 0, begin = 0, ++round;
    }
    wgmma_wait<0>();
    results_are_there(sum);
  }

  // Sums lie token by token where the stages were. Each thread block of a cluster adds up its part of the rows.
  __device__ __forceinline__ void finish(float (&sum)[kSets][4], bool busy) const {
    const int pitch = (a.tiles * kTileRows + 4) * 4;  // four lanes, eight rows: 32 banks
    meet(1, kThreads);
    if (busy) {
      const uint32_t to = window + a.ring + (warp * 16 + g) * 4 + 2 * p * pitch;
#pragma unroll
      for (int k = 0; k < kSets; ++k)
#pragma unroll
        for (int c = 0; c < 4; ++c)
          store_shared_32(to + (8 * k + c % 2) * pitch + c / 2 * 32, __float_as_uint(sum[k][c]));
    }
    meet_cluster();
    const int mine = (quads + a.cluster - 1) / a.cluster, first = rank * mine, count = min(mine, quads - first);
#pragma unroll 1
    for (int i = threadIdx.x; i < a.m_count * count; i += kThreads) {
      const int m = i / count, row = 4 * (first + i - m * count);
      float4 part[kMostCluster];
#pragma unroll
      for (int k = 0; k < kMostCluster; ++k)
        part[k] = k < a.cluster ? load_cluster_128(window + a.ring + m * pitch + row * 4, k) : float4{};
      float4 total = part[0];
#pragma unroll
      for (int k = 1; k < kMostCluster; ++k)
        total.x += part[k].x, total.y += part[k].y, total.z += part[k].z, total.w += part[k].w;
      store_quad(a.y + m * a.y_stride + row0 + row, total, rows - row);
    }
    meet_cluster_again();  // nobody leaves while others read
  }
  __device__ __forceinline__ void store_quad(__nv_bfloat16* y, const float4& total, int live) const {
    if (a.beta == 0.0f && a.whole_quads) {
      *reinterpret_cast<uint2*>(y) = {pack_bf16(total.x, total.y), pack_bf16(total.z, total.w)};
      return;
    }
    const float value[4] = {total.x, total.y, total.z, total.w};
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (e < live)
        y[e] = __float2bfloat16_rn(a.beta == 0.0f ? value[e] : fmaf(a.beta, __bfloat162float(y[e]), value[e]));
  }

  __device__ __forceinline__ void run() const {
    const bool copies = warp >= kWarps, busy = !copies && warp / 4 * kTileRows < rows;
    const auto entries = share.load_entries();
    const float offset = __ldg(a.q.scale_offset);
    const ShareScales at = copy_scales(warp * 16 + g + 8 * (p % 2), p / 2);
    cp_async_commit();
    if (threadIdx.x == 0)
      for (int i = 0; i < kStages; ++i) barrier_init(full(i), kCopiers), barrier_init(empty(i), a.tiles * 4);
    let_next_kernel_begin();
    wait_for_previous_kernel();  // x is its work; all before was on weights
    __syncthreads();
    if (copies) {
      give_up_registers<kCopierRegisters>();
      cp_async_wait<0>();
      let_pass(2, kThreads + kCopiers);
      copy();
    } else {
      take_registers<kMultiplierRegisters>();
      share.template fill_table<kBits>(entries, a.level, window);
      cp_async_wait<0>();
      meet(2, kThreads + kCopiers);
      float sum[kSets][4] = {};
      if (busy) multiply_all(sum, at, offset);
      finish(sum, busy);
    }
  }
};

template <int kBits, int kSets>
__global__ void __launch_bounds__(kThreads + kCopiers, 1) many_sm90_kernel(const __grid_constant__ Args a) {
  extern __shared__ __align__(16) char memory[];
  const uint32_t begin = smem_address(memory), window = begin & 0xff000000u;
  if (begin - window > kShareTable) __trap();
  Block<kBits, kSets>{a, window}.run();
}

struct Launch {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute attributes[2]{};
  Launch(int64_t grid, int cluster, int64_t shared_bytes, cudaStream_t stream) {
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = dim3(static_cast<unsigned>(grid)), config.blockDim = dim3(kThreads + kCopiers);
    config.dynamicSmemBytes = static_cast<size_t>(shared_bytes), config.stream = stream;
    config.attrs = attributes, config.numAttrs = 2;
  }
};

// How many clusters of this size the device runs at once: its multiprocessors come in groups that clusters do not cross.
template <int kBits, int kSets>
int most_clusters(int cluster, int64_t shared_bytes) {
  const Launch launch(cluster, cluster, shared_bytes, nullptr);
  int count = 0;
  CUDA_CHECK(cudaOccupancyMaxActiveClusters(&count, many_sm90_kernel<kBits, kSets>, &launch.config));
  return count;
}

// Deals rows to clusters of `cluster` thread blocks; returns the time of a thread block, roughly, in cycles; 0: they do not fit.
int64_t deal(Args& a, int cluster, int64_t clusters, int tokens) {
  const int64_t quads = ceil_div(a.q.rows, 4), chunks = a.blocks / kChunk;
  clusters = std::min(clusters, quads);
  if (clusters == 0 || chunks < cluster) return 0;
  a.cluster = cluster;
  a.quads = static_cast<int>(quads / clusters), a.more_quads = static_cast<int>(quads % clusters);
  a.chunks = static_cast<int>(chunks / cluster), a.more_chunks = static_cast<int>(chunks % cluster);
  a.tiles = static_cast<int>(ceil_div(ceil_div(quads, clusters) * 4, kTileRows));
  if (a.tiles > kGroups) return 0;
  return ceil_div(chunks, cluster) * (300 * a.tiles + 10 * tokens + 300);
}

template <int kBits, int kSets>
bool launch(Args& a, int64_t shared_bytes, cudaStream_t stream) {
  using S = StageShape<kBits>;
  const auto kernel = many_sm90_kernel<kBits, kSets>;
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
  static const std::array<int, 4> clusters = {
      most_clusters<kBits, kSets>(1, shared_bytes), most_clusters<kBits, kSets>(2, shared_bytes),
      most_clusters<kBits, kSets>(4, shared_bytes), most_clusters<kBits, kSets>(8, shared_bytes)};
  int best = -1;
  int64_t least = 0, grid = 0;
  for (int i = 0; i < 4; ++i)
    if (const int64_t time = deal(a, 1 << i, clusters[i], 8 * kSets); time && (best < 0 || time < least))
      best = i, least = time;
  if (best < 0) return false;
  deal(a, 1 << best, clusters[best], 8 * kSets);
  grid = std::min<int64_t>(clusters[best], ceil_div(a.q.rows, 4)) << best;

  const int rows = a.tiles * kTileRows, words = (a.chunks + 1) * kChunk / 4 + 2;
  int64_t end = kShareTable + kShareTableBytes;
  const auto take = [&](int64_t bytes) {
    const int64_t begin = end;
    end += ceil_div(bytes, 1024) * 1024;  // as the panels of x want it
    return static_cast<int>(begin);
  };
  a.at.pitch = (words | 1) * 4;  // sixteen rows start in different banks
  a.at.scales = take(rows * a.at.pitch + 16), a.at.shifts = a.q.tau_codes ? take(rows * a.at.pitch + 16) : a.at.scales;
  a.at.groups = take((int64_t{rows} * a.blocks / kScaleGroup + 2) * 8);
  a.barriers = take(stages(kSets) * 16);
  a.codes_in_stage = kChunk * kSets * 8 * 128;
  a.stage_bytes = static_cast<int>(ceil_div(a.codes_in_stage + rows * S::kPitch, 1024) * 1024);
  a.ring = take(std::max<int64_t>(stages(kSets) * a.stage_bytes, int64_t{kSets} * 8 * (rows + 4) * 4));
  if (end > shared_bytes) return false;
  const Launch how(grid, a.cluster, end, stream);
  CUDA_CHECK(cudaLaunchKernelEx(&how.config, kernel, a));
  CUDA_LAUNCHED();
  return true;
}

}  // namespace

bool nfk_matmul_many_sm90(__nv_bfloat16* y, int64_t y_stride, const __nv_bfloat16* x, int64_t x_stride,
                          const PackedView& q, int bits, int m, float beta, int64_t shared_bytes, cudaStream_t stream) {
  if (m < 1 || m > kManyTokens || !share_takes(q) || !share_aligned(x) || x_stride % 8 != 0) return false;
  Args a{};
  a.q = q, a.x = x, a.x_stride = x_stride, a.y = y, a.y_stride = y_stride, a.m_count = m, a.beta = beta;
  a.whole_quads = reinterpret_cast<uintptr_t>(y) % 8 == 0 && y_stride % 4 == 0 && q.rows % 4 == 0;
  a.blocks = static_cast<int>(q.cols / kBlock);
  a.unit = 1.0f / kLevelScale[bits];
  for (int i = 0; i < 1 << bits; ++i) a.level[i] = nf_codebook(bits).level[i] * kLevelScale[bits];
  bool done = false;
  dispatch_bits(bits, [&](auto k) {
    if (m <= 16) done = launch<k.value, 2>(a, shared_bytes, stream);
    else if (m <= 32) done = launch<k.value, 4>(a, shared_bytes, stream);
    else done = launch<k.value, 8>(a, shared_bytes, stream);
  });
  return done;
}

}  // namespace irq
