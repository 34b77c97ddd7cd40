// The skeleton of the elementwise kernels: a (rows, cols) view walked in packs, a thread's loads before its stores.
#pragma once
#include <utility>

#include "kernels/common.cuh"

namespace irq {

// kWidth elements of T in registers, moved in 16-byte accesses (one access if smaller than that).
template <class T, int kWidth>
struct alignas(kWidth * sizeof(T) < 16 ? kWidth * sizeof(T) : 16) Vec {
  T v[kWidth];
};
template <int kWidth, class T>
__device__ __forceinline__ Vec<T, kWidth> load_vec(const T* p) {
  return *reinterpret_cast<const Vec<T, kWidth>*>(p);
}
template <int kWidth, class T>
__device__ __forceinline__ void store_vec(T* p, const Vec<T, kWidth>& x) {
  *reinterpret_cast<Vec<T, kWidth>*>(p) = x;
}

// Whether packs of `width` elements may be used from column `column` of every row of t.
inline bool packs_fit(const Tensor& t, int width, int64_t column = 0) {
  const int64_t size = size_of(t.dtype), unit = width * size < 16 ? width * size : 16;
  return (reinterpret_cast<uintptr_t>(t.data) + static_cast<uintptr_t>(column * size)) % static_cast<uintptr_t>(unit) ==
             0 &&
         (t.rows <= 1 || t.stride * size % unit == 0);
}

// A kernel body has, for pack widths W:
//   template <int W> struct State;                                       what stays in registers in between
//   template <int W> __device__ void load(int64_t row, int64_t col, State<W>&) const;  every read
//   template <int W> __device__ void store(int64_t row, int64_t col, State<W>&) const; arithmetic and every write
// With one phase the compiler could not move a load above the previous pack's store, which may alias it (in place), and
// each thread would wait for DRAM kUnroll times instead of once.
constexpr int kMapThreads = 256;
template <int W, int kUnroll, class Body>
__global__ void __launch_bounds__(kMapThreads)
    map_kernel(Body body, int64_t packs, int64_t packs_per_row, int64_t begin) {
  typename Body::template State<W> state[kUnroll];
  const int64_t first = int64_t{blockIdx.x} * (kMapThreads * kUnroll) + threadIdx.x;
  int64_t row[kUnroll], col[kUnroll];
#pragma unroll
  for (int k = 0; k < kUnroll; ++k) {
    const int64_t pack = first + k * kMapThreads;  // neighbouring threads, neighbouring packs: coalesced
    if (pack < packs) {
      row[k] = pack / packs_per_row;
      col[k] = begin + (pack - row[k] * packs_per_row) * W;
      body.template load<W>(row[k], col[k], state[k]);
    }
  }
#pragma unroll
  for (int k = 0; k < kUnroll; ++k)
    if (first + k * kMapThreads < packs) body.template store<W>(row[k], col[k], state[k]);
}

template <int W, int kUnroll, class Body>
void launch_columns(cudaStream_t stream, const Body& body, int64_t rows, int64_t begin, int64_t end) {
  const int64_t packs_per_row = (end - begin) / W, packs = rows * packs_per_row;
  if (packs <= 0) return;
  const int64_t blocks = ceil_div(packs, kMapThreads * kUnroll);
  IRQ_CHECK(blocks < int64_t{1} << 31, "%ld blocks", blocks);
  map_kernel<W, kUnroll><<<static_cast<unsigned>(blocks), kMapThreads, 0, stream>>>(body, packs, packs_per_row, begin);
  CUDA_LAUNCHED();
}

// All columns: in packs of kWidth as far as they go if `packed`, the rest one by one.
template <int kWidth, int kUnroll, class Body>
void launch_map(cudaStream_t stream, const Body& body, int64_t rows, int64_t cols, bool packed) {
  const int64_t split = packed ? cols / kWidth * kWidth : 0;
  launch_columns<kWidth, kUnroll>(stream, body, rows, 0, split);
  launch_columns<1, kUnroll>(stream, body, rows, split, cols);
}

}  // namespace irq
