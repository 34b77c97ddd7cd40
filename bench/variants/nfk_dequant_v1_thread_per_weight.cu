// What  : variant 1 of nfk_dequant: the definition, one thread per weight.
// Math  : w_hat = bf16(fl(fl(level[code] * s_hat) + tau_hat)), s_hat and tau_hat decoded from their 8-bit codes (paper Eqs
//         3, 10).
// Shapes: NF4 codes, double-quantized scales and shifts -> w (rows, cols) BF16, any row stride.
// Cost  : 2.53 bytes per weight are 41 us for 11008 x 4096 at 2.8 TB/s, but each thread decodes its own scale and shift:
//         seven loads, a 64-bit division for the row, a 2-byte store, about 120 instructions per weight.
// Tricky: nothing. The levels are a kernel argument, so they lie in constant memory, which serves one address at a time: 32
//         lanes with 12 different codes wait 12 times.
// Change: none, this is the beginning.
// Predicted: 250 us (190 of issuing, the rest for the levels).
// Measured: 264.6 us, 13.8 % of the copy rate.
#include "bench/variants/variant.cuh"

namespace irq {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) dequant(__nv_bfloat16* w, int64_t stride, PackedView q, Codebook book) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= q.rows * q.cols) return;
  const int64_t block = i / kBlock, row = i / q.cols;
  const float level = book.level[code_at<4>(q.codes, i)];
  const float x = dequantized<true>(level, block_scale(q, block), block_tau(q, block));
  w[row * stride + (i - row * q.cols)] = __float2bfloat16_rn(x);
}

void run(Backend& backend, const std::vector<Tensor>& t) {
  const Tensor& w = t[0];
  dequant<<<static_cast<unsigned>(ceil_div(w.numel(), kThreads)), kThreads, 0, stream_of(backend)>>>(
      static_cast<__nv_bfloat16*>(w.data), w.stride, nf4_view(t, 1, w.rows, w.cols), nf_codebook(4));
  CUDA_LAUNCHED();
}
[[maybe_unused]] const bool added = add_variant({"nfk_dequant", "v1_thread_per_weight", run});

}  // namespace
}  // namespace irq
