// What  : y = beta * y + x w_hat^T for 17 to 64 rows of x, straight from the codes, by tensor cores.
// Math  : y[m][r] = beta * y[m][r] + sum_c bf16(level s_hat + tau_hat) x[m][c]: a weight is rounded to bf16 once, as nfk_dequant's are
//         (its level before that as well: nfk_pairs.cuh); sums F32.
// Shapes: x (m, cols), y (m, rows) BF16, m <= 64; w (rows, cols) NF2/3/4 codes with dq8 scales, cols % 256 = 0.
// Cost  : k/8 + 0.03 bytes a weight from DRAM, and all of x for each multiprocessor from L2: 132 x 512 KB for 64 x 4096. Measured
//         on sm_90, 11008 x 4096 NF4: 29.0 us at m = 32, 40.9 at 64; 4096 x 11008: 44.8, 67.6 (nfk_matmul_many_sm90.cu: 22.0, 26.5,
//         27.4, 32.8). Not bound by either: 580 instructions
//         for 32 rows of a block, half of them around the copies of x, and one barrier for every 256 columns.
// Tricky: one thread block of 12 warps a multiprocessor, each with rows / multiprocessors rows of w, at most 96. A stage is 256
//         columns of all these rows and of x; four warps take a block of 64 each, three such groups split the rows: a warp
//         dequantizes 16 or 32 rows of a block into the operands of its products and multiplies them by all of x. Sums stay in
//         registers to the end, when the four warps' are added in a fixed order.
#include "kernels/nfk_matmul_many.cuh"

namespace irq {
namespace {

template <int kBits, int kSets, int kTiles, int kStages>
__global__ void __launch_bounds__(kManyThreads, 1) many_kernel(const __grid_constant__ ManyArgs a) {
  extern __shared__ __align__(16) char memory[];
  if (smem_address(memory) > kShareTable) __trap();
  ManyBlock<kBits, kSets, kTiles, kStages>{a}.run();
}

// False if shared memory is too small for the rows of a thread block.
template <int kBits, int kSets, int kTiles>
bool launch(ManyArgs& a, int64_t grid, int64_t shared_bytes, cudaStream_t stream) {
  constexpr int kStages = kSets == 8 ? 3 : 4;
  const int rows = static_cast<int>(ceil_div(a.q.rows, grid));
  if (rows > kManyGroups * kTiles * 16) return false;
  int64_t end = 0;
  a.at = share_layout(a.q, grid, end);
  a.x_in_stage = static_cast<int>(ceil_div(rows, kTiles * 16) * kTiles * 16 * ShareShape<kBits, kManyChunk>::kPitch);
  a.stage_bytes = a.x_in_stage + kSets * 8 * kManyPitch;
  a.stage_bytes = static_cast<int>(ceil_div(a.stage_bytes, 128) * 128);
  a.partial_rows = static_cast<int>(ceil_div(rows, kTiles * 16) * kTiles * 16);
  a.ring = static_cast<int>(end);
  const int64_t total =
      a.ring + std::max<int64_t>(kStages * a.stage_bytes, int64_t{kManyChunk} * kSets * a.partial_rows * 32);
  if (total > shared_bytes) return false;
  const auto kernel = many_kernel<kBits, kSets, kTiles, kStages>;
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(total)));
  launch_early(kernel, static_cast<unsigned>(grid), kManyThreads, static_cast<int>(total), stream, a);
  return true;
}

}  // namespace

bool nfk_matmul_many(__nv_bfloat16* y, int64_t y_stride, const __nv_bfloat16* x, int64_t x_stride, const PackedView& q,
                     int bits, int m, float beta, int multiprocessors, int64_t shared_bytes, cudaStream_t stream) {
  if (m < 1 || m > kManyTokens || !share_takes(q, x, x_stride)) return false;
  ManyArgs a{};
  a.q = q, a.x = x, a.x_stride = x_stride, a.y = y, a.y_stride = y_stride, a.m_count = m, a.beta = beta;
  a.blocks = static_cast<int>(q.cols / kBlock), a.chunks = a.blocks / kManyChunk;
  scale_levels(a.level, a.unit, bits);
  bool done = false;
  dispatch_bits(bits, [&](auto k) {
    const auto run = [&](auto sets) {
      // More thread blocks than multiprocessors only if the rows of one do not fit.
      for (int64_t waves = 1; !done && waves <= 64; ++waves) {
        const int64_t grid = std::min<int64_t>(q.rows, waves * multiprocessors);
        done = launch<k.value, sets.value, 1>(a, grid, shared_bytes, stream) ||
               launch<k.value, sets.value, 2>(a, grid, shared_bytes, stream);
      }
    };
    if (m <= 32) run(std::integral_constant<int, 4>{});
    else run(std::integral_constant<int, 8>{});
  });
  return done;
}

}  // namespace irq
