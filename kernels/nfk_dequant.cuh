// The body of nfk_dequant.cu and dequant_group.cu: a block of threads makes 8,192 weights of one matrix (there: how).
#pragma once
#include "kernels/dependent_launch.cuh"
#include "kernels/nfk_block.cuh"

namespace irq {

constexpr int kDequantThreads = 256, kDequantWarps = kDequantThreads / kWarp;
static_assert(kDequantThreads == 256);  // a thread per entry of the map
constexpr int kRounds = 4;
constexpr int kPerLane = 8;                           // weights a lane stores in a round
constexpr int kPerWarp = kWarp * kPerLane * kRounds;  // 1,024 weights
constexpr int kBlocksPerWarp = kPerWarp / kBlock;     // 16

__device__ __forceinline__ void store_8(__nv_bfloat16* out, const float* x) {
  Pack<__nv_bfloat16> pack;
#pragma unroll
  for (int i = 0; i < 8; ++i) pack.v[i] = __float2bfloat16_rn(x[i]);
  *reinterpret_cast<Pack<__nv_bfloat16>*>(out) = pack;
}
__device__ __forceinline__ void store_8(float* out, const float* x) {
#pragma unroll
  for (int i = 0; i < 2; ++i)
    *reinterpret_cast<float4*>(out + 4 * i) = make_float4(x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]);
}
// The 8k bits of 8 codes, first code on top. `bytes` lies in shared memory, 8-code group `group` of the warp.
template <int kBits>
__device__ __forceinline__ uint32_t load_group(const uint8_t* bytes, int group) {
  if constexpr (kBits == 4) return __byte_perm(reinterpret_cast<const uint32_t*>(bytes)[group], 0, 0x0123);
  else if constexpr (kBits == 2) return __byte_perm(reinterpret_cast<const uint16_t*>(bytes)[group], 0, 0x4401);
  else
    return (static_cast<uint32_t>(bytes[3 * group]) << 16) | (static_cast<uint32_t>(bytes[3 * group + 1]) << 8) |
           bytes[3 * group + 2];
}

// One block's share of a matrix of `blocks` blocks: `index` is its number among nfk_dequant_grid(). If the launch may be early
// (dependent_launch.cuh), the codes must be older than the kernel in front; w is written when that one has ended.
template <int kBits, bool kTau, class T>
__device__ __forceinline__ void nfk_dequant_share(T* w, int64_t stride, const PackedView& q, uint32_t blocks,
                                                  const Codebook& book, uint32_t index) {
  constexpr int kBytes = kPerWarp * kBits / 8, kLoads = kBytes / 16;  // lanes that load
  __shared__ __align__(16) uint8_t staged[kDequantWarps][kBytes];
  __shared__ float levels[16], map[256];
  const int lane = threadIdx.x % kWarp;
  const uint32_t piece = index * kDequantWarps + threadIdx.x / kWarp, first = piece * kBlocksPerWarp;
  const int count = first < blocks ? static_cast<int>(min(static_cast<uint32_t>(kBlocksPerWarp), blocks - first)) : 0;
  const int bytes = count * kBlock * kBits / 8;  // a multiple of 8: an odd number of NF3 blocks ends on half a load
  uint4 codes{};
  const uint8_t* from = q.codes + static_cast<uint64_t>(piece) * kBytes + lane * 16;
  if (lane < kLoads && lane * 16 + 16 <= bytes) {
    codes = __ldcs(reinterpret_cast<const uint4*>(from));
  } else if (lane < kLoads && lane * 16 < bytes) {
    const uint2 half = __ldcs(reinterpret_cast<const uint2*>(from));
    codes.x = half.x, codes.y = half.y;
  }
  uint32_t scale_code = 0, tau_code = 0;
  float scale_group = 0, tau_group = 0, offset = 0;
  const uint32_t block = first + lane;
  if (lane < count) {
    if (q.scales) {
      scale_group = __ldg(q.scales + block);
    } else {
      scale_code = __ldg(q.scale_codes + block);
      scale_group = __ldg(q.scale_groups + block / kScaleGroup);
      offset = __ldg(q.scale_offset);
    }
    if (kTau) {
      tau_code = __ldg(q.tau_codes + block);
      tau_group = __ldg(q.tau_groups + block / kScaleGroup);
    }
  }
  if (q.map) map[threadIdx.x] = __ldg(q.map + threadIdx.x);
  if (threadIdx.x < 1 << kBits) levels[threadIdx.x] = book.level[threadIdx.x];
  uint8_t* mine = staged[threadIdx.x / kWarp];
  if (lane < kLoads) reinterpret_cast<uint4*>(mine)[lane] = codes;
  __syncthreads();
  wait_for_previous_kernel();

  const uint32_t blocks_per_row = static_cast<uint32_t>(q.cols / kBlock), row = block / blocks_per_row;
  const float scale = q.scales ? scale_group : __fadd_rn(__fmul_rn(map[scale_code], scale_group), offset);
  const float tau = kTau ? __fmul_rn(map[tau_code], tau_group) : 0.0f;
  const int64_t place =
      row * stride + (block - row * blocks_per_row) * static_cast<int64_t>(kBlock);  // of the block's first weight in w
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const int group = round * kWarp + lane, from_lane = group / (kBlock / kPerLane);
    const float s = __shfl_sync(kFullWarp, scale, from_lane), t = kTau ? __shfl_sync(kFullWarp, tau, from_lane) : 0.0f;
    const int64_t at = __shfl_sync(kFullWarp, static_cast<long long>(place), from_lane);
    if (from_lane >= count) continue;
    const uint32_t bits = load_group<kBits>(mine, group);
    float x[8];
#pragma unroll
    for (int i = 0; i < 8; ++i)
      x[i] = dequantized<kTau>(levels[(bits >> (kBits * (7 - i))) & ((1u << kBits) - 1)], s, t);
    store_8(w + at + group % (kBlock / kPerLane) * kPerLane, x);
  }
}

// Blocks of threads for a matrix of `blocks` blocks.
inline int64_t nfk_dequant_grid(int64_t blocks) { return ceil_div(blocks, kBlocksPerWarp * kDequantWarps); }
// Whether a matrix, written to w (of its width, any rows), can go this way.
inline bool nfk_dequant_fits(const Tensor& w, const QuantizedMatrix& q) {
  return q.cols % kBlock == 0 && w.stride % 8 == 0 && aligned_16(w.data) && aligned_16(q.codes.data) &&
         q.blocks() < (int64_t{1} << 31);
}

}  // namespace irq
