// What  : the dense matrix of a quantized one, in the storage type.
// Math  : w_hat = fl(fl(level[code] * s_hat) + tau_hat), rounded once to bf16 (paper Eqs 3 and 10); s_hat and tau_hat are
//         decoded from their 8-bit codes on the way.
// Shapes: codes u8 (1, n k/8), scale codes u8 (1, n/64) -> w (rows, cols) BF16 or F32, any row stride.
// Cost  : 2 + k/8 + 0.03 bytes per weight: 45 M weights (11008 x 4096) NF4 are 114 MB = 41 us at 2.8 TB/s; about 10
//         instructions per weight, a third of the issue rate at that speed.
// Tricky: a warp takes 1,024 weights (16 blocks). Each lane loads 16 bytes of codes, they are shared through shared memory,
//         and each of four rounds stores 8 neighbouring weights a lane, so that both loads and stores are whole 512-byte
//         lines. Lanes 0..15 decode one block each and pass it on by shuffles. The 16 levels lie in 16 different banks. All
//         loads are issued before the first is waited for: codes, scale codes and their groups cost one latency, not four.
//         Needs cols % 64 = 0 and 16-byte alignment; everything else goes through the general kernel.
#include "kernels/nfk_dequant.cuh"

namespace irq {
namespace {

constexpr int kThreads = kDequantThreads;

template <int kBits, bool kTau, class T>
__global__ void __launch_bounds__(kThreads)
    dequant_kernel(T* w, int64_t stride, PackedView q, uint32_t blocks, Codebook book) {
  nfk_dequant_share<kBits, kTau>(w, stride, q, blocks, book, blockIdx.x);
}

// Any shape and stride: one thread per weight.
template <int kBits, bool kTau, class T>
__global__ void __launch_bounds__(kThreads) dequant_general_kernel(T* w, int64_t stride, PackedView q, Codebook book) {
  __shared__ float levels[16];
  if (threadIdx.x < 1 << kBits) levels[threadIdx.x] = book.level[threadIdx.x];
  __syncthreads();
  const int64_t numel = q.rows * q.cols, step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < numel; i += step) {
    const int64_t block = i / kBlock, row = i / q.cols;
    const float x =
        dequantized<kTau>(levels[code_at<kBits>(q.codes, i)], block_scale(q, block), kTau ? block_tau(q, block) : 0.0f);
    w[row * stride + (i - row * q.cols)] = from_f<T>(x);
  }
}

}  // namespace

void CudaBackend::nfk_dequant(Tensor w, QuantizedMatrix q) {
  IRQ_CHECK(q.format.kind == QuantKind::nf && q.format.group == kBlock, "nfk_dequant reads NF codes in blocks of 64");
  const int64_t numel = q.numel(), blocks = q.blocks();
  if (numel == 0) return;
  const PackedView view = packed_view(q);
  const Codebook& book = nf_codebook(q.format.bits);
  const bool fast = nfk_dequant_fits(w, q);
  const unsigned grid = static_cast<unsigned>(
      fast ? nfk_dequant_grid(blocks) : std::min<int64_t>(ceil_div(numel, kThreads), int64_t{32} * sm_count()));
  const uint32_t few = static_cast<uint32_t>(blocks);
  dispatch_storage(w.dtype, [&](auto zero) {
    using T = decltype(zero);
    dispatch_bits(q.format.bits, [&](auto k) {
      T* out = static_cast<T*>(w.data);
      if (fast && q.has_tau())
        dequant_kernel<k.value, true><<<grid, kThreads, 0, stream()>>>(out, w.stride, view, few, book);
      else if (fast) dequant_kernel<k.value, false><<<grid, kThreads, 0, stream()>>>(out, w.stride, view, few, book);
      else if (q.has_tau())
        dequant_general_kernel<k.value, true><<<grid, kThreads, 0, stream()>>>(out, w.stride, view, book);
      else dequant_general_kernel<k.value, false><<<grid, kThreads, 0, stream()>>>(out, w.stride, view, book);
    });
  });
  CUDA_LAUNCHED();
}

}  // namespace irq
