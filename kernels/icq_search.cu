// What  : ICQ's search of the shift tau of every block of 64 weights (paper Alg. 1): of 2n+1 candidates around the median
//         the first whose codes have the highest entropy.
// Math  : tau_i = fl(fl(f_i * A0) + tau0), tau0 lower median, A0 = max|w - tau0|; entropy from exact integer terms.
// Shapes: w (1, n) F32; tau, entropy_plain, entropy_best (1, n/64) F32, the entropies may be null.
// Cost  : 4.1 bytes per weight (1.5 ms per 10^9 weights at 2.8 TB/s), but instructions decide: about 170 per block and
//         warp for the sort, 1,400 for the 201 candidates: 0.2 to 0.3 s for 101 million blocks (a 7B model), unmeasured.
// Tricky: a warp takes 32 blocks. It sorts each in its registers (bitonic, two elements a lane), then every lane owns one
//         block in shared memory. Codes ascend along the sorted block, so a candidate's histogram is 2^k - 1 boundaries,
//         which move little from one candidate to the next; a boundary is touched only when its threshold comes within
//         a safe margin of a neighbouring weight, and then the exact fp32 predicate decides. Why that is exact, and how
//         large the margin must be, is derived in icq_search.cpp. The sum of entropy terms follows each move: terms of
//         negative counts, which occur while two boundaries pass each other, are 0 and cancel.
#include "kernels/icq_grid.h"
#include "kernels/nfk_block.cuh"

namespace irq {
namespace {

constexpr int kWarps = 2;            // 27 KB of shared memory per thread block
constexpr int kColumn = kWarp + 1;   // row pitch of the sorted columns: no bank conflicts while they are written

template <int kBits>
struct WarpMemory {
  static constexpr int kCount = (1 << kBits) - 1;
  float sorted[kBlock][kColumn];     // [rank][lane]
  float lower[kCount][kWarp], upper[kCount][kWarp];
  uint8_t bound[kCount + 2][kWarp];  // [j + 1]: weights at or below threshold j; first 0, last n
};
template <int kBits>
struct BlockMemory {
  int64_t term_storage[2 * kBlock + 1];  // T[count], count = -64 .. 64
  float term_fp32[kBlock + 1];
  float threshold[16];
  WarpMemory<kBits> warp[kWarps];
};

// Ascending bitonic sort of 64 values: element i is in lane i % 32, register i / 32.
__device__ __forceinline__ void sort_64(float& r0, float& r1, int lane) {
#pragma unroll
  for (int k = 2; k <= kBlock; k *= 2) {
#pragma unroll
    for (int j = k / 2; j > 0; j /= 2) {
      if (j == kWarp) {  // only for k = 64, where everything ascends
        const float low = fminf(r0, r1), high = fmaxf(r0, r1);
        r0 = low, r1 = high;
      } else {
        const float other0 = __shfl_xor_sync(kFullWarp, r0, j), other1 = __shfl_xor_sync(kFullWarp, r1, j);
        const bool first = (lane & j) == 0;
        const bool up0 = k >= kWarp || (lane & k) == 0;                    // (i & k) == 0 for i = lane
        const bool up1 = k == kBlock || (k < kWarp && (lane & k) == 0);    // and for i = lane + 32
        r0 = first == up0 ? fminf(r0, other0) : fmaxf(r0, other0);
        r1 = first == up1 ? fminf(r1, other1) : fmaxf(r1, other1);
      }
    }
  }
}

__device__ __forceinline__ float shifted_absmax(float smallest, float largest, float tau) {
  return fmaxf(fabsf(__fsub_rn(smallest, tau)), fabsf(__fsub_rn(largest, tau)));
}

// One lane's block.
template <int kBits>
struct Search {
  static constexpr int kCount = (1 << kBits) - 1;
  const BlockMemory<kBits>& shared;
  WarpMemory<kBits>& mine;
  const Codebook& book;
  int lane, n;
  float margin;
  int64_t sum;  // of the entropy terms of the present boundaries

  __device__ int64_t term(int count) const { return shared.term_storage[kBlock + count]; }
  __device__ float weight(int i) const { return mine.sorted[i][lane]; }
  __device__ bool above(int i, float threshold, float tau, float rcp) const {
    return __fmul_rn(__fsub_rn(weight(i), tau), rcp) > threshold;
  }
  __device__ void settle(int j, int b) {
    mine.bound[j + 1][lane] = static_cast<uint8_t>(b);
    mine.lower[j][lane] = b > 0 ? weight(b - 1) + margin : -INFINITY;
    mine.upper[j][lane] = b < n ? weight(b) - margin : INFINITY;
  }
  __device__ void start(float tau, float rcp) {
    mine.bound[0][lane] = 0;
    mine.bound[kCount + 1][lane] = static_cast<uint8_t>(n);
    sum = 0;
    int b = 0, before = 0;
    for (int j = 0; j < kCount; ++j) {
      const float threshold = shared.threshold[j];
      while (b < n && !above(b, threshold, tau, rcp)) ++b;
      settle(j, b);
      sum += term(b - before);
      before = b;
    }
    sum += term(n - before);
  }
  // True if any boundary moved.
  __device__ bool advance(float tau, float a) {
    unsigned near = 0;
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const float position = fmaf(book.threshold[j], a, tau);  // an estimate: the margin covers its rounding
      near |= (position <= mine.lower[j][lane] || position >= mine.upper[j][lane]) ? 1u << j : 0u;
    }
    if (near == 0) return false;
    const float rcp = __fdiv_rn(1.0f, a);
    bool moved = false;
    do {
      const int j = __ffs(static_cast<int>(near)) - 1;
      near &= near - 1;
      const float threshold = shared.threshold[j];
      const int old = mine.bound[j + 1][lane];
      int b = old;
      while (b < n && !above(b, threshold, tau, rcp)) ++b;
      while (b > 0 && above(b - 1, threshold, tau, rcp)) --b;
      if (b == old) continue;
      const int before = mine.bound[j][lane], after = mine.bound[j + 2][lane];
      sum += term(b - before) + term(after - b) - term(old - before) - term(after - old);
      settle(j, b);
      moved = true;
    } while (near != 0);
    return moved;
  }
  // The released code's fp32 entropy (4-bit only): four strided accumulators.
  __device__ float entropy_fp32() const {
    float lanes[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float total = 0;
#pragma unroll
      for (int c = j; c <= kCount; c += 4) total = __fadd_rn(total, shared.term_fp32[mine.bound[c + 1][lane] - mine.bound[c][lane]]);
      lanes[j] = total;
    }
    return __fadd_rn(__fadd_rn(__fadd_rn(lanes[0], lanes[1]), lanes[2]), lanes[3]);
  }
  // The boundaries by quantizing every weight, for blocks beyond the reach of the error analysis (absmax below 2^-98 or
  // above 2^98) and for tau = 0. Codes need not ascend there, so counts come first.
  __device__ void count_all(float tau) {
    int largest = 0;
    for (int i = 0; i < n; ++i) largest = max(largest, magnitude_bits(__fsub_rn(weight(i), tau)));
    const float a = __int_as_float(largest), rcp = __fdiv_rn(1.0f, a);
    for (int c = 0; c < kCount + 2; ++c) mine.bound[c][lane] = 0;
    for (int i = 0; i < n; ++i) ++mine.bound[nfk_code<kBits>(book, __fsub_rn(weight(i), tau), a, rcp) + 1][lane];
    sum = 0;
    for (int c = 0; c <= kCount; ++c) {
      const int count = mine.bound[c + 1][lane];
      sum += term(count);
      mine.bound[c + 1][lane] = static_cast<uint8_t>(mine.bound[c][lane] + count);
    }
  }
};

template <int kBits>
__global__ void __launch_bounds__(kWarps* kWarp) search_kernel(float* tau_out, float* plain_out, float* best_out, const float* w,
                                                               int64_t numel, int64_t blocks, Codebook book, EntropyTables tables,
                                                               IcqGrid grid, bool fp32) {
  extern __shared__ __align__(16) char memory[];
  BlockMemory<kBits>& shared = *reinterpret_cast<BlockMemory<kBits>*>(memory);
  float* factors = reinterpret_cast<float*>(memory + sizeof(BlockMemory<kBits>));
  for (int i = threadIdx.x; i <= 2 * kBlock; i += kWarps * kWarp) shared.term_storage[i] = i < kBlock ? 0 : tables.term[i - kBlock];
  for (int i = threadIdx.x; i <= kBlock; i += kWarps * kWarp) shared.term_fp32[i] = tables.term_fp32[i];
  if (threadIdx.x < (1 << kBits) - 1) shared.threshold[threadIdx.x] = book.threshold[threadIdx.x];
  for (int i = threadIdx.x; i < grid.count; i += kWarps * kWarp)
    factors[i] = __double2float_rn(i == grid.count - 1 ? grid.last : __dadd_rn(__dmul_rn(static_cast<double>(i), grid.step), grid.start));
  __syncthreads();

  const int lane = threadIdx.x % kWarp;
  WarpMemory<kBits>& mine = shared.warp[threadIdx.x / kWarp];
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp) * kWarp;
  int absmax_bits = 0;
#pragma unroll 2
  for (int t = 0; t < kWarp; ++t) {
    const int64_t at = (first + t) * kBlock + lane;
    float r0 = at < numel ? w[at] : INFINITY, r1 = at + kWarp < numel ? w[at + kWarp] : INFINITY;
    const int bits = warp_max_bits(max(at < numel ? magnitude_bits(r0) : 0, at + kWarp < numel ? magnitude_bits(r1) : 0));
    if (t == lane) absmax_bits = bits;
    sort_64(r0, r1, lane);
    mine.sorted[lane][t] = r0;
    mine.sorted[lane + kWarp][t] = r1;
  }
  __syncwarp();

  const int64_t b = first + lane;
  if (b >= blocks) return;
  const int n = static_cast<int>(min(static_cast<int64_t>(kBlock), numel - b * kBlock));
  const float absmax = __int_as_float(absmax_bits);
  if (!isfinite(absmax)) {  // a NaN or an infinity: marked, the caller rejects the matrix
    tau_out[b] = NAN;
    if (plain_out) plain_out[b] = NAN;
    if (best_out) best_out[b] = NAN;
    return;
  }
  Search<kBits> search{shared, mine, book, lane, n, 0.0f, 0};
  const float smallest = search.weight(0), largest = search.weight(n - 1);
  const float tau0 = __fadd_rn(search.weight((n - 1) / 2), 0.0f);  // + 0 makes one zero of the two
  const float scale0 = shifted_absmax(smallest, largest, tau0);
  const bool exact_entropy = !(fp32 && kBits == 4 && n == kBlock);
  if (plain_out) {
    search.count_all(0.0f);
    plain_out[b] = entropy_bits(search.sum, n, tables.term[n]);
  }
  // Over the candidates |tau| and absmax(w - tau) are largest at the first or the last one.
  float reach = absmax;
  for (const int i : {0, grid.count - 1}) {
    const float tau = __fadd_rn(__fmul_rn(factors[i], scale0), tau0);
    reach = fmaxf(reach, __fadd_rn(shifted_absmax(smallest, largest, tau), fabsf(tau)));
  }
  const bool ordinary = __fsub_rn(largest, smallest) >= 0x1p-98f && reach <= 0x1p98f;
  search.margin = __fmul_rn(reach, 0x1p-20f);
  int64_t best_sum = 0;
  float best_entropy = 0, best_tau = 0;
  const int candidates = scale0 == 0.0f ? 1 : grid.count;  // constant block: all candidates are tau0
  for (int i = 0; i < candidates; ++i) {
    const float tau = __fadd_rn(__fmul_rn(factors[i], scale0), tau0);
    if (ordinary) {
      const float a = shifted_absmax(smallest, largest, tau);
      if (i == 0) search.start(tau, __fdiv_rn(1.0f, a));
      else if (!search.advance(tau, a)) continue;
    } else {
      search.count_all(tau);
    }
    const float entropy = exact_entropy ? 0.0f : search.entropy_fp32();
    if (i == 0 || (exact_entropy ? search.sum < best_sum : entropy > best_entropy))
      best_sum = search.sum, best_entropy = entropy, best_tau = tau;
  }
  tau_out[b] = best_tau;
  if (best_out) best_out[b] = entropy_bits(best_sum, n, tables.term[n]);
}

}  // namespace

void CudaBackend::icq_search(Tensor tau, Tensor entropy_plain, Tensor entropy_best, Tensor w, int bits, IcqSpec spec) {
  const int64_t numel = w.numel(), blocks = ceil_div(numel, kBlock);
  if (blocks == 0) return;
  const IcqGrid grid = icq_grid(spec);
  IRQ_CHECK(grid.count <= 4096, "icq_search: n = %d, at most 2047", spec.n);
  dispatch_bits(bits, [&](auto k) {
    const int64_t bytes = static_cast<int64_t>(sizeof(BlockMemory<k.value>)) + grid.count * static_cast<int64_t>(sizeof(float));
    CUDA_CHECK(cudaFuncSetAttribute(search_kernel<k.value>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
    search_kernel<k.value><<<static_cast<unsigned>(ceil_div(blocks, kWarps * kWarp)), kWarps * kWarp, static_cast<size_t>(bytes), stream()>>>(
        tau.as<float>(), entropy_plain ? entropy_plain.as<float>() : nullptr, entropy_best ? entropy_best.as<float>() : nullptr,
        w.as<float>(), numel, blocks, nf_codebook(bits), entropy_tables(), grid, spec.fp32_entropy);
  });
  CUDA_LAUNCHED();
}

}  // namespace irq
