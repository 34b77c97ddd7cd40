// What  : y = beta * y + x w_hat^T for a few rows of x (decoding), straight from the codes, by tensor cores.
// Math  : y[m][r] = beta * y[m][r] + sum_b (s_b sum_{c in b} level x[m][c] + tau_b sum_{c in b} x[m][c]) over the blocks b of row r.
//         Levels are rounded to bf16 (relative error 8e-4 rms for NF4, as that of a weight rounded to bf16: 1.1e-3), x is bf16
//         as it comes; all sums, scales and shifts are F32.
// Shapes: x (m, cols), y (m, rows) BF16, m <= 16; w (rows, cols) NF2/3/4 codes, cols % 64 = 0.
// Cost  : k/8 + 0.03 bytes per weight: 45 M weights (11008 x 4096) NF4 are 24 MB = 8.6 us at 2.8 TB/s, plus 2 to 4 of launch,
//         first loads and tail. About 3.6 instructions per weight (up to M = 8): 6 us of issuing. Every 16 rows of w read x
//         again, from L1 or L2: M / 4 times the bytes of the codes, which decides above M = 4.
// Tricky: the codes are the A operand (16 rows of w), x is B (8 rows of x per tile), and the order of k within a block is free:
//         lane (g, p) of a warp holds the 16 codes 16p .. 16p+15 of row g and of row g+8, so a pair of codes (a byte of NF4) is
//         one A register, looked up in a table of all pairs that has a copy for each lane: no bank conflicts, one access for
//         two weights. The four lanes of a row hold one block together, so its scale can wait until after the product.
//         Block sums of x come from the same tensor cores: a product with ones. Eight warps share 16 rows, each takes every
//         eighth chunk of 256 columns. A matrix of 4096 columns gives a warp two chunks: latency is everything, so codes are
//         copied to shared memory three chunks ahead, x and the scales are loaded one step ahead, and all of it is under way
//         before the table is made. Partial sums are added in a fixed order.
#include "kernels/nfk_matmul.cuh"
#include "kernels/nfk_pairs.cuh"

namespace irq {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarp;
constexpr int kRows = 16;   // of w, per thread block
constexpr int kChunk = 4;   // blocks: a lane of a row's four decodes the scale of one
constexpr int kTile = 8;    // rows of x
constexpr int kStages = 3;  // chunks of codes in shared memory
constexpr uint32_t kOnes = 0x3f803f80u;

// A block's scale and shift of each of a lane's two rows, loaded but not yet decoded. kIcq: double-quantized scales and a
// shift, known when compiling; otherwise q says which there are.
template <bool kIcq>
struct RawScales {
  uint32_t scale_code[2], tau_code[2];
  float scale_group[2], tau_group[2];
  __device__ __forceinline__ void load(const PackedView& q, const uint32_t (&row)[2], int index) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const uint32_t block = row[r] + index;
      if (!kIcq && q.scales) {
        scale_group[r] = __ldg(q.scales + block);
      } else {
        scale_code[r] = __ldg(q.scale_codes + block);
        scale_group[r] = __ldg(q.scale_groups + block / kScaleGroup);
      }
      if (kIcq || q.tau_codes) {
        tau_code[r] = __ldg(q.tau_codes + block);
        tau_group[r] = __ldg(q.tau_groups + block / kScaleGroup);
      }
    }
  }
  __device__ __forceinline__ float scale(const PackedView& q, int r, const float* map, float offset) const {
    if (!kIcq && q.scales) return scale_group[r];
    return __fadd_rn(__fmul_rn(map[scale_code[r]], scale_group[r]), offset);
  }
  __device__ __forceinline__ float tau(const PackedView& q, int r, const float* map) const {
    if (!kIcq && !q.tau_codes) return 0.0f;
    return __fmul_rn(map[tau_code[r]], tau_group[r]);
  }
};

template <int kBits>
struct Shape {
  static constexpr int kPairs = 1 << (2 * kBits);
  static constexpr int kBlockBytes = kBlock / 8 * kBits, kChunkBytes = kChunk * kBlockBytes;
  static constexpr int kPieces = kChunkBytes / 16;  // 16-byte pieces of a row of a chunk
  static constexpr int kPitch =
      kChunkBytes + (kBits == 4 ? 32 : 16);  // of a row in shared memory: rows start in different banks
};
template <int kBits, int kTiles>
struct BlockMemory {
  uint32_t table[Shape<kBits>::kPairs][kWarp];  // [pair][lane]: two bf16 levels, the first code's in the lower half
  float map[256];
  union {
    uint8_t codes[kWarps][kStages][kRows][Shape<kBits>::kPitch];
    float partial[kWarps][kRows][kTiles * kTile + 1];
  };
};

// Starts copying the warp's rows of a chunk, as far as blocks exist.
template <int kBits>
__device__ __forceinline__ void copy_codes(uint32_t to, const PackedView& q, uint32_t row0, int chunk, int blocks,
                                           int lane) {
  using S = Shape<kBits>;
  const int bytes = (blocks - chunk * kChunk) * S::kBlockBytes;  // to the end of the row
  const uint64_t row_bytes = static_cast<uint64_t>(blocks) * S::kBlockBytes;
  const uint8_t* from = q.codes + static_cast<uint64_t>(chunk) * S::kChunkBytes;
#pragma unroll
  for (int i = lane; i < kRows * S::kPieces; i += kWarp) {
    const int r = i / S::kPieces, at = i % S::kPieces * 16;
    const uint32_t row = min(row0 + r, static_cast<uint32_t>(q.rows - 1));  // rows past the end repeat the last
    cp_async_16(to + r * S::kPitch + at, from + row * row_bytes + at, at < bytes);
  }
}

template <int kBits, bool kIcq, int kTiles>
__global__ void __launch_bounds__(kThreads, 2)
    matmul_kernel(__nv_bfloat16* y, int64_t y_stride, const __nv_bfloat16* x, int64_t x_stride, PackedView q,
                  int m_count, float beta, Codebook scaled, float unit) {
  using S = Shape<kBits>;
  extern __shared__ __align__(16) char memory[];
  BlockMemory<kBits, kTiles>& shared = *reinterpret_cast<BlockMemory<kBits, kTiles>*>(memory);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, part = lane % 4;
  const uint32_t row0 = blockIdx.x * kRows;
  const int blocks = static_cast<int>(q.cols / kBlock), chunks = (blocks + kChunk - 1) / kChunk;
  const uint32_t last_row = static_cast<uint32_t>(q.rows - 1);
  const uint32_t row[2] = {min(row0 + g, last_row) * blocks, min(row0 + g + 8, last_row) * blocks};  // first blocks

  const uint32_t stages = smem_address(&shared.codes[warp]);
#pragma unroll
  for (int k = 0; k < kStages; ++k) {
    if (warp + k * kWarps < chunks)
      copy_codes<kBits>(stages + k * kRows * S::kPitch, q, row0, warp + k * kWarps, blocks, lane);
    cp_async_commit();
  }
  RawScales<kIcq> raw{};
  const __nv_bfloat16* x_at[kTiles];
  uint4 x_next[kTiles][2] = {};
  const auto load_x = [&](int column) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      x_next[t][0] = __ldg(reinterpret_cast<const uint4*>(x_at[t] + column));
      x_next[t][1] = __ldg(reinterpret_cast<const uint4*>(x_at[t] + column) + 1);
    }
  };
#pragma unroll
  for (int t = 0; t < kTiles; ++t)
    x_at[t] = x + min(t * kTile + g, m_count - 1) * x_stride + warp * kChunk * kBlock + part * 16;
  if (warp < chunks) {
    raw.load(q, row, min(warp * kChunk + part, blocks - 1));
    load_x(0);
  }
  const float entry = q.map ? __ldg(q.map + threadIdx.x) : 0.0f, offset = q.scales ? 0.0f : __ldg(q.scale_offset);
  const float level = scaled.level[lane & ((1 << kBits) - 1)];
  fill_pair_table<kBits, kThreads>(&shared.table[0][0], level);
  shared.map[threadIdx.x] = entry;
  const uint32_t copies = smem_address(&shared.table[0][lane]);
  const uint8_t* codes = &shared.codes[warp][0][g][part * 2 * kBits];
  __syncthreads();

  float sum[kTiles][4] = {};
  int stage = 0;
  for (int chunk = warp; chunk < chunks; chunk += kWarps) {
    const int left = blocks - chunk * kChunk,
              ahead = left - kWarps * kChunk;  // blocks from this, from the next chunk on
    float scale[2], tau[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      scale[r] = raw.scale(q, r, shared.map, offset) * unit;
      tau[r] = raw.tau(q, r, shared.map);
    }
    if (ahead > 0) raw.load(q, row, min((chunk + kWarps) * kChunk + part, blocks - 1));
    cp_async_wait<kStages - 1>();
    __syncwarp();
    const uint8_t* staged = codes + stage * kRows * S::kPitch;
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      if (j >= left) break;
      uint4 xs[kTiles][2];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) xs[t][0] = x_next[t][0], xs[t][1] = x_next[t][1];
      // The next block's, which may be in the next chunk; behind the last any.
      load_x(j + 1 < kChunk && j + 1 < left ? (j + 1) * kBlock : ahead > 0 ? kWarps * kChunk * kBlock : 0);
      const Codes<kBits> now[2] = {Codes<kBits>(staged + j * S::kBlockBytes),
                                   Codes<kBits>(staged + 8 * S::kPitch + j * S::kBlockBytes)};
      float product[kTiles][4] = {}, total[kTiles][4] = {};  // of this block: level * x, and x alone
      const auto step = [&](auto s) {
        constexpr int i = 2 * s.value;
        const auto levels = [&](uint32_t pair) { return load_shared_32(copies + pair * (4 * kWarp)); };
        const uint32_t a[4] = {levels(now[0].template pair<i>()), levels(now[1].template pair<i>()),
                               levels(now[0].template pair<i + 1>()), levels(now[1].template pair<i + 1>())};
        const uint32_t ones[4] = {kOnes, kOnes, kOnes, kOnes};
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          const uint4 v = xs[t][i / 4];
          const uint32_t b0 = i % 4 == 0 ? v.x : v.z, b1 = i % 4 == 0 ? v.y : v.w;
          mma_m16n8k16(product[t], a, b0, b1);
          mma_m16n8k16(total[t], ones, b0, b1);
        }
      };
      step(std::integral_constant<int, 0>{});
      step(std::integral_constant<int, 1>{});
      step(std::integral_constant<int, 2>{});
      step(std::integral_constant<int, 3>{});
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float s = __shfl_sync(kFullWarp, scale[r], (lane & ~3) + j),
                    shift = __shfl_sync(kFullWarp, tau[r], (lane & ~3) + j);
#pragma unroll
        for (int t = 0; t < kTiles; ++t)
#pragma unroll
          for (int c = 2 * r; c < 2 * r + 2; ++c) {
            sum[t][c] = fmaf(s, product[t][c], sum[t][c]);
            sum[t][c] = fmaf(shift, total[t][c], sum[t][c]);
          }
      }
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) x_at[t] += kWarps * kChunk * kBlock;
    __syncwarp();  // all lanes have read the stage
    if (chunk + kStages * kWarps < chunks)
      copy_codes<kBits>(stages + stage * kRows * S::kPitch, q, row0, chunk + kStages * kWarps, blocks, lane);
    cp_async_commit();
    stage = stage + 1 < kStages ? stage + 1 : 0;
  }
  __syncthreads();  // partial sums lie where the codes lay
#pragma unroll
  for (int t = 0; t < kTiles; ++t)
#pragma unroll
    for (int c = 0; c < 4; ++c) shared.partial[warp][g + c / 2 * 8][t * kTile + 2 * part + c % 2] = sum[t][c];
  __syncthreads();
  const int r = threadIdx.x % kRows, m = threadIdx.x / kRows;
  if (m >= m_count || row0 + r >= q.rows) return;
  float total = 0;
#pragma unroll
  for (int k = 0; k < kWarps; ++k) total += shared.partial[k][r][m];
  __nv_bfloat16& out = y[m * y_stride + row0 + r];
  out = __float2bfloat16_rn(beta == 0.0f ? total : fmaf(beta, __bfloat162float(out), total));
}

}  // namespace

void nfk_matmul_bf16(__nv_bfloat16* y, int64_t y_stride, const __nv_bfloat16* x, int64_t x_stride, const PackedView& q,
                     int bits, int m, float beta, cudaStream_t stream) {
  IRQ_CHECK(nfk_matmul_bf16_takes(q, bits), "nfk_matmul: codes are not aligned");
  Codebook scaled = nf_codebook(bits);
  for (float& level : scaled.level) level *= kLevelScale[bits];
  const unsigned grid = static_cast<unsigned>(ceil_div(q.rows, kRows));
  dispatch_bits(bits, [&](auto k) {
    const auto run = [&](auto icq, auto tiles) {
      const auto kernel = matmul_kernel<k.value, icq.value, tiles.value>;
      constexpr int kBytes = static_cast<int>(sizeof(BlockMemory<k.value, tiles.value>));
      CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
      kernel<<<grid, kThreads, kBytes, stream>>>(y, y_stride, x, x_stride, q, m, beta, scaled,
                                                 1.0f / kLevelScale[bits]);
    };
    const auto run_tiles = [&](auto icq) {
      if (m <= kTile) run(icq, std::integral_constant<int, 1>{});
      else run(icq, std::integral_constant<int, 2>{});
    };
    if (q.tau_codes && !q.scales) run_tiles(std::true_type{});
    else run_tiles(std::false_type{});
  });
  CUDA_LAUNCHED();
}

}  // namespace irq
