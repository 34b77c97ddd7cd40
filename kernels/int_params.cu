// What    scale and zero point of every group of integer codes, with or without integer ICQ's search, bit for bit as the CPU
// Math    fidelity 5.2 (GPTQ's convention) and 5.4; of the candidates the first whose codes have the highest exact entropy
// Shapes  w (rows, cols) F32, any stride; scales, zeros, entropies (rows, groups), any stride
// Cost    11008 x 4096 in groups of 128 on an H100: 0.39 ms without a search; with it 4 rounds of 32 candidates, some 60
//         instructions a weight each: 12.9 ms in 4 bits, 9.9 ms in 2
// Tricky  a warp has a group and a lane a candidate: weights are broadcast by shuffles, a lane counts its codes in bytes of
//         registers and empties them every 128 weights. Products that meet a sum are __fmul_rn.
#include "kernels/common.cuh"
#include "kernels/int_group.h"
#include "kernels/nfk_block.cuh"

namespace irq {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp;
constexpr int kFlush = 4;  // chunks of 32 weights between two emptyings: a byte counts to 128

struct ParamsCall {
  const float* w;
  float *scales, *plain, *entropy;
  void* zeros;
  const int64_t* terms;
  const float* factors;
  int64_t rows, cols, length, groups;
  int64_t w_stride, scale_stride, zero_stride, plain_stride, entropy_stride;
  int factor_count;
  bool symmetric, shift, count;
};

struct Group {
  const float* w;
  int n;
  float low, high;
};

// Byte counters of 2^bits codes.
template <int kBits>
struct ByteCounts {
  uint64_t low = 0, high = 0;
  __device__ __forceinline__ void add(int code) {
    const uint64_t one = uint64_t{1} << (8 * (code & 7));
    if (kBits < 4) {
      low += one;
    } else {
      low += code < 8 ? one : 0;
      high += code < 8 ? 0 : one;
    }
  }
  __device__ __forceinline__ void add_over_warp() {
    low = words_over_warp(low);
    if (kBits == 4) high = words_over_warp(high);
  }
  __device__ static __forceinline__ uint64_t words_over_warp(uint64_t x) {
    const uint32_t first = __reduce_add_sync(kFullWarp, static_cast<uint32_t>(x));
    return kBits == 2 ? first : uint64_t{__reduce_add_sync(kFullWarp, static_cast<uint32_t>(x >> 32))} << 32 | first;
  }
  __device__ __forceinline__ void flush(uint32_t (&counts)[1 << kBits]) {
#pragma unroll
    for (int c = 0; c < 1 << kBits; ++c)
      counts[c] += static_cast<uint32_t>((c < 8 ? low : high) >> (8 * (c & 7))) & 0xffu;
    low = high = 0;
  }
};

template <int kBits>
__device__ __forceinline__ int64_t sum_of(const uint32_t (&counts)[1 << kBits], const int64_t* terms) {
  int64_t sum = 0;
#pragma unroll
  for (int c = 0; c < 1 << kBits; ++c) sum += terms[counts[c]];
  return sum;
}

// Each lane's own parameters over all weights of the group.
template <int kBits, bool kFloatZero>
__device__ int64_t lane_sum(const Group& g, const IntParams& q, const int64_t* terms, int lane) {
  uint32_t counts[1 << kBits] = {};
  ByteCounts<kBits> bytes;
  const float top = int_top(kBits);
  int chunk = 0;
  for (int base = 0; base < g.n; base += kWarp) {
    const float mine = base + lane < g.n ? g.w[base + lane] : 0.0f;
    const int n = min(kWarp, g.n - base);
    for (int j = 0; j < n; ++j)
      bytes.add(static_cast<int>(int_code<kFloatZero>(__shfl_sync(kFullWarp, mine, j), q.scale, q.zero, top)));
    if (++chunk % kFlush == 0) bytes.flush(counts);
  }
  bytes.flush(counts);
  return sum_of<kBits>(counts, terms);
}

// One set of parameters: the lanes share the weights. Bytes of up to 255 weights are added over the warp as they lie, four to
// a word; longer groups are emptied first.
template <int kBits, bool kFloatZero>
__device__ int64_t shared_sum(const Group& g, const IntParams& q, const int64_t* terms, int lane) {
  constexpr int kLongest = 255;  // of a byte
  uint32_t counts[1 << kBits] = {};
  ByteCounts<kBits> bytes;
  const float top = int_top(kBits);
  int rounds = 0;
  for (int i = lane; i < g.n; i += kWarp) {
    bytes.add(static_cast<int>(int_code<kFloatZero>(g.w[i], q.scale, q.zero, top)));
    if (++rounds % 128 == 0) bytes.flush(counts);
  }
  if (g.n <= kLongest) {
    bytes.add_over_warp();
    bytes.flush(counts);
  } else {
    bytes.flush(counts);
#pragma unroll
    for (int c = 0; c < 1 << kBits; ++c) counts[c] = __reduce_add_sync(kFullWarp, counts[c]);
  }
  return sum_of<kBits>(counts, terms);
}

__device__ __forceinline__ uint32_t ordered_key(float x) {
  const uint32_t u = __float_as_uint(x);
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}

// The element of rank (n - 1) / 2, found bit by bit: 32 counts.
__device__ float lower_median(const Group& g, int lane) {
  const uint32_t rank = static_cast<uint32_t>((g.n - 1) / 2);
  uint32_t key = 0;
  for (int bit = 31; bit >= 0; --bit) {
    const uint32_t probe = key | 1u << bit;
    uint32_t below = 0;
    for (int i = lane; i < g.n; i += kWarp) below += ordered_key(g.w[i]) < probe;
    if (__reduce_add_sync(kFullWarp, below) <= rank) key = probe;
  }
  const float x = __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
  return __fadd_rn(x, 0.0f);  // one zero of the two
}

template <int kBits>
__device__ __forceinline__ IntParams candidate(const ParamsCall& c, const Group& g, int i, float tau0, float reach) {
  const float factor = c.factors[i];
  if (c.shift) return shifted_int_params(g.low, g.high, __fadd_rn(__fmul_rn(factor, reach), tau0), kBits);
  return int_params_of(__fmul_rn(factor, fminf(g.low, 0.0f)), __fmul_rn(factor, fmaxf(g.high, 0.0f)), kBits,
                       c.symmetric);
}

template <int kBits, bool kFloatZero>
__global__ void __launch_bounds__(kThreads) params_kernel(ParamsCall c) {
  const int lane = threadIdx.x % kWarp;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (index >= c.rows * c.groups) return;
  const int64_t row = index / c.groups, k = index - row * c.groups;
  Group g{c.w + row * c.w_stride + k * c.length, static_cast<int>(min(c.length, c.cols - k * c.length)), INFINITY,
          -INFINITY};
  int magnitude = 0;
  for (int i = lane; i < g.n; i += kWarp) {
    const float x = g.w[i];
    magnitude = max(magnitude, magnitude_bits(x));
    g.low = fminf(g.low, x), g.high = fmaxf(g.high, x);
  }
  magnitude = warp_max_bits(magnitude);
  g.low = -warp_max(-g.low), g.high = warp_max(g.high);
  bool good = magnitude < 0x7f800000;
  IntParams q;
  int64_t sum_plain = 0, sum = 0;
  if (good) {
    q = int_params_of(fminf(g.low, 0.0f), fmaxf(g.high, 0.0f), kBits, c.symmetric);
    if (c.count || c.factor_count > 0) sum = sum_plain = shared_sum<kBits, kFloatZero>(g, q, c.terms, lane);
    if (c.factor_count > 0) {
      float tau0 = 0, reach = 0;
      if (c.shift) {
        tau0 = lower_median(g, lane);
        reach = fmaxf(fabsf(__fsub_rn(g.low, tau0)), fabsf(__fsub_rn(g.high, tau0)));
      }
      int64_t best = INT64_MAX;
      int chosen = 0;
      for (int first = 0; first < c.factor_count; first += kWarp) {
        const int i = min(first + lane, c.factor_count - 1);  // spare lanes try the last one again, to no effect
        const int64_t s = lane_sum<kBits, kFloatZero>(g, candidate<kBits>(c, g, i, tau0, reach), c.terms, lane);
        if (s < best) best = s, chosen = i;
      }
#pragma unroll
      for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        const int64_t other = __shfl_xor_sync(kFullWarp, best, offset);
        const int at = __shfl_xor_sync(kFullWarp, chosen, offset);
        if (other < best || (other == best && at < chosen)) best = other, chosen = at;
      }
      q = candidate<kBits>(c, g, chosen, tau0, reach);
      sum = best;
    }
    good = isfinite(q.scale);
  }
  if (lane != 0) return;
  c.scales[row * c.scale_stride + k] = good ? q.scale : NAN;
  if (kFloatZero) static_cast<float*>(c.zeros)[row * c.zero_stride + k] = good ? q.zero : 0.0f;
  else
    static_cast<uint8_t*>(c.zeros)[row * c.zero_stride + k] = good ? static_cast<uint8_t>(static_cast<int>(q.zero)) : 0;
  if (c.plain) c.plain[row * c.plain_stride + k] = good ? int_entropy_bits(sum_plain, g.n, c.terms[g.n]) : NAN;
  if (c.entropy) c.entropy[row * c.entropy_stride + k] = good ? int_entropy_bits(sum, g.n, c.terms[g.n]) : NAN;
}

}  // namespace

void CudaBackend::int_params(Tensor scales, Tensor zeros, Tensor entropy_plain, Tensor entropy, Tensor w,
                             IntSpec spec) {
  const int64_t length = spec.group == kPerChannel ? w.cols : spec.group, longest = std::min(length, w.cols);
  if (w.numel() == 0) return;
  ParamsCall c{};
  c.w = w.as<float>(), c.w_stride = w.stride, c.rows = w.rows, c.cols = w.cols;
  c.length = length, c.groups = scales.cols;
  c.scales = scales.as<float>(), c.scale_stride = scales.stride;
  c.zeros = zeros.data, c.zero_stride = zeros.stride;
  if (entropy_plain) c.plain = entropy_plain.as<float>(), c.plain_stride = entropy_plain.stride;
  if (entropy) c.entropy = entropy.as<float>(), c.entropy_stride = entropy.stride;
  c.symmetric = spec.symmetric, c.shift = spec.search == IntSearch::zero_shift, c.count = c.plain || c.entropy;
  // The tables travel with the call. The source may go when the copy returns: it lies in ordinary memory.
  const std::vector<float> factors = int_factors(spec);
  if (spec.search != IntSearch::none) c.factor_count = static_cast<int>(factors.size());
  const int64_t term_bytes = (longest + 1) * int64_t{sizeof(int64_t)};
  char* tables = static_cast<char*>(workspace(term_bytes + static_cast<int64_t>(factors.size()) * 4));
  if (c.count || c.factor_count > 0) {
    CUDA_CHECK(cudaMemcpyAsync(tables, int_entropy_terms(longest), static_cast<size_t>(term_bytes),
                               cudaMemcpyHostToDevice, stream()));
    CUDA_CHECK(
        cudaMemcpyAsync(tables + term_bytes, factors.data(), factors.size() * 4, cudaMemcpyHostToDevice, stream()));
  }
  c.terms = reinterpret_cast<const int64_t*>(tables), c.factors = reinterpret_cast<const float*>(tables + term_bytes);
  const unsigned grid = static_cast<unsigned>(ceil_div(c.rows * c.groups, kWarps));
  dispatch_bits(spec.bits, [&](auto k) {
    auto* kernel = zeros.dtype == DType::F32 ? params_kernel<k.value, true> : params_kernel<k.value, false>;
    kernel<<<grid, kThreads, 0, stream()>>>(c);
  });
  CUDA_LAUNCHED();
}

}  // namespace irq
