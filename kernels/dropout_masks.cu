// What:   the masks of a group's adapters as bits: what every product under dropout reads, three times a step.
// Math:   bit = (the element's 16-bit Philox draw >= round(65536 p)), 0 for dead rows.
// Shapes: bits (adapters * ceil(h / 64), 16 ceil(N / 2)) u8, a word of 64 bits for a row and 64 features.
// Cost:   N h / 8 bytes an adapter and one Philox call for 8 elements: sixteen wide multiplications, 64 cycles of one of an
//         SM's four schedulers for a warp, and about as many of the other units beside them. N = 8192, h = 4096, three
//         adapters: 745 calls of a warp on each scheduler, 28 us at 64 cycles, 40 us expected, 44 measured: about 100 cycles a
//         call. Half of the upper products from FP64 units, fewer instructions by viaddmax or keys in registers: 44 as well.
// Tricky: a thread owns a row, so what the row alone decides of Philox stays in registers, and what the features decide is
//         computed once for a block's rows. Two draws are compared at once and shifted into the word from above: after
//         sixteen of them the low halves' bits fill the lower 16 and the high halves' the upper.
#include "kernels/chunk.cuh"
#include "kernels/dependent_launch.cuh"
#include "kernels/dropout.h"

namespace irq {
namespace {

constexpr int kThreads = 128, kWords = 4;  // of 64 features, of a thread
constexpr int kFeatures = static_cast<int>(kMaskFeatures);

struct MaskIds {
  int id[AdapterMasks::kMax];
};

// kMost: at most half of the elements are dropped (DropoutThreshold's "or").
template <bool kMost>
__device__ __forceinline__ uint32_t half_word(const DropoutRow& row, const DropoutColumn* columns,
                                              const uint32_t (&seed)[2], uint32_t lift) {
  uint32_t bits = 0;
#pragma unroll
  for (int chunk = 0; chunk < 4; ++chunk) {
    const Philox4 draws = dropout_pair(row, columns[chunk], seed);
    const uint32_t word[4] = {draws.x, draws.y, draws.z, draws.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint32_t kept = dropout_kept(word[j], {lift, kMost ? 0xffffffffu : 0u}) & 0x80008000u;
      bits = (bits >> 1) + kept;
    }
  }
  return bits;
}

// Block (row tile, kWords words of an adapter).
template <bool kMost>
__global__ void __launch_bounds__(kThreads)
    dropout_masks_kernel(uint2* bits, int64_t pitch, int64_t rows, int64_t cols, int blocks, MaskIds ids,
                         const int* positions, const int* samples, const StepParams* params, uint32_t lift) {
  __shared__ DropoutColumn columns[kWords * 8];
  let_next_kernel_begin();
  const int per_adapter = (blocks + kWords - 1) / kWords, adapter = static_cast<int>(blockIdx.y) / per_adapter;
  const int first = static_cast<int>(blockIdx.y) % per_adapter * kWords;
  const uint32_t seed[2] = {params->seed[0], params->seed[1]};
  if (threadIdx.x < kWords * 8)
    columns[threadIdx.x] =
        dropout_column(int64_t{first} * kFeatures + static_cast<int>(threadIdx.x) * 8, ids.id[adapter], seed);
  __syncthreads();
  const int64_t n = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (n >= (rows + 1) / 2 * 2) return;
  const bool live = n < rows && positions[n] >= 0;
  const DropoutRow row = live ? dropout_row(positions[n], samples[n], seed) : DropoutRow{};
#pragma unroll 1
  for (int w = 0; w < kWords && first + w < blocks; ++w) {
    uint2 word{};
    if (live)
      word = {half_word<kMost>(row, columns + w * 8, seed, lift),
              half_word<kMost>(row, columns + w * 8 + 4, seed, lift)};
    const int64_t left = cols - int64_t{first + w} * kFeatures;  // features of this word that there are
    if (left < kFeatures) {
      const auto within = [&](int64_t count) {  // even features in the lower half, odd ones in the upper
        const int low = static_cast<int>(min(max(count + 1, int64_t{0}), int64_t{32}) / 2);
        const int high = static_cast<int>(min(max(count, int64_t{0}), int64_t{32}) / 2);
        return ((1u << low) - 1) | ((1u << high) - 1) << 16;
      };
      word.x &= within(left), word.y &= within(left - 32);
    }
    bits[(int64_t{adapter} * blocks + first + w) * pitch + n] = word;
  }
}

}  // namespace

void CudaBackend::dropout_masks(Tensor bits, int64_t h, AdapterMasks masks) {
  if (bits.numel() == 0) return;
  IRQ_CHECK(reinterpret_cast<uintptr_t>(bits.data) % 16 == 0 && bits.stride % 16 == 0, "dropout_masks: bits unaligned");
  const DropoutThreshold t = dropout_threshold(dropout_rate(masks.p).threshold);
  MaskIds ids{};
  for (int m = 0; m < masks.count; ++m) ids.id[m] = masks.ids[static_cast<size_t>(m)];
  const int64_t blocks = mask_blocks(h), pitch = bits.cols / 8;
  const dim3 grid(static_cast<unsigned>(ceil_div(pitch, kThreads)),
                  static_cast<unsigned>(ceil_div(blocks, kWords) * masks.count));
  auto* kernel = t.either ? &dropout_masks_kernel<true> : &dropout_masks_kernel<false>;
  kernel<<<grid, kThreads, 0, stream_>>>(static_cast<uint2*>(bits.data), bits.stride / 8, masks.positions.cols, h,
                                         static_cast<int>(blocks), ids, static_cast<const int*>(masks.positions.data),
                                         static_cast<const int*>(masks.samples.data),
                                         static_cast<const StepParams*>(masks.params.data), t.lift);
  CUDA_LAUNCHED();
}

}  // namespace irq
