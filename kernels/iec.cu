// What:   Information Elastic Connection: folding beta * P and beta * E into the adapters and the betas' gradients, for a
//         whole model at once.
// Math:   folded = scale * (w + beta * map), w absent: 0;  dbeta = <dw, map>. QA-LoRA's A: c(g) w[j, g] in group g's columns.
//         map (expanded, pooled) holds 1 / slice in row j at the columns of slice group(j) (IecMap), and is never stored.
// Shapes: A (r, h), B (o, r) M; folded S, any row stride; betas (1, 1) M.
// Cost:   fold 6 bytes per parameter in bf16: LLaMA-7B, r = 64, 160M parameters: 640 MB read, 320 MB written, 343 us, one
//         launch. dbeta reads only where map is not 0: 4.6 MB of dA, and o floats of each dB, each in a 32-byte sector of
//         its own: 43.5 MB; together 17 us, and two launches.
// Tricky: a block finds its matrix by counting, all threads at once, the entries that begin before its chunk. 64-bit
//         division once per thread, 32-bit ones after. Partial sums have fixed places: the same bits every time.
#include "kernels/chunk.cuh"
#include "kernels/iec.h"

namespace irq {
namespace {

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

// A chunk of QA-LoRA's A, one element at a time: w has a column for each group of columns of `folded`.
template <class T>
__device__ __forceinline__ void fold_pooled(const IecEntry& e, int64_t start) {
  const IecMap map = e.map;
  const GroupPool pool = e.pool;
  const int cols = static_cast<int>(pool.cols), group = static_cast<int>(pool.group);
  const int groups = static_cast<int>(pool.groups());
  const int left = static_cast<int>(min(int64_t{IecTable::kFoldChunk}, map.rows() * cols - start));
  const Place first(start, cols);
  const float* __restrict__ w = static_cast<const float*>(e.w);
  T* __restrict__ folded = static_cast<T*>(e.folded);
  const float scale = static_cast<float>(e.scale);
  const float share = e.beta ? *static_cast<const float*>(e.beta) / static_cast<float>(map.slice) : 0.0f;
  const float factor = static_cast<float>(pool.factor);
  const float whole = pool.mean ? factor / static_cast<float>(group) : factor;
  for (int k = static_cast<int>(threadIdx.x); k < left; k += kTableThreads) {
    const Place at(first, k, cols);
    const int g = at.col / group;
    const float length = static_cast<float>(min(group, cols - g * group));
    const float coefficient = g == groups - 1 && pool.mean ? factor / length : whole;
    const int inside = (e.aligned ? g : at.col) - map.group(at.row) * map.slice;
    const float pooled = inside >= 0 && inside < map.slice ? (e.aligned ? share / length : share) : 0.0f;
    const float value = w ? coefficient * w[int64_t{at.row} * groups + g] : 0.0f;
    folded[at.row * e.folded_stride + at.col] = from_f<T>(scale * (value + pooled));
  }
}

// One chunk of one matrix per block.
template <class T>
__global__ void __launch_bounds__(kTableThreads) fold_kernel(const IecEntry* entries, int count) {
  const IecEntry& e = owner<&IecEntry::fold_begin>(entries, count, blockIdx.x);
  const int64_t stride = e.folded_stride, start = (blockIdx.x - e.fold_begin) * IecTable::kFoldChunk;
  if (e.pool.cols > 0) return fold_pooled<T>(e, start);
  const IecMap map = e.map;
  const int cols = static_cast<int>(map.cols());
  const int left = static_cast<int>(min(int64_t{IecTable::kFoldChunk}, map.rows() * cols - start));
  const Place first(start, cols);
  const float* __restrict__ w = e.w ? static_cast<const float*>(e.w) + start : nullptr;
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
      float value[kChunk] = {};
      if (w) load_chunk<true>(value, w + k, kChunk);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) value[i] = fold(value[i], at, i);
      store_chunk<true>(folded + at.row * stride + at.col, value, kChunk);
    }
  } else {
    for (int k = static_cast<int>(threadIdx.x); k < left; k += kTableThreads) {
      const Place at(first, k, cols);
      folded[at.row * stride + at.col] = from_f<T>(fold(w ? w[k] : 0.0f, at, 0));
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

}  // namespace irq
