// What  : NF-k codes and absmax of every block of 64 weights; double quantization of the scales and of tau.
// Math  : a = max|u|, u = w - tau; x = fl(u * fl(1/a)); code = thresholds below x (paper Eqs 1-2; fidelity 1.2, 2.3, 2.4, 3.3).
// Shapes: w (1, n) F32, tau and absmax (1, n/64) F32, codes u8 (1, n k/8); scales in groups of 256 blocks.
// Cost  : 4 + k/8 + 0.13 bytes per weight: 45 M weights (11008 x 4096) take 211 MB = 75 us at 2.8 TB/s for NF4. About 33
//         instructions per weight with the entropy (52 us of issuing), 22 without. Double quantization: 5 bytes per block.
// Tricky: every fp32 step is its own rounding (_rn intrinsics). Maxima are taken on the bits of |x|, which keeps a NaN.
//         Thresholds are further apart than 1/16: floor(16 x) leaves at most one to compare with (two loads from 34 entries,
//         nearly a bank each). Eight lanes have a block: lane l its 16-byte pieces l and l + 8, so that loads are whole lines, and
//         neighbours swap a piece's codes, so that stores are too. Counts are nibbles of 64 bits, then bytes, which lanes
//         share out while they add them. Blocks of zeros, with NaNs or beyond fp32's reciprocals compare with every threshold.
//         The mean of the scales has one fixed order (256 lanes in chunks of 4,096), the CPU's.
#include "kernels/nfk_block.cuh"
#include "kernels/sm80.cuh"

namespace irq {
namespace {

constexpr int kThreads = 256;

// ---- whole blocks, 16-byte aligned -----------------------------------------------------------------------------------
constexpr int kLanes8 = 8;                  // lanes per block
constexpr int kPerRound = kWarp / kLanes8;  // blocks a warp takes at a time
constexpr int kResident = 8;                // thread blocks per SM
constexpr int kBins = 34;  // of width 1/16 from -17/16 on: 1/a may be so small that |x| is a little over 1
// The bits of 2 + i 2^-22 are 2^30 + i, and 4 of them make an address: 2^32 vanishes.
constexpr float kUnit = 0x1p-22f;

// Bin i holds x in [(i - 17)/16, (i - 16)/16): the code there is code[i], plus one if x > threshold[i].
struct Bins {
  float threshold[kBins];
  uint32_t code[kBins];
};
template <int kBits>
__device__ __forceinline__ void fill_bins(Bins& bins, const Codebook& book) {
  if (threadIdx.x >= kBins) return;
  const float low = (static_cast<float>(threadIdx.x) - 17.0f) * 0.0625f, high = low + 0.0625f;
  bins.threshold[threadIdx.x] = INFINITY;
  uint32_t code = 0;
  for (int j = 0; j < (1 << kBits) - 1; ++j) {
    if (book.threshold[j] < low) ++code;
    else if (book.threshold[j] < high) bins.threshold[threadIdx.x] = book.threshold[j];
  }
  bins.code[threadIdx.x] = code;
}
__device__ __forceinline__ int max_of_8_lanes(int x) {
#pragma unroll
  for (int offset = kLanes8 / 2; offset > 0; offset /= 2) x = max(x, __shfl_xor_sync(kFullWarp, x, offset));
  return x;
}
// Counts are a nibble per code: at most 8 weights of one lane.
__device__ __forceinline__ void count(uint32_t (&counts)[2], uint32_t code) {
  const uint64_t one = uint64_t{1} << (4 * code);
  counts[0] += static_cast<uint32_t>(one), counts[1] += static_cast<uint32_t>(one >> 32);
}
// The sum of the entropy terms of a block's counts.
__device__ __forceinline__ double entropy_sum(const uint32_t (&counts)[2], const double* term, int l) {
  const uint32_t low = counts[0], high = counts[1];
  constexpr uint32_t kEven = 0x0f0f0f0fu;
  // Bytes: codes 0 2 4 6, 1 3 5 7, 8 10 12 14, 9 11 13 15. Lanes 4 to 7 take the latter two, of these every other pair of
  // lanes the second, of the four counts every other lane the second two.
  const bool upper = l & 4, odd = l & 2;
  const uint32_t even_low = low & kEven, odd_low = (low >> 4) & kEven, even_high = high & kEven,
                 odd_high = (high >> 4) & kEven;
  const uint32_t evens = (upper ? even_high : even_low) + __shfl_xor_sync(kFullWarp, upper ? even_low : even_high, 4);
  const uint32_t odds = (upper ? odd_high : odd_low) + __shfl_xor_sync(kFullWarp, upper ? odd_low : odd_high, 4);
  uint32_t four = (odd ? odds : evens) + __shfl_xor_sync(kFullWarp, odd ? evens : odds, 2);
  four += __shfl_xor_sync(kFullWarp, four, 1);
  const uint32_t two = l & 1 ? four >> 16 : four;
  double sum = term[two & 255] + term[(two >> 8) & 255];  // integers below 2^53: exact in any order
#pragma unroll
  for (int offset = kLanes8 / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(kFullWarp, sum, offset);
  return sum;
}
// The codes of 8 neighbouring weights, 8 kBits bits with the first on top.
template <int kBits>
__device__ __forceinline__ void store_codes(uint8_t* out, uint32_t bits) {
  if constexpr (kBits == 4) *reinterpret_cast<uint32_t*>(out) = __byte_perm(bits, 0, 0x0123);
  else if constexpr (kBits == 2)
    *reinterpret_cast<uint16_t*>(out) = static_cast<uint16_t>(__byte_perm(bits, 0, 0x4401));
  else
    out[0] = static_cast<uint8_t>(bits >> 16), out[1] = static_cast<uint8_t>(bits >> 8),
    out[2] = static_cast<uint8_t>(bits);
}

template <int kBits, bool kEntropy>
__global__ void __launch_bounds__(kThreads, kResident)
    quantize_kernel(uint8_t* codes, float* absmax, float* entropy, const float* w, const float* tau, uint32_t blocks,
                    Codebook book, EntropyTables tables) {
  __shared__ Bins bins;
  __shared__ double term[kBlock + 1];
  fill_bins<kBits>(bins, book);
  if (kEntropy && threadIdx.x <= kBlock) term[threadIdx.x] = static_cast<double>(tables.term[threadIdx.x]);
  __syncthreads();
  const uint32_t bins_at = smem_address(&bins);
  const int lane = threadIdx.x % kWarp, l = lane % kLanes8;
  const uint32_t step = gridDim.x * (kThreads / kWarp) * kPerRound;  // blocks + step < 2^32: checked by the caller
  for (uint32_t first = (blockIdx.x * (kThreads / kWarp) + threadIdx.x / kWarp) * kPerRound; first < blocks;
       first += step) {
    const uint32_t mine = first + lane / kLanes8, b = min(mine, blocks - 1);  // lanes without a block repeat the last
    const float4* pieces = reinterpret_cast<const float4*>(w + static_cast<uint64_t>(b) * kBlock) + l;
    const float4 p0 = __ldcs(pieces), p1 = __ldcs(pieces + kLanes8);
    const float shift = tau ? __ldg(tau + b) : 0.0f;
    float u[8] = {p0.x, p0.y, p0.z, p0.w, p1.x, p1.y, p1.z, p1.w};
    int largest = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (tau) u[i] = __fsub_rn(u[i], shift);
      largest = max(largest, magnitude_bits(u[i]));
    }
    const float a = __int_as_float(max_of_8_lanes(largest)), rcp = __frcp_rn(a);
    uint32_t piece[2] = {0, 0};
    uint32_t counts[2] = {0, 0};
    if (a < INFINITY && rcp < INFINITY) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float x = __fmul_rn(u[i], rcp);
        const uint32_t bin = bins_at + 4 * __float_as_uint(__fmaf_rd(x, 16 * kUnit, 2.0f + 17 * kUnit));
        const float below =
            __fsub_rn(__uint_as_float(load_shared_32(bin)), x);  // negative if and only if x > threshold
        const uint32_t code = load_shared_32(bin + kBins * 4) + (__float_as_uint(below) >> 31);
        piece[i / 4] = (piece[i / 4] << kBits) + code;
        if (kEntropy) count(counts, code);
      }
    } else {
#pragma unroll 1
      for (int i = 0; i < 8; ++i) {
        float value = u[0];
#pragma unroll
        for (int k = 1; k < 8; ++k) value = i == k ? u[k] : value;  // no indexed registers
        const uint32_t code = nfk_code<kBits>(book, value, a, rcp);
        if (i < 4) piece[0] = (piece[0] << kBits) + code;
        else piece[1] = (piece[1] << kBits) + code;
        if (kEntropy) count(counts, code);
      }
    }
    // Even lanes store pieces l and l + 1, odd ones pieces l - 1 + 8 and l + 8.
    const bool odd = l & 1;
    const uint32_t other = __shfl_xor_sync(kFullWarp, odd ? piece[0] : piece[1], 1);
    const uint32_t eight = odd ? (other << (4 * kBits)) | piece[1] : (piece[0] << (4 * kBits)) | other;
    if (mine < blocks)
      store_codes<kBits>(codes + static_cast<uint64_t>(b) * (kBlock / 8 * kBits) + (odd ? l + 7 : l) * kBits / 2,
                         eight);
    if (l == 0 && mine < blocks) absmax[b] = a;
    if (kEntropy) {
      const double sum = entropy_sum(counts, term, l);
      if (l == 0 && mine < blocks)
        entropy[b] = __double2float_rn((term[kBlock] - sum) * 0x1p-46);  // entropy_bits() for n = 64
    }
  }
}

// ---- any alignment, and a last block that is short -----------------------------------------------------------------
// One warp per block of 64, from block `begin` on. Bit stream: lane l holds 2k bits, the two codes of elements 2l and 2l+1;
// byte j of the block straddles at most two lanes.
template <int kBits>
__global__ void __launch_bounds__(kThreads)
    quantize_general_kernel(uint8_t* codes, float* absmax, float* entropy, const float* w, const float* tau,
                            int64_t numel, int64_t begin, int64_t blocks, Codebook book, EntropyTables tables) {
  const int lane = threadIdx.x % kWarp;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  for (int64_t b = begin + static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp; b < blocks;
       b += warps) {
    const int64_t first = b * kBlock + 2 * lane;
    const bool has[2] = {first < numel, first + 1 < numel};
    const float shift = tau ? tau[b] : 0.0f;
    float u[2];
    int largest = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float value = has[i] ? w[first + i] : 0.0f;
      u[i] = tau ? __fsub_rn(value, shift) : value;
      if (has[i]) largest = max(largest, magnitude_bits(u[i]));
    }
    const float a = __int_as_float(warp_max_bits(largest)), rcp = __fdiv_rn(1.0f, a);
    int code[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) code[i] = has[i] ? nfk_code<kBits>(book, u[i], a, rcp) : 0;  // padding: 0
    // Byte j holds bits 8j .. 8j+7 of the warp's 32 fields of 2k bits.
    const int field = (code[0] << kBits) | code[1];
    const int source = 8 * lane / (2 * kBits), offset = 8 * lane - source * 2 * kBits;
    const int high = __shfl_sync(kFullWarp, field, source), low = __shfl_sync(kFullWarp, field, source + 1);
    const int window = (high << (2 * kBits)) | (source + 1 < kWarp ? low : 0);
    const int n = static_cast<int>(min(static_cast<int64_t>(kBlock), numel - b * kBlock));
    if (lane < (n * kBits + 7) / 8)
      codes[b * (kBlock / 8 * kBits) + lane] = static_cast<uint8_t>(window >> (4 * kBits - 8 - offset));
    if (lane == 0) absmax[b] = a;
    if (entropy) {
      int64_t sum = 0;
#pragma unroll
      for (int c = 0; c < 1 << kBits; ++c) {
        const int count = __popc(__ballot_sync(kFullWarp, has[0] && code[0] == c)) +
                          __popc(__ballot_sync(kFullWarp, has[1] && code[1] == c));
        sum += tables.term[count];
      }
      if (lane == 0) entropy[b] = entropy_bits(sum, n, tables.term[n]);
    }
  }
}

// ---- the mean of the scales --------------------------------------------------------------------------------------
constexpr int kLanes = 256;
constexpr int64_t kChunk = 4096;

// Lane l adds elements l, l + 256, ... in turn; then the lanes are halved onto each other. The result is in thread 0.
template <class T>
__device__ double lane_sum(const T* x, int64_t n) {
  __shared__ double lanes[kLanes];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kLanes) sum = __dadd_rn(sum, static_cast<double>(x[i]));
  lanes[threadIdx.x] = sum;
  __syncthreads();
  for (int half = kLanes / 2; half > 0; half /= 2) {
    if (static_cast<int>(threadIdx.x) < half)
      lanes[threadIdx.x] = __dadd_rn(lanes[threadIdx.x], lanes[threadIdx.x + half]);
    __syncthreads();
  }
  return lanes[0];
}
__global__ void __launch_bounds__(kLanes) chunk_sums_kernel(double* sums, const float* x, int64_t n) {
  const int64_t begin = blockIdx.x * kChunk;
  const double sum = lane_sum(x + begin, min(kChunk, n - begin));
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
__global__ void __launch_bounds__(kLanes) mean_kernel(float* mean, const double* sums, int64_t chunks, int64_t n) {
  const double sum = lane_sum(sums, chunks);
  if (threadIdx.x == 0) *mean = __double2float_rn(__ddiv_rn(sum, static_cast<double>(n)));
}

// ---- 8-bit codes ----------------------------------------------------------------------------------------------------
__device__ __forceinline__ float midpoint(const float* map, int i) {
  return __fmul_rn(__fadd_rn(map[i], map[i + 1]), 0.5f);
}
// Nearest entry by fp32 midpoints; a tie goes to the even index; NaN to 0.
__device__ int round_to_map(const float* map, float x) {
  int low = 0, high = 255;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (midpoint(map, middle) < x) low = middle + 1;
    else high = middle;
  }
  if (low < 255 && low % 2 == 1 && midpoint(map, low) == x) ++low;
  return low;
}
// Smallest fl(|x - entry|), the first on ties; NaN to 0.
__device__ int nearest_in_map(const float* map, float x) {
  int low = 0, high = 255;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (map[middle] <= x) low = middle;
    else high = middle - 1;
  }
  if (low < 255 && fabsf(__fsub_rn(x, map[low + 1])) < fabsf(__fsub_rn(x, map[low]))) ++low;
  return low;
}

// One thread block per group of 256. Scales: d = s - offset, times the reciprocal. tau (offset null): true division.
__global__ void __launch_bounds__(kScaleGroup) group_codes_kernel(uint8_t* codes, float* groups, const float* x,
                                                                  const float* offset, const float* map, int64_t n) {
  __shared__ float table[256];
  __shared__ int partial[kScaleGroup / kWarp];
  const int t = threadIdx.x;
  table[t] = map[t];
  const int64_t i = blockIdx.x * static_cast<int64_t>(kScaleGroup) + t;
  float d = i < n ? x[i] : 0.0f;
  if (offset && i < n) d = __fsub_rn(d, *offset);
  const int warp_largest = warp_max_bits(magnitude_bits(d));
  if (t % kWarp == 0) partial[t / kWarp] = warp_largest;
  __syncthreads();
  int bits = partial[0];
#pragma unroll
  for (int k = 1; k < kScaleGroup / kWarp; ++k) bits = max(bits, partial[k]);
  const float largest = __int_as_float(bits);
  if (t == 0) groups[blockIdx.x] = largest;
  if (i >= n) return;
  codes[i] = static_cast<uint8_t>(offset ? round_to_map(table, __fmul_rn(d, __fdiv_rn(1.0f, largest)))
                                         : nearest_in_map(table, __fdiv_rn(d, largest)));
}

__global__ void __launch_bounds__(kThreads)
    dequantize_tau_kernel(float* tau_hat, const uint8_t* codes, const float* groups, const float* map, int64_t n) {
  const int64_t b = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (b < n) tau_hat[b] = __fmul_rn(__ldg(map + codes[b]), __ldg(groups + b / kScaleGroup));
}

}  // namespace

void CudaBackend::nfk_quantize(Tensor codes, Tensor absmax, Tensor entropy, Tensor w, Tensor tau, int bits) {
  const int64_t numel = w.numel(), blocks = ceil_div(numel, kBlock), per_cta = kThreads / kWarp;
  const auto aligned = [](const void* p, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; };
  const int64_t whole = aligned(w.data, 16) && aligned(codes.data, 4) ? numel / kBlock : 0;
  IRQ_CHECK(whole < int64_t{1} << 31, "nfk_quantize: whole blocks are numbered in 32 bits");
  uint8_t* c = codes.as<uint8_t>();
  float *a = absmax.as<float>(), *h = entropy ? entropy.as<float>() : nullptr;
  const float *x = w.as<float>(), *t = tau ? tau.as<float>() : nullptr;
  dispatch_bits(bits, [&](auto k) {
    const Codebook& book = nf_codebook(bits);
    if (whole > 0) {
      const unsigned grid = static_cast<unsigned>(
          std::min<int64_t>(ceil_div(whole, kPerRound * per_cta), int64_t{kResident} * sm_count()));
      if (h)
        quantize_kernel<k.value, true>
            <<<grid, kThreads, 0, stream()>>>(c, a, h, x, t, static_cast<uint32_t>(whole), book, entropy_tables());
      else
        quantize_kernel<k.value, false>
            <<<grid, kThreads, 0, stream()>>>(c, a, h, x, t, static_cast<uint32_t>(whole), book, entropy_tables());
      CUDA_LAUNCHED();
    }
    if (whole < blocks) {
      const unsigned grid =
          static_cast<unsigned>(std::min<int64_t>(ceil_div(blocks - whole, per_cta), int64_t{64} * sm_count()));
      quantize_general_kernel<k.value>
          <<<grid, kThreads, 0, stream()>>>(c, a, h, x, t, numel, whole, blocks, book, entropy_tables());
      CUDA_LAUNCHED();
    }
  });
}

void CudaBackend::double_quantize_scales(Tensor scale_codes, Tensor scale_groups, Tensor scale_offset, Tensor absmax,
                                         Tensor map) {
  const int64_t n = absmax.numel(), chunks = ceil_div(n, kChunk);
  if (n == 0) return;
  double* sums = static_cast<double*>(workspace(chunks * static_cast<int64_t>(sizeof(double))));
  chunk_sums_kernel<<<static_cast<unsigned>(chunks), kLanes, 0, stream()>>>(sums, absmax.as<float>(), n);
  CUDA_LAUNCHED();
  mean_kernel<<<1, kLanes, 0, stream()>>>(scale_offset.as<float>(), sums, chunks, n);
  CUDA_LAUNCHED();
  group_codes_kernel<<<static_cast<unsigned>(ceil_div(n, kScaleGroup)), kScaleGroup, 0, stream()>>>(
      scale_codes.as<uint8_t>(), scale_groups.as<float>(), absmax.as<float>(), scale_offset.as<float>(),
      map.as<float>(), n);
  CUDA_LAUNCHED();
}

void CudaBackend::double_quantize_tau(Tensor tau_codes, Tensor tau_groups, Tensor tau, Tensor map) {
  const int64_t n = tau.numel();
  if (n == 0) return;
  group_codes_kernel<<<static_cast<unsigned>(ceil_div(n, kScaleGroup)), kScaleGroup, 0, stream()>>>(
      tau_codes.as<uint8_t>(), tau_groups.as<float>(), tau.as<float>(), nullptr, map.as<float>(), n);
  CUDA_LAUNCHED();
}

void CudaBackend::dequantize_tau(Tensor tau_hat, Tensor tau_codes, Tensor tau_groups, Tensor map) {
  const int64_t n = tau_hat.numel();
  if (n == 0) return;
  dequantize_tau_kernel<<<static_cast<unsigned>(ceil_div(n, kThreads)), kThreads, 0, stream()>>>(
      tau_hat.as<float>(), tau_codes.as<uint8_t>(), tau_groups.as<float>(), map.as<float>(), n);
  CUDA_LAUNCHED();
}

}  // namespace irq
