// The tensor-core kernel of nfk_matmul (nfk_matmul_bf16.cu), for nfk_matmul.cu to choose.
#pragma once
#include "kernels/nfk_block.cuh"

namespace irq {

// y (m, rows) = beta * y + x (m, cols) w_hat^T for m <= 16. Needs cols % 64 = 0, x and its stride aligned to 16 bytes, codes to 8.
void nfk_matmul_bf16(__nv_bfloat16* y, int64_t y_stride, const __nv_bfloat16* x, int64_t x_stride, const PackedView& q,
                     int bits, int m, float beta, cudaStream_t stream);

}  // namespace irq
