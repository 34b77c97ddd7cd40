// The tensor-core kernels of nfk_matmul, for nfk_matmul.cu to choose.
#pragma once
#include "kernels/nfk_block.cuh"

namespace irq {

// Whole blocks per row, and rows of codes that start at 16 bytes: for NF3 an even number of blocks.
inline bool nfk_matmul_bf16_takes(const PackedView& q, int bits) {
  return q.cols % kBlock == 0 && q.cols / kBlock * (kBlock / 8 * bits) % 16 == 0 && aligned_16(q.codes) &&
         q.rows * (q.cols / kBlock) < int64_t{1} << 31;
}
// y (m, rows) = beta * y + x (m, cols) w_hat^T for m <= 16, of a q that it takes; x and its stride aligned to 16 bytes.
void nfk_matmul_bf16(__nv_bfloat16* y, int64_t y_stride, const __nv_bfloat16* x, int64_t x_stride, const PackedView& q,
                     int bits, int m, float beta, cudaStream_t stream);

// The same for m <= kFewTokens by nfk_matmul_few.cu and for m <= kManyTokens by nfk_matmul_many.cu; false if they do not take it.
constexpr int kFewTokens = 16, kManyTokens = 64;
bool nfk_matmul_few(__nv_bfloat16* y, int64_t y_stride, const __nv_bfloat16* x, int64_t x_stride, const PackedView& q,
                    int bits, int m, float beta, int multiprocessors, int64_t shared_bytes, cudaStream_t stream);
bool nfk_matmul_many(__nv_bfloat16* y, int64_t y_stride, const __nv_bfloat16* x, int64_t x_stride, const PackedView& q,
                     int bits, int m, float beta, int multiprocessors, int64_t shared_bytes, cudaStream_t stream);
// The same for m <= kManyTokens by nfk_matmul_many_sm90.cu, where code for sm_90a runs.
bool nfk_matmul_many_sm90(__nv_bfloat16* y, int64_t y_stride, const __nv_bfloat16* x, int64_t x_stride,
                          const PackedView& q, int bits, int m, float beta, int64_t shared_bytes, cudaStream_t stream);

}  // namespace irq
