// What    GPTQ's inner loop over up to 128 columns, and the permutation of a matrix's rows and columns
// Math    fidelity 5.3: code_i, e_i = (w_i - w_hat_i) / u_ii, w_j -= e_i u_ij for the later columns of the block
// Shapes  w, err (rows, count) F32, u (count, count) F32, bytes u8 (rows, cols); scales, zeros (rows, groups)
// Cost    rows * count^2 multiply-adds in a chain of `count` steps of about 100 cycles each. All of GPTQ behind the factor
//         takes 15 ms for 4096 x 4096 on an H100, transfers of W and of the result included
// Tricky  a warp has a row, a lane its columns lane, lane + 32, ..: w_i is broadcast by a shuffle. What is not above the
//         diagonal of u is 0 in shared memory, so that finished columns need no test. No FMA: the bits are the CPU's.
#include "kernels/common.cuh"
#include "kernels/int_group.h"
#include "kernels/nfk_block.cuh"

namespace irq {
namespace {

constexpr int kMostColumns = 128, kSlots = kMostColumns / kWarp;
constexpr int kWarps = 16, kThreads = kWarps * kWarp;
constexpr size_t kSharedBytes = (kMostColumns * kMostColumns + kMostColumns) * sizeof(float);

struct BlockCall {
  uint8_t* bytes;
  float* err;
  const float *w, *u, *scales;
  const void* zeros;
  const int32_t* order;
  int64_t rows, first, length;
  int64_t bytes_stride, err_stride, w_stride, u_stride, scale_stride, zero_stride;
  int count;
};

template <int kBits, bool kFloatZero>
__global__ void __launch_bounds__(kThreads) block_kernel(BlockCall c) {
  extern __shared__ float shared[];  // u above its diagonal (128, 128), then the diagonal
  float* diagonal = shared + kMostColumns * kMostColumns;
  for (int at = threadIdx.x; at < kMostColumns * kMostColumns; at += kThreads) {
    const int i = at / kMostColumns, j = at % kMostColumns;
    shared[at] = j > i && j < c.count ? c.u[i * c.u_stride + j] : 0.0f;
    if (i == j) diagonal[i] = i < c.count ? c.u[i * c.u_stride + i] : 1.0f;
  }
  __syncthreads();
  const int lane = threadIdx.x % kWarp;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (row >= c.rows) return;
  float v[kSlots], error[kSlots];
  int code_of[kSlots];
#pragma unroll
  for (int s = 0; s < kSlots; ++s) {
    const int i = s * kWarp + lane;
    v[s] = i < c.count ? c.w[row * c.w_stride + i] : 0.0f;
    error[s] = 0, code_of[s] = 0;
  }
  float scale = 0, zero = 0;
  int64_t g = -1;
#pragma unroll
  for (int s = 0; s < kSlots; ++s) {
    for (int o = 0; o < kWarp && s * kWarp + o < c.count; ++o) {
      const int i = s * kWarp + o;
      const int64_t mine = (c.first + i) / c.length;
      if (mine != g) {
        g = mine;
        scale = c.scales[row * c.scale_stride + g];
        zero = kFloatZero ? static_cast<const float*>(c.zeros)[row * c.zero_stride + g]
                          : static_cast<float>(static_cast<const uint8_t*>(c.zeros)[row * c.zero_stride + g]);
      }
      const float x = __shfl_sync(kFullWarp, v[s], o);
      const float code = int_code<kFloatZero>(x, scale, zero, int_top(kBits));
      const float w_hat = __fmul_rn(scale, __fsub_rn(code, zero));
      const float e = __fdiv_rn(__fsub_rn(x, w_hat), diagonal[i]);
      if (lane == o) error[s] = e, code_of[s] = static_cast<int>(code);
#pragma unroll
      for (int t = s; t < kSlots; ++t)
        v[t] = __fsub_rn(v[t], __fmul_rn(e, shared[i * kMostColumns + t * kWarp + lane]));
    }
  }
#pragma unroll
  for (int s = 0; s < kSlots; ++s) {
    const int i = s * kWarp + lane;
    if (i >= c.count) continue;
    c.err[row * c.err_stride + i] = error[s];
    c.bytes[row * c.bytes_stride + (c.order ? c.order[c.first + i] : c.first + i)] = static_cast<uint8_t>(code_of[s]);
  }
}

__global__ void __launch_bounds__(256) permute_kernel(float* y, int64_t y_stride, const float* x, int64_t x_stride,
                                                      const int32_t* rows, const int32_t* cols, int64_t n, int64_t m) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < n * m; at += step) {
    const int64_t i = at / m, j = at - i * m;
    y[i * y_stride + j] = x[(rows ? rows[i] : i) * x_stride + (cols ? cols[j] : j)];
  }
}

}  // namespace

void CudaBackend::gptq_block(Tensor bytes, Tensor err, Tensor w, Tensor u, Tensor scales, Tensor zeros, Tensor order,
                             int64_t first, int bits, int group) {
  if (w.numel() == 0) return;
  BlockCall c{};
  c.bytes = bytes.as<uint8_t>(), c.bytes_stride = bytes.stride;
  c.err = err.as<float>(), c.err_stride = err.stride;
  c.w = w.as<float>(), c.w_stride = w.stride, c.rows = w.rows, c.count = static_cast<int>(w.cols);
  c.u = u.as<float>(), c.u_stride = u.stride;
  c.scales = scales.as<float>(), c.scale_stride = scales.stride;
  c.zeros = zeros.data, c.zero_stride = zeros.stride;
  c.order = order ? order.as<int32_t>() : nullptr;
  c.first = first, c.length = group == kPerChannel ? bytes.cols : group;
  dispatch_bits(bits, [&](auto k) {
    auto* kernel = zeros.dtype == DType::F32 ? block_kernel<k.value, true> : block_kernel<k.value, false>;
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
    kernel<<<static_cast<unsigned>(ceil_div(c.rows, kWarps)), kThreads, kSharedBytes, stream()>>>(c);
  });
  CUDA_LAUNCHED();
}

void CudaBackend::permute(Tensor y, Tensor x, Tensor rows, Tensor cols) {
  if (y.numel() == 0) return;
  const auto index = [](const Tensor& t) { return t ? t.as<int32_t>() : nullptr; };
  const unsigned grid = static_cast<unsigned>(std::min<int64_t>(ceil_div(y.numel(), 256), int64_t{32} * sm_count()));
  permute_kernel<<<grid, 256, 0, stream()>>>(y.as<float>(), y.stride, x.as<float>(), x.stride, index(rows), index(cols),
                                             y.rows, y.cols);
  CUDA_LAUNCHED();
}

}  // namespace irq
