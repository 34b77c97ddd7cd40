// What    weights into a stream of integer codes; codes of one byte each into such a stream, with each group's entropy
// Math    code = rint(w / scale) + zero, clamped (fidelity 5.2); with zeros in F32 rint(w / scale + zero)
// Shapes  codes u8 (1, ceil(rows * cols * bits / 8)); w, bytes (rows, cols), scales, zeros (rows, groups), any stride
// Cost    11008 x 4096 on an H100: 0.20 ms, a third of what the bytes ask for: eight divisions a thread; int_pack 0.25 ms
// Tricky  eight codes are `bits` whole bytes wherever rows begin, so a thread makes eight consecutive ones and no byte is shared
#include "kernels/common.cuh"
#include "kernels/int_group.h"
#include "kernels/nfk_block.cuh"

namespace irq {
namespace {

constexpr int kThreads = 256;

// Eight codes of the flattened matrix from code(row, col).
template <int kBits, class Code>
__device__ __forceinline__ void write_pack(uint8_t* stream, int64_t pack, int64_t numel, int64_t cols, Code code) {
  int64_t row = pack * 8 / cols, col = pack * 8 - row * cols;
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    word = word << kBits | (pack * 8 + i < numel ? code(row, col) : 0u);
    if (++col == cols) col = 0, ++row;
  }
  const int64_t bytes = (numel * kBits + 7) / 8;
#pragma unroll
  for (int b = 0; b < kBits; ++b)
    if (pack * kBits + b < bytes) stream[pack * kBits + b] = static_cast<uint8_t>(word >> (8 * (kBits - 1 - b)));
}

struct EncodeCall {
  uint8_t* codes;
  const float *w, *scales;
  const void* zeros;
  int64_t rows, cols, length, w_stride, scale_stride, zero_stride;
};

template <int kBits, bool kFloatZero>
__global__ void __launch_bounds__(kThreads) encode_kernel(EncodeCall c) {
  const int64_t pack = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, numel = c.rows * c.cols;
  if (pack * 8 >= numel) return;
  write_pack<kBits>(c.codes, pack, numel, c.cols, [&](int64_t row, int64_t col) {
    const int64_t g = static_cast<int64_t>(static_cast<uint32_t>(col) / static_cast<uint32_t>(c.length));
    const float zero = kFloatZero ? static_cast<const float*>(c.zeros)[row * c.zero_stride + g]
                                  : static_cast<float>(static_cast<const uint8_t*>(c.zeros)[row * c.zero_stride + g]);
    const float code =
        int_code<kFloatZero>(c.w[row * c.w_stride + col], c.scales[row * c.scale_stride + g], zero, int_top(kBits));
    return static_cast<uint32_t>(static_cast<int>(code));
  });
}

// The same where a row begins on a byte, eight weights of a group are 32 aligned bytes and a group is whole eights: two loads,
// one store.
template <int kBits, bool kFloatZero>
__global__ void __launch_bounds__(kThreads) encode_eights_kernel(EncodeCall c) {
  const int64_t pack = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, packs_per_row = c.cols / 8;
  if (pack >= c.rows * packs_per_row) return;
  const int64_t row = pack / packs_per_row, col = (pack - row * packs_per_row) * 8;
  const int64_t g = static_cast<int64_t>(static_cast<uint32_t>(col) / static_cast<uint32_t>(c.length));
  const float scale = c.scales[row * c.scale_stride + g];
  const float zero = kFloatZero ? static_cast<const float*>(c.zeros)[row * c.zero_stride + g]
                                : static_cast<float>(static_cast<const uint8_t*>(c.zeros)[row * c.zero_stride + g]);
  const float4* from = reinterpret_cast<const float4*>(c.w + row * c.w_stride + col);
  const float4 a = __ldg(from), b = __ldg(from + 1);
  const float w[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i)
    word = word << kBits |
           static_cast<uint32_t>(static_cast<int>(int_code<kFloatZero>(w[i], scale, zero, int_top(kBits))));
  if (kBits == 4) {
    reinterpret_cast<uint32_t*>(c.codes)[pack] = __byte_perm(word, 0, 0x0123);
  } else {
#pragma unroll
    for (int byte = 0; byte < kBits; ++byte)
      c.codes[pack * kBits + byte] = static_cast<uint8_t>(word >> (8 * (kBits - 1 - byte)));
  }
}

template <int kBits>
__global__ void __launch_bounds__(kThreads)
    pack_kernel(uint8_t* codes, const uint8_t* bytes, int64_t rows, int64_t cols, int64_t stride) {
  const int64_t pack = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (pack * 8 >= rows * cols) return;
  write_pack<kBits>(codes, pack, rows * cols, cols,
                    [&](int64_t row, int64_t col) { return static_cast<uint32_t>(bytes[row * stride + col]); });
}

// A warp has a group.
template <int kBits>
__global__ void __launch_bounds__(kThreads)
    entropy_kernel(float* entropy, int64_t entropy_stride, const uint8_t* bytes, int64_t rows, int64_t cols,
                   int64_t stride, int64_t length, int64_t groups, const int64_t* terms) {
  const int lane = threadIdx.x % kWarp;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (index >= rows * groups) return;
  const int64_t row = index / groups, g = index - row * groups, n = min(length, cols - g * length);
  const uint8_t* code = bytes + row * stride + g * length;
  uint32_t counts[1 << kBits] = {};
  for (int64_t i = lane; i < n; i += kWarp) {
    const int mine = code[i];
#pragma unroll
    for (int c = 0; c < 1 << kBits; ++c) counts[c] += mine == c;
  }
  int64_t sum = 0;
#pragma unroll
  for (int c = 0; c < 1 << kBits; ++c) sum += terms[__reduce_add_sync(kFullWarp, counts[c])];
  if (lane == 0) entropy[row * entropy_stride + g] = int_entropy_bits(sum, n, terms[n]);
}

}  // namespace

void CudaBackend::int_encode(Tensor codes, Tensor w, Tensor scales, Tensor zeros, int bits, int group) {
  if (w.numel() == 0) return;
  const EncodeCall c{codes.as<uint8_t>(),
                     w.as<float>(),
                     scales.as<float>(),
                     zeros.data,
                     w.rows,
                     w.cols,
                     group == kPerChannel ? w.cols : group,
                     w.stride,
                     scales.stride,
                     zeros.stride};
  const unsigned grid = static_cast<unsigned>(ceil_div(ceil_div(w.numel(), 8), kThreads));
  const bool eights = w.cols % 8 == 0 && c.length % 8 == 0 && w.stride % 4 == 0 &&
                      reinterpret_cast<uintptr_t>(w.data) % 16 == 0 && reinterpret_cast<uintptr_t>(c.codes) % 4 == 0;
  dispatch_bits(bits, [&](auto k) {
    const bool float_zero = zeros.dtype == DType::F32;
    auto* kernel = eights ? (float_zero ? encode_eights_kernel<k.value, true> : encode_eights_kernel<k.value, false>)
                          : (float_zero ? encode_kernel<k.value, true> : encode_kernel<k.value, false>);
    kernel<<<grid, kThreads, 0, stream()>>>(c);
  });
  CUDA_LAUNCHED();
}

void CudaBackend::int_pack(Tensor codes, Tensor entropy, Tensor bytes, int bits, int group) {
  const int64_t numel = bytes.numel(), length = group == kPerChannel ? bytes.cols : group;
  if (numel == 0) return;
  const uint8_t* from = bytes.as<uint8_t>();
  dispatch_bits(bits, [&](auto k) {
    pack_kernel<k.value><<<static_cast<unsigned>(ceil_div(ceil_div(numel, 8), kThreads)), kThreads, 0, stream()>>>(
        codes.as<uint8_t>(), from, bytes.rows, bytes.cols, bytes.stride);
    CUDA_LAUNCHED();
    if (!entropy) return;
    const int64_t longest = std::min(length, bytes.cols), size = (longest + 1) * int64_t{sizeof(int64_t)};
    int64_t* terms = static_cast<int64_t*>(workspace(size));
    CUDA_CHECK(cudaMemcpyAsync(terms, int_entropy_terms(longest), static_cast<size_t>(size), cudaMemcpyHostToDevice,
                               stream()));
    const int64_t groups = entropy.rows * entropy.cols;
    entropy_kernel<k.value><<<static_cast<unsigned>(ceil_div(groups, kThreads / kWarp)), kThreads, 0, stream()>>>(
        entropy.as<float>(), entropy.stride, from, bytes.rows, bytes.cols, bytes.stride, length, entropy.cols, terms);
    CUDA_LAUNCHED();
  });
}

}  // namespace irq
