// What    w_hat of integer codes (round to nearest, GPTQ, PEQA, QA-LoRA), bit for bit what the CPU gives
// Math    w = scale * (code - zero), fp32 with a rounding after each step, then rounded to w's type
// Shapes  codes: bit stream of (rows, cols); scales, zeros (rows, ceil(cols / group)); w (rows, cols), any stride
// Cost    bits / 8 + 2 bytes a weight and 5 to 8 bytes a group: 45 us for 11008 x 4096 in bf16 at 3 TB/s
// Tricky  eight codes are bits whole bytes: where a row begins on a byte and a group is a multiple of 8, a thread takes eight
//         codes of one group with `bits` byte loads and one 16-byte store
#include "kernels/common.cuh"
#include "kernels/int_codes.h"
#include "kernels/map.cuh"
#include "kernels/nfk_block.cuh"

namespace irq {
namespace {

constexpr int kThreads = 256;

struct IntView {
  const uint8_t* codes;
  const float* scales;
  const void* zeros;
  int64_t rows, cols, group, groups;
};

template <bool kFloatZero>
__device__ __forceinline__ float zero_of(const IntView& q, int64_t block) {
  return kFloatZero ? static_cast<const float*>(q.zeros)[block]
                    : static_cast<float>(static_cast<const uint8_t*>(q.zeros)[block]);
}

template <int kBits, bool kFloatZero, class T>
__global__ void __launch_bounds__(kThreads) int_dequant_kernel(T* w, int64_t stride, IntView q) {
  const int64_t packs_per_row = q.cols / 8, packs = q.rows * packs_per_row;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t p = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; p < packs; p += step) {
    const int64_t row = p / packs_per_row, col = (p - row * packs_per_row) * 8, block = row * q.groups + col / q.group;
    uint32_t bits = 0;  // eight codes of up to four bits
#pragma unroll
    for (int i = 0; i < kBits; ++i) bits = bits << 8 | q.codes[p * kBits + i];
    const float scale = q.scales[block], zero = zero_of<kFloatZero>(q, block);
    Vec<T, 8> out;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float code = static_cast<float>((bits >> (kBits * (7 - i))) & ((1u << kBits) - 1u));
      out.v[i] = from_f<T>(__fmul_rn(scale, __fsub_rn(code, zero)));
    }
    store_vec(w + row * stride + col, out);
  }
}

// Any shape and stride: one thread per weight.
template <int kBits, bool kFloatZero, class T>
__global__ void __launch_bounds__(kThreads) int_dequant_general_kernel(T* w, int64_t stride, IntView q) {
  const int64_t numel = q.rows * q.cols, step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < numel; i += step) {
    const int64_t row = i / q.cols, col = i - row * q.cols, block = row * q.groups + col / q.group;
    const float code = static_cast<float>(stream_code(q.codes, kBits, i));
    w[row * stride + col] = from_f<T>(__fmul_rn(q.scales[block], __fsub_rn(code, zero_of<kFloatZero>(q, block))));
  }
}

}  // namespace

void CudaBackend::int_dequant(Tensor w, QuantizedMatrix q) {
  const int64_t numel = q.numel();
  if (numel == 0) return;
  const IntView view{q.codes.as<uint8_t>(), q.scales.as<float>(), q.zeros.data, q.rows, q.cols,
                     q.group_size(),        q.groups_per_row()};
  const bool fast = q.cols % 8 == 0 && view.group % 8 == 0 && packs_fit(w, 8);
  const unsigned grid =
      static_cast<unsigned>(std::min<int64_t>(ceil_div(fast ? numel / 8 : numel, kThreads), int64_t{32} * sm_count()));
  dispatch_storage(w.dtype, [&](auto type) {
    using T = decltype(type);
    dispatch_bits(q.format.bits, [&](auto k) {
      T* out = static_cast<T*>(w.data);
      const bool float_zero = q.format.shift == ShiftKind::float_zero;
      auto* kernel = fast ? (float_zero ? int_dequant_kernel<k.value, true, T> : int_dequant_kernel<k.value, false, T>)
                          : (float_zero ? int_dequant_general_kernel<k.value, true, T>
                                        : int_dequant_general_kernel<k.value, false, T>);
      kernel<<<grid, kThreads, 0, stream()>>>(out, w.stride, view);
    });
  });
  CUDA_LAUNCHED();
}

}  // namespace irq
