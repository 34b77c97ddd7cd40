// What:   cross-entropy of every row of logits, its gradient written over them.
// Math:   nll = M + log(sum exp(x - M)) - x[target];  x = (exp(x - M) / sum - onehot) * inv_tokens.
// Shapes: logits (L, V) S or M, any row stride; targets (1, L) i32, -1 = no loss; nll (1, L) M. V counts padding columns.
// Cost:   4 L V bytes in bf16, 2 exponentials per element. L = 8192, V = 32000: 1.05 GB, 375 us.
// Tricky: a bf16 row of up to 32,768 columns stays in the registers of its block, all of its loads in flight at once; a longer
//         or unaligned one is read again, from L2. One pass finds maximum and sum together: a thread that meets a new maximum rescales what it has summed. -FLT_MAX
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

// What a thread has seen of a row: its maximum, and the sum of exp(x - maximum).
struct Online {
  float top = -FLT_MAX, sum = 0;
  __device__ __forceinline__ void add(const float (&value)[kChunk]) {
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
};

// The gradient of the eight logits from column c on, in place.
__device__ __forceinline__ void gradient(float (&value)[kChunk], int64_t c, int target, float top, float inv_sum,
                                         float inv_tokens) {
#pragma unroll
  for (int i = 0; i < kChunk; ++i) {
    const float p = expf(value[i] - top) * inv_sum;
    value[i] = (p - (c + i == target ? 1.0f : 0.0f)) * inv_tokens;
  }
}

// x = (softmax - onehot) * inv_tokens; 0 in the padding columns.
template <class T, bool kVector>
__device__ __forceinline__ void write_gradient(T* x, int target, int64_t vocab, int64_t cols, float top, float inv_sum,
                                               float inv_tokens) {
  for (int64_t c = threadIdx.x * kChunk; c < cols; c += kThreads * kChunk) {
    float value[kChunk];
    load_chunk<kVector>(value, x + c, vocab - c, -INFINITY);
    gradient(value, c, target, top, inv_sum, inv_tokens);
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
  Online seen;
  for (int64_t c = threadIdx.x * kChunk; c < vocab; c += kThreads * kChunk) {
    float value[kChunk];
    load_chunk<kVector>(value, x + c, vocab - c, -INFINITY);
    seen.add(value);
  }
  const float row_top = block_max<kThreads>(seen.top);
  const float row_sum = block_sum<kThreads>(seen.sum * expf(seen.top - row_top));
  if (threadIdx.x == 0) nll[row] = logf(row_sum) + (row_top - to_f(x[target]));
  if (!want_grad) return;
  __syncthreads();  // the target's logit has been read
  write_gradient<T, kVector>(x, target, vocab, cols, row_top, 1.0f / row_sum, static_cast<float>(params->inv_tokens));
}

// The same with the row in registers: aligned bf16, cols <= kHeldColumns, with gradient.
constexpr int kHeld = 8;  // packs of eight a thread
constexpr int64_t kHeldColumns = int64_t{kThreads} * kHeld * kChunk;

// Eight bf16 as four words: as an array of 16-bit values they would take a register each.
__device__ __forceinline__ void unpack(float (&value)[kChunk], uint4 x) {
  const uint32_t words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    value[2 * i] = __uint_as_float(words[i] << 16);
    value[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

// Columns [c, c + 8) of a row, -infinity from `vocab` on.
__device__ __forceinline__ uint4 hold(const __nv_bfloat16* x, int c, int vocab) {
  if (c + kChunk <= vocab) return *reinterpret_cast<const uint4*>(x + c);
  constexpr uint32_t kNone = 0xff80;
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int at = c + 2 * i;
    const uint32_t low = at < vocab ? __bfloat16_as_ushort(x[at]) : kNone;
    words[i] = low | (at + 1 < vocab ? __bfloat16_as_ushort(x[at + 1]) : kNone) << 16;
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

__global__ void __launch_bounds__(kThreads, 2)
    held_kernel(float* nll, __nv_bfloat16* logits, int64_t stride, const int* targets, const StepParams* params,
                int vocab, int cols) {
  const int64_t row = blockIdx.x;
  __nv_bfloat16* x = logits + row * stride;
  const int first = static_cast<int>(threadIdx.x) * kChunk;
  constexpr int kStep = kThreads * kChunk;
  uint4 held[kHeld];
#pragma unroll
  for (int p = 0; p < kHeld; ++p) held[p] = hold(x, first + p * kStep, vocab);
  const int target = targets[row];
  if (target < 0) {
    if (threadIdx.x == 0) nll[row] = 0;
    return zero_row<__nv_bfloat16, true>(x, cols);
  }
  const float wanted = threadIdx.x == 0 ? to_f(x[target]) : 0.0f;
  Online seen;
  float value[kChunk];
#pragma unroll
  for (int p = 0; p < kHeld; ++p) unpack(value, held[p]), seen.add(value);
  const float row_top = block_max<kThreads>(seen.top);
  const float row_sum = block_sum<kThreads>(seen.sum * expf(seen.top - row_top));
  if (threadIdx.x == 0) nll[row] = logf(row_sum) + (row_top - wanted);
  const float inv_sum = 1.0f / row_sum, inv_tokens = static_cast<float>(params->inv_tokens);
#pragma unroll
  for (int p = 0; p < kHeld; ++p) {
    const int c = first + p * kStep;
    if (c >= cols) continue;
    unpack(value, held[p]);
    gradient(value, c, target, row_top, inv_sum, inv_tokens);
    store_chunk<true>(x + c, value, cols - c);
  }
}

}  // namespace

void CudaBackend::cross_entropy(Tensor nll, Tensor logits, Tensor targets, Tensor params, int64_t vocab,
                                bool want_grad) {
  if (logits.rows == 0) return;
  IRQ_CHECK(vocab > 0 && vocab <= logits.cols && logits.rows < INT32_MAX, "vocabulary of %ld in %ld columns, %ld rows",
            vocab, logits.cols, logits.rows);
  dispatch_storage(logits.dtype, [&](auto zero) {
    using T = decltype(zero);
    if constexpr (std::is_same_v<T, __nv_bfloat16>)
      if (want_grad && aligned16(logits) && logits.cols <= kHeldColumns) {
        held_kernel<<<static_cast<unsigned>(logits.rows), kThreads, 0, stream_>>>(
            nll.as<float>(), static_cast<T*>(logits.data), logits.stride, targets.as<int32_t>(),
            static_cast<const StepParams*>(params.data), static_cast<int>(vocab), static_cast<int>(logits.cols));
        return;
      }
    auto* kernel = aligned16(logits) ? &cross_entropy_kernel<T, true> : &cross_entropy_kernel<T, false>;
    kernel<<<static_cast<unsigned>(logits.rows), kThreads, 0, stream_>>>(
        static_cast<float*>(nll.data), static_cast<T*>(logits.data), logits.stride,
        static_cast<const int*>(targets.data), static_cast<const StepParams*>(params.data), vocab, logits.cols,
        want_grad);
  });
  CUDA_LAUNCHED();
}

}  // namespace irq
