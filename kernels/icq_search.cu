// What  : ICQ's search of the shift tau of every block of 64 weights (paper Alg. 1): of 2n+1 candidates around the median
//         the first whose codes have the highest entropy.
// Math  : tau_i = fl(fl(f_i * A0) + tau0), tau0 lower median, A0 = max|w - tau0|; entropy from exact integer terms.
// Shapes: w (1, n) F32; tau, entropy_plain, entropy_best (1, n/64) F32, the entropies may be null.
// Cost  : 4.2 bytes per weight (1.5 ms per 10^9 weights at 2.8 TB/s), but instructions decide. Per warp of 32 blocks, in
//         issue cycles of a scheduler: 2,200 to sort (1,086 minima and maxima at half rate), 2,200 for loading, the codes
//         at tau = 0 and at the first candidate, and 79 events of 100 instructions (NF4; the slowest of 32 lanes): 12,300.
//         11008 x 4096 are 22,016 warps: 300 us at 1.7 GHz if no cycle is lost, about 400 expected; a 7B model 0.06 s.
// Tricky: a warp takes 32 blocks: read in whole lines, transposed through shared memory, then a lane has a block: sorted in
//         64 registers by Batcher's network, written back as a column of shared memory, searched by events (icq_sweep.cuh:
//         what they are and why the result is exact). A column is 10 KB per warp: 20 warps per SM of an H100.
#include <utility>

#include "kernels/icq_search_general.cuh"
#include "kernels/icq_sweep.cuh"

namespace irq {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp;
constexpr int kChunks = kBlock / 4;  // 16-byte pieces of a block

template <int kBits>
struct BlockMemory {
  IcqColumns<kBits> columns[kWarps];
  IcqTables tables;
};
static_assert(sizeof(IcqColumns<2>) % 16 == 0 && sizeof(IcqColumns<3>) % 16 == 0 && sizeof(IcqColumns<4>) % 16 == 0);

// The warp's 2,048 weights, from `first` on, to one block per lane. Staged in the memory of the columns, 16 bytes at a time;
// piece q of block b lies at piece q ^ (b mod 16), so that neither side has bank conflicts. Beyond numel: 0.
__device__ __forceinline__ int staged_piece(int block, int q) { return block * kChunks + (q ^ (block % kChunks)); }
__device__ __forceinline__ void load_blocks(float (&v)[kBlock], float4* staged, const float* w, int64_t first,
                                            int64_t numel, int lane) {
  if (first + kWarp * kBlock <= numel && reinterpret_cast<uintptr_t>(w) % 16 == 0) {
    const float4* pieces = reinterpret_cast<const float4*>(w + first);
    float4 piece[kChunks];
#pragma unroll
    for (int t = 0; t < kChunks; ++t) piece[t] = __ldg(pieces + t * kWarp + lane);
#pragma unroll
    for (int t = 0; t < kChunks; ++t) staged[staged_piece(2 * t + lane / kChunks, lane % kChunks)] = piece[t];
  } else {
#pragma unroll 1
    for (int i = lane; i < kWarp * kBlock; i += kWarp)
      reinterpret_cast<float*>(staged)[staged_piece(i / kBlock, i % kBlock / 4) * 4 + i % 4] =
          first + i < numel ? w[first + i] : 0.0f;
  }
  __syncwarp();
#pragma unroll
  for (int q = 0; q < kChunks; ++q) {
    const float4 four = staged[lane * kChunks + (q ^ (lane % kChunks))];
    v[4 * q] = four.x, v[4 * q + 1] = four.y, v[4 * q + 2] = four.z, v[4 * q + 3] = four.w;
  }
  __syncwarp();  // the columns are written next
}

// Ascending: Batcher's odd-even merge sort, 543 exchanges. Written as templates because the compiler gives up unrolling
// the loops, and an indexed array would be in local memory.
template <int kMerged, int kApart, int kLow>
__device__ __forceinline__ void exchange(float (&v)[kBlock]) {
  constexpr int kHigh = kLow + kApart;
  if constexpr (kLow >= kApart % kMerged && (kLow - kApart % kMerged) / kApart % 2 == 0 &&
                kLow / (2 * kMerged) == kHigh / (2 * kMerged)) {
    const float low = fminf(v[kLow], v[kHigh]), high = fmaxf(v[kLow], v[kHigh]);
    v[kLow] = low, v[kHigh] = high;
  }
}
template <int kMerged, int kApart, int... kLow>
__device__ __forceinline__ void exchange_all(float (&v)[kBlock], std::integer_sequence<int, kLow...>) {
  (exchange<kMerged, kApart, kLow>(v), ...);
}
template <int kMerged = 1, int kApart = kMerged>
__device__ __forceinline__ void sort_64(float (&v)[kBlock]) {
  exchange_all<kMerged, kApart>(v, std::make_integer_sequence<int, kBlock - kApart>{});
  if constexpr (kApart > 1) sort_64<kMerged, kApart / 2>(v);
  else if constexpr (2 * kMerged < kBlock) sort_64<2 * kMerged>(v);
}

template <int kBits, bool kFp32>
__global__ void __launch_bounds__(kThreads, 5)
    search_kernel(float* tau_out, float* plain_out, float* best_out, const float* w, int64_t numel, int64_t blocks,
                  Codebook book, EntropyTables tables, IcqGrid grid) {
  constexpr int kCount = (1 << kBits) - 1;
  extern __shared__ __align__(16) char memory[];
  BlockMemory<kBits>& shared = *reinterpret_cast<BlockMemory<kBits>*>(memory);
  float* factors = reinterpret_cast<float*>(memory + sizeof(BlockMemory<kBits>));
  for (int c = threadIdx.x; c <= kBlock; c += kThreads) {
    shared.tables.term[c] = static_cast<double>(tables.term[c]);
    shared.tables.gain[c] = static_cast<double>(tables.term[c] - (c > 0 ? tables.term[c - 1] : 0));
    shared.tables.term_fp32[c] = tables.term_fp32[c];
  }
  if (threadIdx.x <= kCount)
    shared.tables.threshold[threadIdx.x] = threadIdx.x < kCount ? book.threshold[kCount - 1 - threadIdx.x] : -INFINITY;
  for (int i = threadIdx.x; i < grid.count; i += kThreads)
    factors[i] = __double2float_rn(
        i == grid.count - 1 ? grid.last : __dadd_rn(__dmul_rn(static_cast<double>(i), grid.step), grid.start));
  __syncthreads();

  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  IcqColumns<kBits>& columns = shared.columns[warp];
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kWarps + warp) * kWarp, b = first + lane;
  if (first >= blocks) return;
  float v[kBlock];
  load_blocks(v, reinterpret_cast<float4*>(&columns), w, first * kBlock, numel, lane);
  float zero = 0;  // becomes a NaN if any weight is infinite or a NaN
#pragma unroll
  for (int i = 0; i < kBlock; ++i) zero = fmaf(v[i], 0.0f, zero);
  const int n = static_cast<int>(max(int64_t{0}, min(int64_t{kBlock}, numel - b * kBlock)));
  if (n < kBlock) {
#pragma unroll
    for (int i = 0; i < kBlock; ++i) v[i] = i < n ? v[i] : INFINITY;
  }
  sort_64(v);
#pragma unroll
  for (int i = 0; i < kBlock; ++i) columns.sorted[i][lane] = v[i];
  columns.sorted[kBlock][lane] = INFINITY;
  if (n == 0) return;
  if (zero != 0.0f) {  // marked: the caller rejects the matrix
    tau_out[b] = NAN;
    if (plain_out) plain_out[b] = NAN;
    if (best_out) best_out[b] = NAN;
    return;
  }

  const float smallest = columns.sorted[0][lane], largest = columns.sorted[n - 1][lane];
  const float tau0 = __fadd_rn(columns.sorted[(n - 1) / 2][lane], 0.0f);  // + 0 makes one zero of the two
  const float scale0 = shifted_absmax(smallest, largest, tau0);
  const int candidates = scale0 == 0.0f || grid.step == 0.0 ? 1 : grid.count;  // else all candidates are the first
  IcqLane<kBits, kFp32> search{
      shared.tables, &columns.sorted[0][lane], &columns.queue[0][lane], factors, n, candidates, smallest, largest, tau0,
      scale0,        kFp32 && n == kBlock};
  // Over the candidates |tau| and absmax(w - tau) are largest at the first or the last one.
  const float left = search.candidate(0), right = search.candidate(candidates - 1);
  const float reach = fmaxf(fmaxf(fabsf(smallest), fabsf(largest)),
                            fmaxf(__fadd_rn(shifted_absmax(smallest, largest, left), fabsf(left)),
                                  __fadd_rn(shifted_absmax(smallest, largest, right), fabsf(right))));
  // icq_sweep.cuh: nothing leaves fp32's normal range, and candidates are further apart than rounding.
  const float step = static_cast<float>(grid.step),
              slope = fminf(1.0f - book.threshold[kCount - 1], 1.0f + book.threshold[0]);
  const bool ordinary = __fsub_rn(largest, smallest) >= 0x1p-98f && reach <= 0x1p98f;
  if (plain_out) {
    const double sum = ordinary ? search.plain_sum() : search.count_all(book, 0.0f);
    plain_out[b] = entropy_bits(static_cast<int64_t>(sum), n, tables.term[n]);
  }
  if (ordinary && candidates > 1 && scale0 * step * slope >= reach * 0x1p-19f) search.sweep(reach * 0x1p-17f, step);
  else search.search_plainly(book);
  tau_out[b] = search.candidate(search.best_index);
  if (best_out) best_out[b] = entropy_bits(static_cast<int64_t>(search.best_sum), n, tables.term[n]);
}

template <int kBits, bool kFp32, class... Args>
void launch(int64_t blocks, int candidates, cudaStream_t stream, Args... args) {
  const int bytes = static_cast<int>(sizeof(BlockMemory<kBits>)) + candidates * static_cast<int>(sizeof(float));
  CUDA_CHECK(cudaFuncSetAttribute(search_kernel<kBits, kFp32>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  search_kernel<kBits, kFp32>
      <<<static_cast<unsigned>(ceil_div(blocks, kThreads)), kThreads, static_cast<size_t>(bytes), stream>>>(args...);
}

}  // namespace

void CudaBackend::icq_search(Tensor tau, Tensor entropy_plain, Tensor entropy_best, Tensor w, int bits, IcqSpec spec) {
  const int64_t numel = w.numel(), blocks = ceil_div(numel, kBlock);
  if (blocks == 0) return;
  if (!is_plain_search(spec)) return icq_search_general(stream(), tau, entropy_plain, entropy_best, w, bits, spec);
  const IcqGrid grid = icq_grid(spec);
  IRQ_CHECK(grid.count <= 4096, "icq_search: n = %d, at most 2047", spec.n);
  float* plain = entropy_plain ? entropy_plain.as<float>() : nullptr;
  float* best = entropy_best ? entropy_best.as<float>() : nullptr;
  const auto run = [&](auto k, auto fp32) {
    launch<k.value, fp32.value>(blocks, grid.count, stream(), tau.as<float>(), plain, best, w.as<float>(), numel,
                                blocks, nf_codebook(bits), entropy_tables(), grid);
  };
  if (bits == 4 && spec.fp32_entropy) run(std::integral_constant<int, 4>{}, std::true_type{});
  else dispatch_bits(bits, [&](auto k) { run(k, std::false_type{}); });
  CUDA_LAUNCHED();
}

}  // namespace irq
