// What  : y = beta * y + x w_hat^T for up to 16 rows of x, straight from the codes, by tensor cores.
// Math  : y[m][r] = beta * y[m][r] + sum_b (s_b sum_{c in b} level x[m][c] + tau_b sum_{c in b} x[m][c]) over the blocks b of row r.
//         Levels are rounded to bf16 (nfk_pairs.cuh), x is bf16 as it comes; all sums, scales and shifts are F32.
// Shapes: x (m, cols), y (m, rows) BF16, m <= 16; w (rows, cols) NF2/3/4 codes with dq8 scales, cols % 256 = 0.
// Cost  : k/8 + 0.03 bytes a weight: 11008 x 4096 NF4 are 24 MB = 7.9 us at 3.03 TB/s; a copy of as many bytes, measured alike,
//         takes 9.7. Measured: 12.9 us at m = 1, 14.4 at 8, 20.1 at 16 (x of 16 rows is read by every multiprocessor: 17 MB
//         from L2). 3.1 of them takes a kernel that does nothing, 2.0 go by until the first product, and products keep shared
//         memory busy most of the time. About 2 instructions a weight.
// Tricky: one thread block of 16 (12) warps a multiprocessor, each with rows / multiprocessors rows of w (83 or 84), so that all
//         have the same bytes. A warp has columns: 256 of all these rows, so its part of x stays in registers; the codes run
//         through a ring of its own, with no barrier but those at the beginning and the end. What is asked for behind many
//         codes waits for all of them: x, the map and the scales of all rows go first, and the ring is short. The order of k
//         within a block is free: lane (g, p) has the 16 codes 16p .. 16p+15 of rows g and g+8, a pair of codes is one operand
//         register, looked up in a table with a copy for each lane. Partial sums are added in a fixed order.
#include "kernels/nfk_matmul.cuh"
#include "kernels/nfk_matmul_few.cuh"

namespace irq {
namespace {

template <int kBits, int kTokens, bool kEarly>
__global__ void __launch_bounds__(few_warps(kTokens) * kWarp, 1) few_kernel(const __grid_constant__ FewArgs a) {
  extern __shared__ __align__(16) char memory[];
  const uint32_t begin = smem_address(memory);
  if (begin > kShareTable) __trap();
  FewBlock<kBits, kTokens, kEarly>{a}.run();
}

// Behind `end` in shared memory; for the shares of `rows` rows.
FewLayout layout(int64_t rows, int blocks, int tokens, int64_t end) {
  const int warps = few_warps(tokens), chunks = blocks / kFewChunk;
  FewLayout at{};
  at.partial = static_cast<int>(end);
  at.partial_rows = static_cast<int>(ceil_div(rows, kFewTile) * kFewTile);
  at.ring = at.partial + warps * at.partial_rows * tokens * 4;
  at.turns = chunks / warps, at.last = chunks % warps;
  if (at.last) at.sharing = warps / at.last, at.reciprocal = 65536 / at.last + 1;
  return at;
}

template <int kBits, int kTokens, bool kEarly>
bool launch(FewArgs& a, int64_t grid, int64_t shared_bytes, cudaStream_t stream) {
  constexpr int kWarps = few_warps(kTokens);
  a.at.total = a.at.ring + kWarps * kFewStages * FewBlock<kBits, kTokens, kEarly>::kStage;
  if (a.at.total > shared_bytes) return false;
  const auto kernel = few_kernel<kBits, kTokens, kEarly>;
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, a.at.total));
  launch_early(kernel, static_cast<unsigned>(grid), kWarps * kWarp, a.at.total, stream, a);
  return true;
}

}  // namespace

bool nfk_matmul_few(__nv_bfloat16* y, int64_t y_stride, const __nv_bfloat16* x, int64_t x_stride, const PackedView& q,
                    int bits, int m, float beta, int multiprocessors, int64_t shared_bytes, cudaStream_t stream) {
  if (m < 1 || m > kFewTokens || !share_takes(q, x, x_stride)) return false;
  FewArgs a{};
  a.q = q, a.x = x, a.x_stride = x_stride, a.y = y, a.y_stride = y_stride, a.m_count = m, a.beta = beta;
  a.blocks = static_cast<int>(q.cols / kBlock);
  scale_levels(a.level, a.unit, bits);
  bool done = false;
  dispatch_bits(bits, [&](auto k) {
    const auto run = [&](auto tokens, auto early) {
      // More thread blocks than multiprocessors only if the rows of one do not fit.
      for (int64_t waves = 1; !done && waves <= 16; ++waves) {
        const int64_t grid = std::min<int64_t>(q.rows, waves * multiprocessors);
        int64_t end = 0;
        a.share = share_layout(q, grid, end);
        a.at = layout(ceil_div(q.rows, grid), a.blocks, tokens.value, end);
        done = launch<k.value, tokens.value, early.value>(a, grid, shared_bytes, stream);
      }
    };
    // Which is faster was measured: early with 16 tokens, and with two where there are more than two tiles.
    using Early = std::true_type;
    using Late = std::false_type;
    if (m > 8) run(std::integral_constant<int, kFewTokens>{}, Early{});
    else if (m > 2) run(std::integral_constant<int, 8>{}, Late{});
    else if (k.value == 2 || q.rows <= 2 * kFewTile * multiprocessors) run(std::integral_constant<int, 2>{}, Late{});
    else if constexpr (k.value > 2) run(std::integral_constant<int, 2>{}, Early{});
  });
  return done;
}

}  // namespace irq
