// What:   Information Elastic Connection: folding beta * P and beta * E into the adapters and the betas' gradients, for a
//         whole model at once; and the pooled branch on its own for when dropout keeps it from being folded.
// Math:   folded = scale * (w + beta * map);  dbeta = <dw, map>;  u += beta1 P x;  dx = beta dx + beta1 P^T du.
//         map (expanded, pooled) holds 1 / slice in row j at the columns of slice group(j) (IecMap), and is never stored.
// Shapes: A (r, h), B (o, r) M; folded S, any row stride; x, dx (N, h), u, du (N, r) S; betas (1, 1), partial (1, N) M.
// Cost:   fold 6 bytes per parameter in bf16: LLaMA-7B, r = 64, 160M parameters: 640 MB read, 320 MB written, 343 us, one
//         launch. dbeta reads only where map is not 0: 4.6 MB of dA, and o floats of each dB, each in a 32-byte sector of
//         its own: 43.5 MB; together 17 us, and two launches. pool_fwd 2 N h bytes: N = 8192, h = 4096 67 MB, 24 us;
//         pool_bwd with beta = 1 6 N h bytes: 201 MB, 72 us.
// Tricky: a block finds its matrix by counting, all threads at once, the entries that begin before its chunk. 64-bit
//         division once per thread, 32-bit ones after. Partial sums have fixed places: the same bits every time.
//         Slices need not be a multiple of a 16-byte pack (h = 11008, r = 64: 172), so pool_fwd loads 8, 4 or 1 elements
//         at a time, whichever divides the slice, and each slice is summed by a few neighbouring lanes.
#include "kernels/chunk.cuh"
#include "kernels/iec.h"

namespace irq {
namespace {

constexpr int kPoolThreads = 256;

constexpr int kTableThreads = 256;

// The entry that owns a chunk: the last that begins at or before it (an entry without chunks begins where its successor
// does). Every thread of the block must call it.
template <int64_t IecEntry::*kBegin>
__device__ __forceinline__ const IecEntry& owner(const IecEntry* entries, int count, int64_t chunk) {
  int before = 0;
  for (int i = 0; i < count; i += kTableThreads) {
    const int k = i + static_cast<int>(threadIdx.x);
    before += __syncthreads_count(k < count && entries[k].*kBegin <= chunk);
  }
  return entries[before - 1];
}

// Where a flat index lies in rows of `width`, from the place of the chunk's first.
struct Place {
  int row, col;
  __device__ __forceinline__ Place(int64_t first, int width)
      : row(static_cast<int>(first / width)), col(static_cast<int>(first % width)) {}
  __device__ __forceinline__ Place(const Place& first, int offset, int width) {
    const unsigned at = static_cast<unsigned>(first.col) + static_cast<unsigned>(offset);
    const unsigned rows = at / static_cast<unsigned>(width);
    row = first.row + static_cast<int>(rows), col = static_cast<int>(at - rows * static_cast<unsigned>(width));
  }
};

// One chunk of one matrix per block.
template <class T>
__global__ void __launch_bounds__(kTableThreads) fold_kernel(const IecEntry* entries, int count) {
  const IecEntry& e = owner<&IecEntry::fold_begin>(entries, count, blockIdx.x);
  const IecMap map = e.map;
  const int64_t stride = e.folded_stride, start = (blockIdx.x - e.fold_begin) * IecTable::kFoldChunk;
  const int cols = static_cast<int>(map.cols());
  const int left = static_cast<int>(min(int64_t{IecTable::kFoldChunk}, map.rows() * cols - start));
  const Place first(start, cols);
  const float* __restrict__ w = static_cast<const float*>(e.w) + start;
  T* __restrict__ folded = static_cast<T*>(e.folded);
  const float scale = static_cast<float>(e.scale);
  const float share = e.beta ? *static_cast<const float*>(e.beta) / static_cast<float>(map.slice) : 0.0f;
  const auto fold = [&](float value, const Place& at, int i) {
    const int inside = at.col + i - map.group(at.row) * map.slice;
    return scale * (value + (inside >= 0 && inside < map.slice ? share : 0.0f));
  };
  const uintptr_t addresses = reinterpret_cast<uintptr_t>(w) | reinterpret_cast<uintptr_t>(folded) |
                              static_cast<uintptr_t>(stride * static_cast<int64_t>(sizeof(T)));
  if (cols % kChunk == 0 && addresses % 16 == 0) {  // eight neighbours never straddle two rows
    for (int k = static_cast<int>(threadIdx.x) * kChunk; k < left; k += kTableThreads * kChunk) {
      const Place at(first, k, cols);
      float value[kChunk];
      load_chunk<true>(value, w + k, kChunk);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) value[i] = fold(value[i], at, i);
      store_chunk<true>(folded + at.row * stride + at.col, value, kChunk);
    }
  } else {
    for (int k = static_cast<int>(threadIdx.x); k < left; k += kTableThreads) {
      const Place at(first, k, cols);
      folded[at.row * stride + at.col] = from_f<T>(fold(w[k], at, 0));
    }
  }
}

// One chunk of one matrix's terms per block: the sum of dw over (part of) every row's slice.
__global__ void __launch_bounds__(kTableThreads) dbeta_kernel(double* partial, const IecEntry* entries, int count) {
  const IecEntry& e = owner<&IecEntry::dbeta_begin>(entries, count, blockIdx.x);
  const IecMap map = e.map;
  const int64_t cols = map.cols(), start = (blockIdx.x - e.dbeta_begin) * IecTable::kDbetaChunk;
  const int left = static_cast<int>(min(int64_t{IecTable::kDbetaChunk}, map.terms() - start));
  const Place first(start, map.slice);
  const float* __restrict__ dw = static_cast<const float*>(e.dw);
  float sum = 0;
#pragma unroll 4
  for (int k = static_cast<int>(threadIdx.x); k < left; k += kTableThreads) {
    const Place at(first, k, map.slice);
    sum += dw[at.row * cols + int64_t{map.group(at.row)} * map.slice + at.col];
  }
  const double total = block_sum_f64<kTableThreads>(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

// One warp per entry.
__global__ void __launch_bounds__(kTableThreads)
    dbeta_finish_kernel(const double* partial, const IecEntry* entries, int count) {
  const int index = static_cast<int>(blockIdx.x * (kTableThreads / kWarp) + threadIdx.x / kWarp);
  if (index >= count || !entries[index].dbeta) return;
  const IecEntry& e = entries[index];
  const int64_t chunks = (e.map.terms() + IecTable::kDbetaChunk - 1) / IecTable::kDbetaChunk;
  double sum = 0;
  for (int64_t i = threadIdx.x % kWarp; i < chunks; i += kWarp) sum += partial[e.dbeta_begin + i];
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  if (threadIdx.x % kWarp == 0) *static_cast<float*>(e.dbeta) = static_cast<float>(sum / e.map.slice);
}

// kWidth elements of T in one access (16, 8 or 2..4 bytes).
template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth <= 16 ? sizeof(T) * kWidth : 16) Run {
  T v[kWidth];
};

// One block per token. `lanes` (a power of two up to 32) neighbouring lanes sum a slice; the means meet in shared memory.
template <class T, int kWidth>
__global__ void __launch_bounds__(kPoolThreads)
    pool_fwd_kernel(T* u, int64_t u_stride, const T* x, int64_t x_stride, const float* beta1, int64_t rows, int rank,
                    int lanes, IecMap map) {
  extern __shared__ float means[];  // (groups)
  const float share = *beta1 / static_cast<float>(map.slice);
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1), first = static_cast<int>(threadIdx.x) / lanes;
  for (int64_t n = blockIdx.x; n < rows; n += gridDim.x) {
    // Every lane takes part in every shuffle: the bound is the same for a whole block, the loads are guarded.
    for (int t0 = 0; t0 < map.groups; t0 += kPoolThreads / lanes) {
      const int t = t0 + first;
      float sum = 0;
      if (t < map.groups) {
        const T* slice = x + n * x_stride + int64_t{t} * map.slice;
        for (int i = lane * kWidth; i < map.slice; i += lanes * kWidth) {
          const Run<T, kWidth> run = *reinterpret_cast<const Run<T, kWidth>*>(slice + i);
#pragma unroll
          for (int k = 0; k < kWidth; ++k) sum += to_f(run.v[k]);
        }
      }
      for (int offset = lanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
      if (t < map.groups && lane == 0) means[t] = share * sum;
    }
    __syncthreads();
    T* out = u + n * u_stride;
    for (int j = static_cast<int>(threadIdx.x); j < rank; j += kPoolThreads)
      out[j] = from_f<T>(to_f(out[j]) + means[map.group(j)]);
    __syncthreads();  // the next token overwrites the means
  }
}

// One block per token: the gradient of every slice's mean first, then one pass over x and dx.
template <class T, bool kVector>
__global__ void __launch_bounds__(kPoolThreads)
    pool_bwd_kernel(T* dx, int64_t dx_stride, float* partial, const T* du, int64_t du_stride, const T* x,
                    int64_t x_stride, const float* beta1, int64_t rows, int cols, float beta, IecMap map) {
  extern __shared__ float dmeans[];  // (groups), already divided by the slice's length
  const float beta1_value = beta1 ? *beta1 : 0.0f;
  for (int64_t n = blockIdx.x; n < rows; n += gridDim.x) {
    for (int t = static_cast<int>(threadIdx.x); t < map.groups; t += kPoolThreads) {
      float sum = 0;
      for (int k = 0; k < map.repeat; ++k) sum += to_f(du[n * du_stride + map.member(t, k)]);
      dmeans[t] = sum / static_cast<float>(map.slice);
    }
    __syncthreads();
    float dot = 0;
    for (int c = static_cast<int>(threadIdx.x) * kChunk; c < cols; c += kPoolThreads * kChunk) {
      float value[kChunk], in[kChunk];
      load_chunk<kVector>(in, x + n * x_stride + c, cols - c);
      T* out = dx + n * dx_stride + c;
      if (beta != 0) load_chunk<kVector>(value, out, cols - c);
      int t = c / map.slice, left = map.slice - (c - t * map.slice);  // left: elements of slice t still to come
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        const float dmean = c + i < cols ? dmeans[t] : 0.0f;
        dot += in[i] * dmean;
        value[i] = (beta == 0 ? 0.0f : beta * value[i]) + beta1_value * dmean;
        if (--left == 0) ++t, left = map.slice;
      }
      store_chunk<kVector>(out, value, cols - c);
    }
    dot = block_sum<kPoolThreads>(dot);
    if (threadIdx.x == 0) partial[n] = dot;  // block_sum has synchronized: the next token may overwrite dmeans
  }
}

// Shared memory that holds one float per group of a token.
size_t group_bytes(const IecMap& map) {
  const size_t bytes = static_cast<size_t>(map.groups) * sizeof(float);
  IRQ_CHECK(bytes <= 48 * 1024, "IEC with %d groups; at most 12288 fit in shared memory", map.groups);
  return bytes;
}

template <class T, int kWidth>
void pool_fwd(cudaStream_t stream, Tensor u, Tensor x, Tensor beta1, const IecMap& map) {
  int lanes = 1;  // 16 lanes waste little on a slice of 43 runs, and 32 would idle on the common 8 to 16 runs
  while (lanes < 16 && lanes * 2 * kWidth <= map.slice) lanes *= 2;
  pool_fwd_kernel<T, kWidth>
      <<<static_cast<unsigned>(std::min<int64_t>(x.rows, INT32_MAX)), kPoolThreads, group_bytes(map), stream>>>(
          static_cast<T*>(u.data), u.stride, static_cast<const T*>(x.data), x.stride,
          static_cast<const float*>(beta1.data), x.rows, static_cast<int>(u.cols), lanes, map);
}

}  // namespace

void CudaBackend::iec_fold_all(IecTable table) {
  IRQ_CHECK(table.fold_chunks <= INT32_MAX && table.count() <= INT32_MAX, "%ld chunks of adapters", table.fold_chunks);
  if (table.fold_chunks == 0) return;
  dispatch_storage(table.storage, [&](auto zero) {
    fold_kernel<decltype(zero)><<<static_cast<unsigned>(table.fold_chunks), kTableThreads, 0, stream_>>>(
        static_cast<const IecEntry*>(table.entries.data), static_cast<int>(table.count()));
  });
  CUDA_LAUNCHED();
}

void CudaBackend::iec_dbeta_all(IecTable table) {
  IRQ_CHECK(table.dbeta_chunks <= INT32_MAX && table.count() <= INT32_MAX, "%ld chunks of adapters",
            table.dbeta_chunks);
  if (table.dbeta_chunks == 0) return;
  const auto* entries = static_cast<const IecEntry*>(table.entries.data);
  const int count = static_cast<int>(table.count());
  double* partial = static_cast<double*>(workspace(table.dbeta_chunks * static_cast<int64_t>(sizeof(double))));
  dbeta_kernel<<<static_cast<unsigned>(table.dbeta_chunks), kTableThreads, 0, stream_>>>(partial, entries, count);
  CUDA_LAUNCHED();
  const int64_t blocks = ceil_div(count, kTableThreads / kWarp);
  dbeta_finish_kernel<<<static_cast<unsigned>(blocks), kTableThreads, 0, stream_>>>(partial, entries, count);
  CUDA_LAUNCHED();
}

void CudaBackend::iec_pool_fwd(Tensor u, Tensor x, Tensor beta1, bool tile) {
  if (!beta1 || u.numel() == 0 || x.cols == 0) return;
  const IecMap map(x.cols, u.cols, tile);
  dispatch_storage(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const uintptr_t start = reinterpret_cast<uintptr_t>(x.data);
    const auto fits = [&](int64_t width) {  // every slice of every row starts at a multiple of the access
      const int64_t bytes = std::min<int64_t>(16, width * static_cast<int64_t>(sizeof(T)));
      return map.slice % width == 0 && start % static_cast<uintptr_t>(bytes) == 0 &&
             (x.rows == 1 || x.stride * static_cast<int64_t>(sizeof(T)) % bytes == 0);
    };
    if (fits(8)) pool_fwd<T, 8>(stream_, u, x, beta1, map);
    else if (fits(4)) pool_fwd<T, 4>(stream_, u, x, beta1, map);
    else pool_fwd<T, 1>(stream_, u, x, beta1, map);
  });
  CUDA_LAUNCHED();
}

void CudaBackend::iec_pool_bwd(Tensor dx, Tensor partial, Tensor du, Tensor x, Tensor beta1, bool tile, double beta) {
  if (x.numel() == 0) return;
  const IecMap map(x.cols, du.cols, tile);
  dispatch_storage(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    auto* kernel = aligned16(x) && aligned16(dx) ? &pool_bwd_kernel<T, true> : &pool_bwd_kernel<T, false>;
    kernel<<<static_cast<unsigned>(std::min<int64_t>(x.rows, INT32_MAX)), kPoolThreads, group_bytes(map), stream_>>>(
        static_cast<T*>(dx.data), dx.stride, static_cast<float*>(partial.data), static_cast<const T*>(du.data),
        du.stride, static_cast<const T*>(x.data), x.stride, static_cast<const float*>(beta1.data), x.rows,
        static_cast<int>(x.cols), static_cast<float>(beta), map);
  });
  CUDA_LAUNCHED();
}

}  // namespace irq
