// What  : variant 4 of nfk_matmul: tensor cores on codes.
// Math  : as variant 3; levels are rounded to bf16 (scaled so that the error is small: kernels/nfk_pairs.cuh), sums are
//         F32.
// Shapes: as variant 2.
// Cost  : per block of a row 8 lookups for 16 codes a lane, 4 mma for the product and 4 with ones for the sum of x: about
//         3.5 instructions per weight for up to 8 rows of x, 6 us of issuing.
// Tricky: the order of terms within a block is free, so lane (g, p) simply takes the 16 codes 16p .. 16p+15 of rows g and g
//         + 8: a byte of codes is a pair of levels, one operand register, looked up in a table of all 256 pairs that has a
//         copy for each lane. Four lanes hold one block of a row together, so its scale can wait until after the product.
//         Eight warps share 16 rows, each takes every eighth block; their sums are added in a fixed order.
// Change: FMAs become mma, two codes per lookup; m = 8 costs what m = 1 does.
// Predicted: m = 1: 35 -> 28 us (every block waits for its codes: nothing is loaded ahead); m = 8: 90 -> 28 us. The
//         production kernels load codes several pieces ahead and stay on their multiprocessor while they walk through the
//         matrix.
// Measured: m = 1: 22.8 us (1.35x); m = 8: 24.6 us (3.91x). The production kernel of that day took 20.9 us at m = 1 and 27.3
//         us at m = 8, where this one was faster; its successor takes 14.1 and 14.3 us.
#include "bench/variants/nfk_matmul.cuh"
#include "kernels/nfk_pairs.cuh"

namespace irq {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarp, kRows = 16;
constexpr uint32_t kOnes = 0x3f803f80u;

struct Memory {
  uint32_t pairs[256][kWarp];  // two bf16 levels, a copy for each lane
  float map[256];
  float partial[kWarps][kRows][kMostTokens + 1];
};

__global__ void __launch_bounds__(kThreads, 3) matmul(MatmulArgs a, float unit) {
  extern __shared__ __align__(16) char memory[];
  Memory& shared = *reinterpret_cast<Memory*>(memory);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, part = lane % 4;
  fill_pair_table<4, kThreads>(&shared.pairs[0][0], a.book.level[lane % 16]);
  shared.map[threadIdx.x] = a.q.map[threadIdx.x];
  __syncthreads();
  const float offset = a.q.scale_offset[0];
  const uint32_t row0 = blockIdx.x * kRows, last = static_cast<uint32_t>(a.q.rows - 1),
                 blocks = static_cast<uint32_t>(a.q.cols / kBlock);
  const uint32_t row[2] = {min(row0 + g, last) * blocks,
                           min(row0 + g + 8, last) * blocks};  // rows past the end repeat the last
  const __nv_bfloat16* x = a.x + min(g, a.tokens - 1) * a.x_stride + part * 16;
  float sum[4] = {};
  for (uint32_t j = warp; j < blocks; j += kWarps) {
    const Codes<4> codes[2] = {Codes<4>(a.q.codes + (row[0] + j) * 32ull + part * 8),
                               Codes<4>(a.q.codes + (row[1] + j) * 32ull + part * 8)};
    const uint4 xs[2] = {reinterpret_cast<const uint4*>(x + j * kBlock)[0],
                         reinterpret_cast<const uint4*>(x + j * kBlock)[1]};
    const BlockFactors f[2] = {block_factors(a.q, shared.map, offset, row[0] + j),
                               block_factors(a.q, shared.map, offset, row[1] + j)};
    float product[4] = {}, total[4] = {};  // level * x, and x alone
    const auto step = [&](auto s) {
      constexpr int i = 2 * s.value;
      const uint32_t levels[4] = {shared.pairs[codes[0].pair<i>()][lane], shared.pairs[codes[1].pair<i>()][lane],
                                  shared.pairs[codes[0].pair<i + 1>()][lane],
                                  shared.pairs[codes[1].pair<i + 1>()][lane]};
      const uint32_t ones[4] = {kOnes, kOnes, kOnes, kOnes};
      const uint4& v = xs[i / 4];
      const uint32_t b0 = i % 4 == 0 ? v.x : v.z, b1 = i % 4 == 0 ? v.y : v.w;
      mma_m16n8k16(product, levels, b0, b1);
      mma_m16n8k16(total, ones, b0, b1);
    };
    step(std::integral_constant<int, 0>{});
    step(std::integral_constant<int, 1>{});
    step(std::integral_constant<int, 2>{});
    step(std::integral_constant<int, 3>{});
#pragma unroll
    for (int c = 0; c < 4; ++c) sum[c] = fmaf(f[c / 2].scale * unit, product[c], fmaf(f[c / 2].tau, total[c], sum[c]));
  }
#pragma unroll
  for (int c = 0; c < 4; ++c) shared.partial[warp][g + c / 2 * 8][2 * part + c % 2] = sum[c];
  __syncthreads();
  const int r = threadIdx.x % kRows, m = threadIdx.x / kRows;
  if (m >= a.tokens || row0 + r > last) return;
  float y = 0;
#pragma unroll
  for (int k = 0; k < kWarps; ++k) y += shared.partial[k][r][m];
  a.y[m * a.y_stride + row0 + r] = __float2bfloat16_rn(y);
}

void run(Backend& backend, const std::vector<Tensor>& t) {
  MatmulArgs a = matmul_args(t);
  for (float& level : a.book.level) level *= kLevelScale[4];
  constexpr int kBytes = static_cast<int>(sizeof(Memory));
  CUDA_CHECK(cudaFuncSetAttribute(matmul, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  matmul<<<static_cast<unsigned>(ceil_div(a.q.rows, kRows)), kThreads, kBytes, stream_of(backend)>>>(
      a, 1 / kLevelScale[4]);
  CUDA_LAUNCHED();
}
[[maybe_unused]] const bool added = add_variant({"nfk_matmul", "v4_tensor_cores", run});

}  // namespace
}  // namespace irq
