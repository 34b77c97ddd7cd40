// What  : the dense matrix of a quantized one, in the storage type.
// Math  : w_hat = fl(fl(level[code] * s_hat) + tau_hat), rounded once to bf16 (paper Eqs 3 and 10); s_hat and tau_hat are
//         decoded from their 8-bit codes on the way.
// Shapes: codes u8 (1, n k/8), scale codes u8 (1, n/64) -> w (rows, cols) BF16 or F32, any row stride.
// Cost  : 2 + k/8 + 0.03 bytes per weight: 45 M weights (11008 x 4096) NF4 are 114 MB = 41 us at 2.8 TB/s; about 10
//         instructions per weight, a third of the issue rate at that speed.
// Tricky: a warp takes 1,024 weights (16 blocks). Each lane loads 16 bytes of codes, they are shared through shared memory,
//         and each of four rounds stores 8 neighbouring weights a lane, so that both loads and stores are whole 512-byte
//         lines. Lanes 0..15 decode one block each and pass it on by shuffles. The 16 levels lie in 16 different banks. All
//         loads are issued before the first is waited for: codes, scale codes and their groups cost one latency, not four.
//         Needs cols % 64 = 0 and 16-byte alignment; everything else goes through the general kernel.
#include "kernels/nfk_block.cuh"

namespace irq {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
static_assert(kThreads == 256);  // a thread per entry of the map
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

template <int kBits, bool kTau, class T>
__global__ void __launch_bounds__(kThreads)
    dequant_kernel(T* w, int64_t stride, PackedView q, uint32_t blocks, Codebook book) {
  constexpr int kBytes = kPerWarp * kBits / 8, kLoads = kBytes / 16;  // lanes that load
  __shared__ __align__(16) uint8_t staged[kWarps][kBytes];
  __shared__ float levels[16], map[256];
  const int lane = threadIdx.x % kWarp;
  const uint32_t piece = blockIdx.x * kWarps + threadIdx.x / kWarp, first = piece * kBlocksPerWarp;
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

// Any shape and stride: one thread per weight.
template <int kBits, bool kTau, class T>
__global__ void __launch_bounds__(kThreads) dequant_general_kernel(T* w, int64_t stride, PackedView q, Codebook book) {
  __shared__ float levels[16];
  if (threadIdx.x < 1 << kBits) levels[threadIdx.x] = book.level[threadIdx.x];
  __syncthreads();
  const int64_t numel = q.rows * q.cols, step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < numel; i += step) {
    const int64_t block = i / kBlock, row = i / q.cols;
    const float x =
        dequantized<kTau>(levels[code_at<kBits>(q.codes, i)], block_scale(q, block), kTau ? block_tau(q, block) : 0.0f);
    w[row * stride + (i - row * q.cols)] = from_f<T>(x);
  }
}

bool aligned_16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace

void CudaBackend::nfk_dequant(Tensor w, QuantizedMatrix q) {
  IRQ_CHECK(q.format.kind == QuantKind::nf && q.format.group == kBlock, "nfk_dequant reads NF codes in blocks of 64");
  const int64_t numel = q.numel(), blocks = q.blocks();
  if (numel == 0) return;
  const PackedView view = packed_view(q);
  const Codebook& book = nf_codebook(q.format.bits);
  const bool fast = q.cols % kBlock == 0 && w.stride % 8 == 0 && aligned_16(w.data) && aligned_16(view.codes) &&
                    blocks < (int64_t{1} << 31);
  const unsigned grid =
      static_cast<unsigned>(fast ? ceil_div(blocks, kBlocksPerWarp * kWarps)
                                 : std::min<int64_t>(ceil_div(numel, kThreads), int64_t{32} * sm_count()));
  const uint32_t few = static_cast<uint32_t>(blocks);
  dispatch_storage(w.dtype, [&](auto zero) {
    using T = decltype(zero);
    dispatch_bits(q.format.bits, [&](auto k) {
      T* out = static_cast<T*>(w.data);
      if (fast && q.has_tau())
        dequant_kernel<k.value, true><<<grid, kThreads, 0, stream()>>>(out, w.stride, view, few, book);
      else if (fast) dequant_kernel<k.value, false><<<grid, kThreads, 0, stream()>>>(out, w.stride, view, few, book);
      else if (q.has_tau())
        dequant_general_kernel<k.value, true><<<grid, kThreads, 0, stream()>>>(out, w.stride, view, book);
      else dequant_general_kernel<k.value, false><<<grid, kThreads, 0, stream()>>>(out, w.stride, view, book);
    });
  });
  CUDA_LAUNCHED();
}

}  // namespace irq
