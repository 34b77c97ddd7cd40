// What  : y = beta * y + x w_hat^T for a few rows of x (decoding), straight from the codes. BF16 goes to the tensor cores
//         (nfk_matmul_few.cu, nfk_matmul_many.cu, nfk_matmul_many_sm90.cu, nfk_matmul_bf16.cu); here is F32, which is for verifying, and the way for any shape and alignment.
// Math  : y[m][r] = beta * y[m][r] + sum_c x[m][c] * (level[code] * s_hat + tau_hat), products and sums in F32.
// Shapes: x (M, cols), y (M, rows) BF16 or F32; w (rows, cols) NF2/3/4 codes. M in tiles of up to 16 rows.
// Cost  : k/8 + 0.03 bytes per weight and tile. F32: about 8 instructions per weight to dequantize plus M FMAs, 50 us for
//         45 M weights at M = 1 on an H100, five times what the bytes take.
// Tricky: one warp per kRows rows of w, so that each 16-byte load of x serves all of them. A lane takes 8 neighbouring
//         weights at a time (k bytes of codes, one block): codes and x are read in whole lines. Partial sums are added by
//         a fixed shuffle tree. cols % 64 != 0 or an unaligned x goes through a general kernel, a warp per output.
#include "kernels/kernel_choice.h"
#include "kernels/nfk_matmul.cuh"

namespace irq {
namespace {

constexpr int kThreads = 128;

__device__ __forceinline__ void load_8(float* out, const float* x) {
#pragma unroll
  for (int p = 0; p < 2; ++p) {
    const float4 four = reinterpret_cast<const float4*>(x)[p];
    out[4 * p] = four.x, out[4 * p + 1] = four.y, out[4 * p + 2] = four.z, out[4 * p + 3] = four.w;
  }
}
// The codes of 8 weights, first on top; group g covers weights 8g .. 8g+7 of the whole matrix.
template <int kBits>
__device__ __forceinline__ uint32_t codes_of_8(const uint8_t* codes, int64_t g) {
  if constexpr (kBits == 4) return __byte_perm(__ldg(reinterpret_cast<const uint32_t*>(codes) + g), 0, 0x0123);
  else if constexpr (kBits == 2) return __byte_perm(__ldg(reinterpret_cast<const uint16_t*>(codes) + g), 0, 0x4401);
  else
    return (static_cast<uint32_t>(__ldg(codes + 3 * g)) << 16) |
           (static_cast<uint32_t>(__ldg(codes + 3 * g + 1)) << 8) | __ldg(codes + 3 * g + 2);
}

template <int kBits, int kM, int kRows>
__global__ void __launch_bounds__(kThreads, 4)
    matmul_f32_kernel(float* y, int64_t y_stride, const float* x, int64_t x_stride, PackedView q, int m_count,
                      float beta, Codebook book) {
  __shared__ float levels[16];
  if (threadIdx.x < 1 << kBits) levels[threadIdx.x] = book.level[threadIdx.x];
  __syncthreads();
  const int lane = threadIdx.x % kWarp;
  const int64_t row0 = (static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp) * kRows;
  if (row0 >= q.rows) return;
  float sum[kRows][kM] = {};
  for (int64_t c = lane * 8; c < q.cols; c += kWarp * 8) {
    float w[kRows][8];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t at =
          min(row0 + r, q.rows - 1) * q.cols + c;  // rows past the end repeat the last and are not stored
      const uint32_t bits = codes_of_8<kBits>(q.codes, at / 8);
      const float scale = block_scale(q, at / kBlock), tau = q.tau_codes ? block_tau(q, at / kBlock) : 0.0f;
#pragma unroll
      for (int i = 0; i < 8; ++i)
        w[r][i] = dequantized<true>(levels[(bits >> (kBits * (7 - i))) & ((1u << kBits) - 1)], scale, tau);
    }
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      if (m >= m_count) break;
      float v[8];
      load_8(v, x + m * x_stride + c);
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[r][m] = fmaf(v[i], w[r][i], sum[r][m]);
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      if (m >= m_count) break;
      const float total = warp_sum(sum[r][m]);
      if (lane != 0 || row0 + r >= q.rows) continue;
      float& out = y[m * y_stride + row0 + r];
      out = beta == 0.0f ? total : fmaf(beta, out, total);
    }
}

// Any shape and alignment: one warp per output.
template <int kBits, class T>
__global__ void __launch_bounds__(kThreads)
    matmul_general_kernel(T* y, int64_t y_stride, const T* x, int64_t x_stride, PackedView q, int64_t m_count,
                          float beta, Codebook book) {
  __shared__ float levels[16];
  if (threadIdx.x < 1 << kBits) levels[threadIdx.x] = book.level[threadIdx.x];
  __syncthreads();
  const int lane = threadIdx.x % kWarp;
  const int64_t step = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  for (int64_t o = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp; o < q.rows * m_count;
       o += step) {
    const int64_t row = o / m_count, m = o % m_count;
    float sum = 0;
    for (int64_t c = lane; c < q.cols; c += kWarp) {
      const int64_t at = row * q.cols + c;
      const float tau = q.tau_codes ? block_tau(q, at / kBlock) : 0.0f;
      sum = fmaf(to_f(x[m * x_stride + c]),
                 dequantized<true>(levels[code_at<kBits>(q.codes, at)], block_scale(q, at / kBlock), tau), sum);
    }
    sum = warp_sum(sum);
    if (lane != 0) continue;
    T& out = y[m * y_stride + row];
    out = from_f<T>(beta == 0.0f ? sum : fmaf(beta, to_f(out), sum));
  }
}

// Up to 16 rows.
template <int kBits>
void launch_tile(float* y, int64_t y_stride, const float* x, int64_t x_stride, const PackedView& q, int m, float beta,
                 cudaStream_t stream) {
  const Codebook& book = nf_codebook(kBits);
  const unsigned grid = static_cast<unsigned>(ceil_div(q.rows, 2 * (kThreads / kWarp)));
  if (m == 1) matmul_f32_kernel<kBits, 1, 2><<<grid, kThreads, 0, stream>>>(y, y_stride, x, x_stride, q, m, beta, book);
  else if (m <= 4)
    matmul_f32_kernel<kBits, 4, 2><<<grid, kThreads, 0, stream>>>(y, y_stride, x, x_stride, q, m, beta, book);
  else matmul_f32_kernel<kBits, 16, 2><<<grid, kThreads, 0, stream>>>(y, y_stride, x, x_stride, q, m, beta, book);
}
template <int kBits>
void launch_tile(__nv_bfloat16* y, int64_t y_stride, const __nv_bfloat16* x, int64_t x_stride, const PackedView& q,
                 int m, float beta, cudaStream_t stream) {
  nfk_matmul_bf16(y, y_stride, x, x_stride, q, kBits, m, beta, stream);
}

}  // namespace

void CudaBackend::nfk_matmul(Tensor y, Tensor x, QuantizedMatrix q, double beta) {
  IRQ_CHECK(q.format.kind == QuantKind::nf && q.format.group == kBlock, "nfk_matmul reads NF codes in blocks of 64");
  if (y.rows == 0 || q.rows == 0) return;
  const PackedView view = packed_view(q);
  dispatch_storage(y.dtype, [&](auto zero) {
    using T = decltype(zero);
    const bool fast = q.cols % kBlock == 0 && x.stride % Pack<T>::kCount == 0 && aligned_16(x.data) &&
                      aligned_16(view.codes) && (y.dtype == DType::F32 || nfk_matmul_bf16_takes(view, q.format.bits));
    dispatch_bits(q.format.bits, [&](auto k) {
      T* out = static_cast<T*>(y.data);
      const T* in = static_cast<const T*>(x.data);
      if (!fast) {
        const int64_t outputs = q.rows * y.rows;
        const unsigned grid =
            static_cast<unsigned>(std::min<int64_t>(ceil_div(outputs, kThreads / kWarp), int64_t{64} * sm_count()));
        matmul_general_kernel<k.value><<<grid, kThreads, 0, stream()>>>(out, y.stride, in, x.stride, view, y.rows,
                                                                        static_cast<float>(beta), nf_codebook(k.value));
        return;
      }
      int count = 0;
      for (int64_t m = 0; m < y.rows; m += count) {
        const int64_t left = y.rows - m;
        if constexpr (std::is_same_v<T, __nv_bfloat16>) {
          const auto shared_out = [&](auto matmul, int most) {
            count = static_cast<int>(std::min<int64_t>(most, left));
            return matmul(out + m * y.stride, y.stride, in + m * x.stride, x.stride, view, q.format.bits, count,
                          static_cast<float>(beta), sm_count(), shared_bytes(), stream());
          };
          if (left > kFewTokens && runs_sm90_kernels(properties_.major, properties_.minor)) {
            count = static_cast<int>(std::min<int64_t>(kManyTokens, left));
            if (nfk_matmul_many_sm90(out + m * y.stride, y.stride, in + m * x.stride, x.stride, view, q.format.bits,
                                     count, static_cast<float>(beta), shared_bytes(), stream()))
              continue;
          }
          if (left > kFewTokens && shared_out(nfk_matmul_many, kManyTokens)) continue;
          if (shared_out(nfk_matmul_few, kFewTokens)) continue;
        }
        count = static_cast<int>(std::min<int64_t>(16, left));
        launch_tile<k.value>(out + m * y.stride, y.stride, in + m * x.stride, x.stride, view, count,
                             static_cast<float>(beta), stream());
      }
    });
  });
  CUDA_LAUNCHED();
}

}  // namespace irq
