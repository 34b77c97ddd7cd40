// What  : ICQ's search beyond the paper: ties by squared error, the exact optimum between the grid's ends, other widths.
// Math  : icq_search_general.cpp has it, and the derivation of the breakpoints; here are the same bits.
// Shapes: as icq_search: w (1, n) F32; tau, entropy_plain, entropy_best (1, n/64) F32, the entropies may be null.
// Cost  : instructions decide. A candidate of NF4 is 15 ranks by 7 looks at the sorted block: about 700 instructions for 32
//         candidates at once, so 201 are 5,000 per block; 6.5 10^9 weights are 10^8 blocks: 0.6 s on 132 SMs of four
//         schedulers at 1.6 GHz, 12 times the default search. NF3 and NF2 have 7 and 3 ranks. Tied candidates cost 64
//         codes each, but lie beside each other, so that lanes share them. The exact search has on top three rounds of
//         middles (66 breakpoints) and their neighbours by binary search in 15 lists: twice the time.
// Tricky: a warp has a block, a lane every 32nd candidate; nothing is carried from one candidate to the next, so lanes need
//         no order. Breakpoints stay in one list per threshold, which ascends as the weights do; the next one of all is
//         the least of the lists' next ones: nothing is sorted, and equal breakpoints give the same middle.
//         Sums of entropy terms are integers below 2^53, exact in fp64 in any order. Which of equal candidates wins is
//         decided by tau itself, not by who came first.
#include "kernels/icq_breakpoints.h"
#include "kernels/icq_grid.h"
#include "kernels/icq_search_general.cuh"
#include "kernels/nfk_block.cuh"

namespace irq {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp;
constexpr int kMaxCandidates = 128 * kWarp;  // a lane marks its tied candidates in 128 bits

template <int kBits>
struct Tables {
  static constexpr int kCount = (1 << kBits) - 1;
  double term[kBlock + 1];  // T[c]
  double point[3][kCount];  // IcqBreakpoints: threshold, left, right
  float threshold[kCount], level[kCount + 1];
};
template <int kBits, bool kExact>
struct WarpMemory {
  static constexpr int kCount = (1 << kBits) - 1, kPoints = kExact ? kCount * kBlock : 1;
  double points[kPoints];      // breakpoints, one ascending list per threshold
  float middles[kPoints + 1];  // of the piece behind each, last of the piece before all; NaN: no piece
  float sorted[kBlock + 1];    // behind the n weights infinities
  int starts[kCount + 1];      // of the lists
};

__device__ __forceinline__ float shifted_absmax(float smallest, float largest, float tau) {
  return fmaxf(fabsf(__fsub_rn(smallest, tau)), fabsf(__fsub_rn(largest, tau)));
}
__device__ __forceinline__ double warp_min(double x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x = fmin(x, __shfl_xor_sync(kFullWarp, x, offset));
  return x;
}

// One block, seen by all lanes of its warp.
template <int kBits>
struct Block {
  static constexpr int kCount = (1 << kBits) - 1;
  const Tables<kBits>& tables;
  const Codebook& book;
  const float* sorted;
  int n;
  float smallest, largest;
  bool ordinary;  // else 1/a or a product may leave fp32's range: every weight on its own

  __device__ static bool above(float w, float tau, float rcp, float threshold) {
    return __fmul_rn(__fsub_rn(w, tau), rcp) > threshold;
  }
  // The number of weights at or below a threshold. The codes ascend along the sorted block: binary search.
  __device__ int rank_of(float tau, float rcp, float threshold) const {
    int rank = 0;
#pragma unroll
    for (int step = kBlock / 2; step > 0; step /= 2)
      if (!above(sorted[rank + step - 1], tau, rcp, threshold)) rank += step;
    return rank + (above(sorted[rank], tau, rcp, threshold) ? 0 : 1);
  }
  __device__ double count_all(float tau) const {
    const float a = shifted_absmax(smallest, largest, tau), rcp = __fdiv_rn(1.0f, a);
    uint64_t low = 0, high = 0;  // a byte per code
#pragma unroll 1
    for (int i = 0; i < n; ++i) {
      const int code = nfk_code<kBits>(book, __fsub_rn(sorted[i], tau), a, rcp);
      const uint64_t one = uint64_t{1} << (8 * (code & 7));
      if (code < 8) low += one;
      else high += one;
    }
    double sum = 0;
#pragma unroll 1
    for (int shift = 0; shift < 64; shift += 8)
      sum += tables.term[(low >> shift) & 255] + tables.term[(high >> shift) & 255];
    return sum;
  }
  // The entropy terms of the codes of w - tau.
  __device__ double sum_at(float tau) const {
    if (!ordinary) return count_all(tau);
    const float rcp = __fdiv_rn(1.0f, shifted_absmax(smallest, largest, tau));
    double sum = 0;
    int below = 0;
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const int rank = rank_of(tau, rcp, book.threshold[j]);
      sum += tables.term[rank - below];
      below = rank;
    }
    return sum + tables.term[n - below];
  }
  // The same for one tau by the whole warp, a threshold per lane.
  __device__ double sum_by_warp(float tau, int lane) const {
    if (!ordinary) return count_all(tau);
    const float rcp = __fdiv_rn(1.0f, shifted_absmax(smallest, largest, tau));
    const int rank = lane < kCount ? rank_of(tau, rcp, tables.threshold[lane]) : n;
    const int before = __shfl_up_sync(kFullWarp, rank, 1);
    double sum = lane <= kCount ? tables.term[rank - (lane > 0 ? before : 0)] : 0.0;
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(kFullWarp, sum, offset);
    return sum;
  }
  __device__ double squared_error(float tau) const {
    const float a = shifted_absmax(smallest, largest, tau), rcp = __fdiv_rn(1.0f, a);
    double error = 0;
#pragma unroll 1
    for (int i = 0; i < n; ++i) {
      const float w = sorted[i];
      const int code = nfk_code<kBits>(book, __fsub_rn(w, tau), a, rcp);
      const float value = __fadd_rn(__fmul_rn(tables.level[code], a), tau);
      const double d = __dsub_rn(static_cast<double>(value), static_cast<double>(w));
      error = __dadd_rn(error, __dmul_rn(d, d));
    }
    return error;
  }
  // icq_unit()
  __device__ float unit(IcqWidth width, float scale0) const {
    if (width == IcqWidth::raw) return 1.0f;
    if (width != IcqWidth::block_std) return scale0;
    double sum = 0, squares = 0;
#pragma unroll 1
    for (int i = 0; i < n; ++i) sum = __dadd_rn(sum, static_cast<double>(sorted[i]));
    const double count = static_cast<double>(n), mean = __ddiv_rn(sum, count);
#pragma unroll 1
    for (int i = 0; i < n; ++i) {
      const double d = __dsub_rn(static_cast<double>(sorted[i]), mean);
      squares = __dadd_rn(squares, __dmul_rn(d, d));
    }
    return __double2float_rn(__dsqrt_rn(__ddiv_rn(squares, count)));
  }
};

struct Choice {
  double sum;  // infinite: none
  float tau;
};
// The warp's best of `count` candidates tau_of(0), ...; a NaN is none.
template <int kBits, class TauOf>
__device__ Choice best_of(const Block<kBits>& block, int count, bool least_error, int lane, TauOf&& tau_of) {
  double best = INFINITY;
  float tau = INFINITY;
  uint64_t tied[2] = {0, 0};  // this lane's candidates with the sum `best`
#pragma unroll 1
  for (int round = 0; round * kWarp + lane < count; ++round) {
    const float candidate = tau_of(round * kWarp + lane);
    if (isnan(candidate)) continue;
    const double sum = block.sum_at(candidate);
    if (sum > best) continue;
    if (sum < best) best = sum, tau = candidate, tied[0] = tied[1] = 0;
    tau = fminf(tau, candidate);
    const uint64_t mark = uint64_t{1} << (round % 64);
    if (round < 64) tied[0] |= mark;
    else tied[1] |= mark;
  }
  const double sum = warp_min(best);
  const bool mine = best == sum;
  if (!mine) tau = INFINITY;
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) tau = fminf(tau, __shfl_xor_sync(kFullWarp, tau, offset));
  if (!least_error || sum == INFINITY) return {sum, tau};
  double least = INFINITY;
  float at = INFINITY;
#pragma unroll 1
  for (int half = 0; half < 2; ++half)
#pragma unroll 1
    for (uint64_t left = mine ? tied[half] : 0; left != 0; left &= left - 1) {
      const float candidate = tau_of((half * 64 + __ffsll(static_cast<long long>(left)) - 1) * kWarp + lane);
      const double error = block.squared_error(candidate);
      if (error < least || (error == least && candidate < at)) least = error, at = candidate;
    }
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const double error = __shfl_xor_sync(kFullWarp, least, offset);
    const float candidate = __shfl_xor_sync(kFullWarp, at, offset);
    if (error < least || (error == least && candidate < at)) least = error, at = candidate;
  }
  return {sum, least < INFINITY ? at : tau};
}

// The middles of the pieces between `first` and `last`; how many entries there are.
template <int kBits>
__device__ int fill_middles(WarpMemory<kBits, true>& memory, const Block<kBits>& block, float first, float last,
                            int lane) {
  constexpr int kCount = (1 << kBits) - 1;
  const double low = static_cast<double>(first), high = static_cast<double>(last);
  const double smallest = static_cast<double>(block.smallest), largest = static_cast<double>(block.largest);
  int count = 0;
#pragma unroll 1
  for (int j = 0; j < kCount; ++j) {
    if (lane == 0) memory.starts[j] = count;
    const double t = block.tables.point[0][j];
    const double from_largest = __dmul_rn(t, largest), from_smallest = __dmul_rn(t, smallest);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = half * kWarp + lane;
      const double w = static_cast<double>(memory.sorted[i]);
      const double a = __dmul_rn(__dsub_rn(w, from_largest), block.tables.point[1][j]);
      const double b = __dmul_rn(__dadd_rn(w, from_smallest), block.tables.point[2][j]);
      const double at = t > 0 ? fmin(a, b) : fmax(a, b);
      const bool keep = i < block.n && at > low && at < high;
      const unsigned kept = __ballot_sync(kFullWarp, keep);
      if (keep) memory.points[count + __popc(kept & ((1u << lane) - 1))] = at;
      count += __popc(kept);
    }
  }
  if (lane == 0) memory.starts[kCount] = count;
  __syncwarp();
#pragma unroll 1
  for (int e = lane; e <= count; e += kWarp) {
    const double from = e < count ? memory.points[e] : low;
    double to = high;
#pragma unroll 1
    for (int j = 0; j < kCount; ++j) {
      const int end = memory.starts[j + 1];
      int next = memory.starts[j], beyond = end;  // the first point behind `from` is in [next, beyond]
      while (next < beyond) {
        const int middle = (next + beyond) / 2;
        if (memory.points[middle] > from) beyond = middle;
        else next = middle + 1;
      }
      if (next < end) to = fmin(to, memory.points[next]);
    }
    memory.middles[e] = from < to ? __double2float_rn(__dmul_rn(0.5, __dadd_rn(from, to))) : NAN;
  }
  __syncwarp();
  return count + 1;
}

// Two weights a lane, sorted by counting how many precede them; equal ones keep their order.
__device__ __forceinline__ void sort_into(float* sorted, float v0, float v1, int lane) {
  int rank0 = 0, rank1 = 0;
#pragma unroll 4
  for (int k = 0; k < kWarp; ++k) {
    const float x = __shfl_sync(kFullWarp, v0, k), y = __shfl_sync(kFullWarp, v1, k);
    rank0 += (x < v0 || (x == v0 && k < lane)) + (y < v0);
    rank1 += (x <= v1) + (y < v1 || (y == v1 && k < lane));
  }
  sorted[rank0] = v0;
  sorted[rank1] = v1;
  if (lane == 0) sorted[kBlock] = INFINITY;
  __syncwarp();
}

struct Search {
  IcqGrid grid;
  IcqWidth width;
  bool least_error;
};

template <int kBits, bool kExact>
__global__ void __launch_bounds__(kThreads)
    general_kernel(float* tau_out, float* plain_out, float* best_out, const float* w, int64_t numel, int64_t blocks,
                   Codebook book, EntropyTables entropy, IcqBreakpoints points, Search search) {
  constexpr int kCount = (1 << kBits) - 1;
  extern __shared__ __align__(16) char dynamic[];
  Tables<kBits>& tables = *reinterpret_cast<Tables<kBits>*>(dynamic);
  for (int c = threadIdx.x; c <= kBlock; c += kThreads) tables.term[c] = static_cast<double>(entropy.term[c]);
  if (threadIdx.x <= kCount) tables.level[threadIdx.x] = book.level[threadIdx.x];
  if (threadIdx.x < kCount) {
    tables.threshold[threadIdx.x] = book.threshold[threadIdx.x];
    tables.point[0][threadIdx.x] = points.threshold[threadIdx.x];
    tables.point[1][threadIdx.x] = points.left[threadIdx.x];
    tables.point[2][threadIdx.x] = points.right[threadIdx.x];
  }
  __syncthreads();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  auto& memory = reinterpret_cast<WarpMemory<kBits, kExact>*>(dynamic + sizeof(Tables<kBits>))[warp];
  const int64_t b = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
  if (b >= blocks) return;

  const int n = static_cast<int>(min(int64_t{kBlock}, numel - b * kBlock));
  const float* block_w = w + b * kBlock;
  const float v0 = lane < n ? block_w[lane] : INFINITY, v1 = lane + kWarp < n ? block_w[lane + kWarp] : INFINITY;
  const bool bad = (lane < n && !isfinite(v0)) || (lane + kWarp < n && !isfinite(v1));
  if (__any_sync(kFullWarp, bad)) {  // marked: the caller rejects the matrix
    if (lane == 0) {
      tau_out[b] = NAN;
      if (plain_out) plain_out[b] = NAN;
      if (best_out) best_out[b] = NAN;
    }
    return;
  }
  sort_into(memory.sorted, v0, v1, lane);
  const float smallest = memory.sorted[0], largest = memory.sorted[n - 1];
  const float tau0 = __fadd_rn(memory.sorted[(n - 1) / 2], 0.0f);  // + 0 makes one zero of the two
  const float scale0 = shifted_absmax(smallest, largest, tau0);
  Block<kBits> block{tables, book, memory.sorted, n, smallest, largest, false};
  const float unit = block.unit(search.width, scale0);
  const IcqGrid grid = search.grid;
  const auto candidate = [&](int i) {
    const float factor = __double2float_rn(
        i == grid.count - 1 ? grid.last : __dadd_rn(__dmul_rn(static_cast<double>(i), grid.step), grid.start));
    return __fadd_rn(__fmul_rn(factor, unit), tau0);
  };
  // Over the candidates |tau| and absmax(w - tau) are largest at the first or the last one.
  const float left = candidate(0), right = candidate(grid.count - 1);
  const float reach = fmaxf(fmaxf(fabsf(smallest), fabsf(largest)),
                            fmaxf(__fadd_rn(shifted_absmax(smallest, largest, left), fabsf(left)),
                                  __fadd_rn(shifted_absmax(smallest, largest, right), fabsf(right))));
  block.ordinary = __fsub_rn(largest, smallest) >= 0x1p-98f && reach <= 0x1p98f;

  Choice choice{tables.term[n], tau0};  // a constant block keeps tau0
  if (scale0 != 0.0f) {
    Choice exact{INFINITY, tau0};
    if constexpr (kExact) {
      const int count = fill_middles<kBits>(memory, block, left, right, lane);
      exact = best_of<kBits>(block, count, search.least_error, lane, [&](int i) { return memory.middles[i]; });
    }
    // After the exact search the grid hardly ever wins: errors are not worth looking at before it does.
#pragma unroll 1
    for (int pass = kExact && search.least_error ? 0 : 1; pass < 2; ++pass) {
      choice = best_of<kBits>(block, grid.count, search.least_error && pass == 1, lane, candidate);
      if (!(choice.sum < exact.sum)) {
        choice = exact;
        break;
      }
    }
  }
  const double plain = plain_out ? (scale0 != 0.0f ? block.sum_by_warp(0.0f, lane) : tables.term[n]) : 0.0;
  if (lane != 0) return;
  tau_out[b] = choice.tau;
  if (plain_out) plain_out[b] = entropy_bits(static_cast<int64_t>(plain), n, entropy.term[n]);
  if (best_out) best_out[b] = entropy_bits(static_cast<int64_t>(choice.sum), n, entropy.term[n]);
}

template <int kBits, bool kExact, class... Args>
void launch(cudaStream_t stream, int64_t blocks, Args... args) {
  constexpr int kBytes = static_cast<int>(sizeof(Tables<kBits>) + kWarps * sizeof(WarpMemory<kBits, kExact>));
  CUDA_CHECK(cudaFuncSetAttribute(general_kernel<kBits, kExact>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  general_kernel<kBits, kExact><<<static_cast<unsigned>(ceil_div(blocks, kWarps)), kThreads, kBytes, stream>>>(args...);
  CUDA_LAUNCHED();
}

}  // namespace

void icq_search_general(cudaStream_t stream, Tensor tau, Tensor entropy_plain, Tensor entropy_best, Tensor w, int bits,
                        const IcqSpec& spec) {
  const int64_t numel = w.numel(), blocks = ceil_div(numel, kBlock);
  const Search search{icq_grid(spec), spec.width, spec.ties == IcqTies::mse};
  IRQ_CHECK(search.grid.count <= kMaxCandidates, "icq_search: n = %d, at most 2047", spec.n);
  const Codebook& book = nf_codebook(bits);
  const IcqBreakpoints points(book);
  float* plain = entropy_plain ? entropy_plain.as<float>() : nullptr;
  float* best = entropy_best ? entropy_best.as<float>() : nullptr;
  dispatch_bits(bits, [&](auto k) {
    const auto run = [&](auto exact) {
      launch<k.value, exact.value>(stream, blocks, tau.as<float>(), plain, best, w.as<float>(), numel, blocks, book,
                                   entropy_tables(), points, search);
    };
    if (spec.search == IcqSearch::exact) run(std::true_type{});
    else run(std::false_type{});
  });
}

}  // namespace irq
