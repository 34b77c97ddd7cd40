// What:   cross-entropy of every row of logits, its gradient written over them.
// Math:   nll = M + log(sum exp(x - M)) - x[target];  x = (exp(x - M) / sum - onehot) * inv_tokens.
// Shapes: logits (L, V) S or M, any row stride; targets (1, L) i32, -1 = no loss; nll (1, L) M. V counts padding columns.
// Cost:   4 L V bytes in bf16 (the second read hits L2), 2 exponentials per element. L = 8192, V = 32000: 1.05 GB, 375 us.
// Tricky: one pass finds maximum and sum together: a thread that meets a new maximum rescales what it has summed. -FLT_MAX
//         rather than -inf starts the maximum, so that logits of -inf give exp(-inf) = 0 and never inf - inf.
#include <cfloat>

#include "kernels/chunk.cuh"

namespace irq {
namespace {

constexpr int kThreads = 512;

template <class T, bool kVector>
__device__ __forceinline__ void zero_row(T* x, int64_t cols) {
  const float zeros[kChunk] = {};
  for (int64_t c = threadIdx.x * kChunk; c < cols; c += kThreads * kChunk) store_chunk<kVector>(x + c, zeros, cols - c);
}

// x = (softmax - onehot) * inv_tokens; 0 in the padding columns.
template <class T, bool kVector>
__device__ __forceinline__ void write_gradient(T* x, int target, int64_t vocab, int64_t cols, float top, float inv_sum,
                                               float inv_tokens) {
  for (int64_t c = threadIdx.x * kChunk; c < cols; c += kThreads * kChunk) {
    float value[kChunk];
    load_chunk<kVector>(value, x + c, vocab - c, -INFINITY);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      const float p = expf(value[i] - top) * inv_sum;
      value[i] = (p - (c + i == target ? 1.0f : 0.0f)) * inv_tokens;
    }
    store_chunk<kVector>(x + c, value, cols - c);
  }
}

template <class T, bool kVector>
__global__ void __launch_bounds__(kThreads)
    cross_entropy_kernel(float* nll, T* logits, int64_t stride, const int* targets, const StepParams* params,
                         int64_t vocab, int64_t cols, bool want_grad) {
  const int64_t row = blockIdx.x;
  T* x = logits + row * stride;
  const int target = targets[row];
  if (target < 0) {
    if (threadIdx.x == 0) nll[row] = 0;
    if (want_grad) zero_row<T, kVector>(x, cols);
    return;
  }
  float top = -FLT_MAX, sum = 0;
  for (int64_t c = threadIdx.x * kChunk; c < vocab; c += kThreads * kChunk) {
    float value[kChunk];
    load_chunk<kVector>(value, x + c, vocab - c, -INFINITY);
    float best = value[0];
#pragma unroll
    for (int i = 1; i < kChunk; ++i) best = fmaxf(best, value[i]);
    if (best > top) {
      sum *= expf(top - best);
      top = best;
    }
    float chunk_sum = 0;
#pragma unroll
    for (int i = 0; i < kChunk; ++i) chunk_sum += expf(value[i] - top);
    sum += chunk_sum;
  }
  const float row_top = block_max<kThreads>(top);
  const float row_sum = block_sum<kThreads>(sum * expf(top - row_top));
  if (threadIdx.x == 0) nll[row] = logf(row_sum) + (row_top - to_f(x[target]));
  if (!want_grad) return;
  __syncthreads();  // the target's logit has been read
  write_gradient<T, kVector>(x, target, vocab, cols, row_top, 1.0f / row_sum, static_cast<float>(params->inv_tokens));
}

}  // namespace

void CudaBackend::cross_entropy(Tensor nll, Tensor logits, Tensor targets, Tensor params, int64_t vocab,
                                bool want_grad) {
  if (logits.rows == 0) return;
  IRQ_CHECK(vocab > 0 && vocab <= logits.cols && logits.rows < INT32_MAX, "vocabulary of %ld in %ld columns, %ld rows",
            vocab, logits.cols, logits.rows);
  dispatch_storage(logits.dtype, [&](auto zero) {
    using T = decltype(zero);
    auto* kernel = aligned16(logits) ? &cross_entropy_kernel<T, true> : &cross_entropy_kernel<T, false>;
    kernel<<<static_cast<unsigned>(logits.rows), kThreads, 0, stream_>>>(
        static_cast<float*>(nll.data), static_cast<T*>(logits.data), logits.stride,
        static_cast<const int*>(targets.data), static_cast<const StepParams*>(params.data), vocab, logits.cols,
        want_grad);
  });
  CUDA_LAUNCHED();
}

}  // namespace irq
