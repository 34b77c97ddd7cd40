// What  : NF-k codes and absmax of every block of 64 weights; double quantization of the scales and of tau.
// Math  : a = max|u|, u = w - tau; x = fl(u * fl(1/a)); code = thresholds below x (paper Eqs 1-2; fidelity 1.2, 2.3, 2.4, 3.3).
// Shapes: w (1, n) F32, tau and absmax (1, n/64) F32, codes u8 (1, n k/8); scales in groups of 256 blocks.
// Cost  : 4 + k/8 + 0.13 bytes per weight: 45 M weights (11008 x 4096) take 202 MB = 72 us at 2.8 TB/s for NF4; about
//         45 instructions per weight (15 comparisons) come to the same time. Double quantization: 5 bytes per block.
// Tricky: every fp32 step is its own rounding (_rn intrinsics). Maxima are taken on the bits of |x|, which keeps a NaN.
//         Bit stream: lane l holds 2k bits, the two codes of elements 2l and 2l+1; byte j of the block straddles at most
//         two lanes. The mean of the scales has one fixed order (256 lanes in chunks of 4,096), the CPU's.
#include "kernels/nfk_block.cuh"

namespace irq {
namespace {

constexpr int kThreads = 256;

// One warp per block of 64.
template <int kBits>
__global__ void __launch_bounds__(kThreads) quantize_kernel(uint8_t* codes, float* absmax, float* entropy, const float* w, const float* tau,
                                                            int64_t numel, int64_t blocks, Codebook book, EntropyTables tables) {
  const int lane = threadIdx.x % kWarp;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp; b < blocks; b += warps) {
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
    if (lane < (n * kBits + 7) / 8) codes[b * (kBlock / 8 * kBits) + lane] = static_cast<uint8_t>(window >> (4 * kBits - 8 - offset));
    if (lane == 0) absmax[b] = a;
    if (entropy) {
      int64_t sum = 0;
#pragma unroll
      for (int c = 0; c < 1 << kBits; ++c) {
        const int count = __popc(__ballot_sync(kFullWarp, has[0] && code[0] == c)) + __popc(__ballot_sync(kFullWarp, has[1] && code[1] == c));
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
    if (static_cast<int>(threadIdx.x) < half) lanes[threadIdx.x] = __dadd_rn(lanes[threadIdx.x], lanes[threadIdx.x + half]);
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
__device__ __forceinline__ float midpoint(const float* map, int i) { return __fmul_rn(__fadd_rn(map[i], map[i + 1]), 0.5f); }
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
__global__ void __launch_bounds__(kScaleGroup) group_codes_kernel(uint8_t* codes, float* groups, const float* x, const float* offset,
                                                                  const float* map, int64_t n) {
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
  codes[i] = static_cast<uint8_t>(offset ? round_to_map(table, __fmul_rn(d, __fdiv_rn(1.0f, largest))) : nearest_in_map(table, __fdiv_rn(d, largest)));
}

}  // namespace

void CudaBackend::nfk_quantize(Tensor codes, Tensor absmax, Tensor entropy, Tensor w, Tensor tau, int bits) {
  const int64_t numel = w.numel(), blocks = ceil_div(numel, kBlock);
  if (blocks == 0) return;
  const int64_t grid = std::min<int64_t>(ceil_div(blocks, kThreads / kWarp), 64 * sm_count());
  dispatch_bits(bits, [&](auto k) {
    quantize_kernel<k.value><<<static_cast<unsigned>(grid), kThreads, 0, stream()>>>(
        codes.as<uint8_t>(), absmax.as<float>(), entropy ? entropy.as<float>() : nullptr, w.as<float>(), tau ? tau.as<float>() : nullptr,
        numel, blocks, nf_codebook(bits), entropy_tables());
  });
  CUDA_LAUNCHED();
}

void CudaBackend::double_quantize_scales(Tensor scale_codes, Tensor scale_groups, Tensor scale_offset, Tensor absmax, Tensor map) {
  const int64_t n = absmax.numel(), chunks = ceil_div(n, kChunk);
  if (n == 0) return;
  double* sums = static_cast<double*>(workspace(chunks * static_cast<int64_t>(sizeof(double))));
  chunk_sums_kernel<<<static_cast<unsigned>(chunks), kLanes, 0, stream()>>>(sums, absmax.as<float>(), n);
  CUDA_LAUNCHED();
  mean_kernel<<<1, kLanes, 0, stream()>>>(scale_offset.as<float>(), sums, chunks, n);
  CUDA_LAUNCHED();
  group_codes_kernel<<<static_cast<unsigned>(ceil_div(n, kScaleGroup)), kScaleGroup, 0, stream()>>>(
      scale_codes.as<uint8_t>(), scale_groups.as<float>(), absmax.as<float>(), scale_offset.as<float>(), map.as<float>(), n);
  CUDA_LAUNCHED();
}

void CudaBackend::double_quantize_tau(Tensor tau_codes, Tensor tau_groups, Tensor tau, Tensor map) {
  const int64_t n = tau.numel();
  if (n == 0) return;
  group_codes_kernel<<<static_cast<unsigned>(ceil_div(n, kScaleGroup)), kScaleGroup, 0, stream()>>>(
      tau_codes.as<uint8_t>(), tau_groups.as<float>(), tau.as<float>(), nullptr, map.as<float>(), n);
  CUDA_LAUNCHED();
}

}  // namespace irq
