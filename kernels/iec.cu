// What:   Information Elastic Connection: folding beta * P and beta * E into the adapter, the betas' gradients, and the
//         pooled branch on its own for when dropout keeps it from being folded.
// Math:   folded = scale * (w + beta * map);  dbeta = beta * dbeta + <dw, map>;  u += beta1 P x;  dx = beta dx + beta1 P^T du.
//         map (expanded, pooled) holds 1 / slice in row j at the columns of slice group(j) (IecMap), and is never stored.
// Shapes: A (r, h), B (o, r) M; folded S, any row stride; x, dx (N, h), u, du (N, r) S; betas (1, 1), partial (1, N) M.
// Cost:   fold 6 bytes per parameter in bf16: LLaMA-7B, r = 64, 160M parameters 0.96 GB, 343 us (448 launches).
//         dbeta reads h or o floats: one launch, 2-3 us. pool_fwd 2 N h bytes: N = 8192, h = 4096 67 MB, 24 us;
//         pool_bwd with beta = 1 6 N h bytes: 201 MB, 72 us.
// Tricky: slices need not be a multiple of a 16-byte pack (h = 11008, r = 64: 172), so pool_fwd loads 8, 4 or 1 elements at
//         a time, whichever divides the slice, and each slice is summed by a few neighbouring lanes.
#include "kernels/chunk.cuh"
#include "kernels/iec.h"

namespace irq {
namespace {

constexpr int kPoolThreads = 256;

template <class T, bool kVector>
__global__ void fold_kernel(T* folded, int64_t out_stride, const float* w, int64_t in_stride, const float* beta,
                            float scale, int rows, int cols, IecMap map) {
  const int c = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) * kChunk;
  if (c >= cols) return;
  const float share = beta ? *beta / static_cast<float>(map.slice) : 0.0f;
  for (int j = static_cast<int>(blockIdx.y * blockDim.y + threadIdx.y); j < rows;
       j += static_cast<int>(gridDim.y * blockDim.y)) {
    const int begin = map.group(j) * map.slice;
    float value[kChunk];
    load_chunk<kVector>(value, w + j * in_stride + c, cols - c);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      const int inside = c + i - begin;
      value[i] = scale * (value[i] + (inside >= 0 && inside < map.slice ? share : 0.0f));
    }
    store_chunk<kVector>(folded + j * out_stride + c, value, cols - c);
  }
}

// Sums dw over every row's slice. Blocks write their sums to `partial`; a single block finishes at once.
constexpr int kDbetaThreads = 1024;
constexpr int64_t kDbetaPerBlock = 32768;
__device__ __forceinline__ void finish_dbeta(float* dbeta, double total, int slice, float beta) {
  const double value = total / slice;
  *dbeta = static_cast<float>(beta == 0 ? value : beta * static_cast<double>(*dbeta) + value);
}
__global__ void __launch_bounds__(kDbetaThreads)
    dbeta_kernel(float* dbeta, float* partial, const float* dw, int64_t stride, int count, IecMap map, float beta) {
  float sum = 0;
#pragma unroll 4
  for (int e = static_cast<int>(blockIdx.x * kDbetaThreads + threadIdx.x); e < count;
       e += static_cast<int>(gridDim.x * kDbetaThreads)) {
    const int j = e / map.slice, i = e - j * map.slice;
    sum += dw[j * stride + int64_t{map.group(j)} * map.slice + i];
  }
  const double total = block_sum_f64<kDbetaThreads>(sum);
  if (threadIdx.x != 0) return;
  if (gridDim.x == 1) finish_dbeta(dbeta, total, map.slice, beta);
  else partial[blockIdx.x] = static_cast<float>(total);
}
__global__ void dbeta_finish_kernel(float* dbeta, const float* partial, int blocks, int slice, float beta) {
  double sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < blocks; i += 256) sum += partial[i];
  sum = block_sum_f64<256>(sum);
  if (threadIdx.x == 0) finish_dbeta(dbeta, sum, slice, beta);
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

void fold(cudaStream_t stream, Tensor folded, Tensor w, Tensor beta, double scale, bool tile) {
  if (w.numel() == 0) return;
  const IecMap map(w.cols, w.rows, tile);
  const RowGrid launch = row_grid(w.rows, ceil_div(w.cols, kChunk));
  dispatch_storage(folded.dtype, [&](auto zero) {
    using T = decltype(zero);
    auto* kernel = aligned16(folded) && aligned16(w) ? &fold_kernel<T, true> : &fold_kernel<T, false>;
    kernel<<<launch.grid, launch.block, 0, stream>>>(static_cast<T*>(folded.data), folded.stride,
                                                     static_cast<const float*>(w.data), w.stride,
                                                     static_cast<const float*>(beta.data), static_cast<float>(scale),
                                                     static_cast<int>(w.rows), static_cast<int>(w.cols), map);
  });
  CUDA_LAUNCHED();
}

void fold_bwd(cudaStream_t stream, float* partial, int max_blocks, Tensor dbeta, Tensor dw, bool tile, double beta) {
  IRQ_CHECK(dw.numel() > 0, "%s is empty", dw.name);
  const IecMap map(dw.cols, dw.rows, tile);
  const int64_t count = dw.rows * map.slice;
  IRQ_CHECK(count < INT32_MAX / 2, "%s is too large", dw.name);
  const int blocks = static_cast<int>(std::min<int64_t>(ceil_div(count, kDbetaPerBlock), max_blocks));
  float* out = static_cast<float*>(dbeta.data);
  dbeta_kernel<<<blocks, kDbetaThreads, 0, stream>>>(out, partial, static_cast<const float*>(dw.data), dw.stride,
                                                     static_cast<int>(count), map, static_cast<float>(beta));
  CUDA_LAUNCHED();
  if (blocks == 1) return;
  dbeta_finish_kernel<<<1, 256, 0, stream>>>(out, partial, blocks, map.slice, static_cast<float>(beta));
  CUDA_LAUNCHED();
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

void CudaBackend::iec_fold_a(Tensor a_folded, Tensor a, Tensor beta1, bool tile) {
  fold(stream_, a_folded, a, beta1, 1, tile);
}
void CudaBackend::iec_fold_b(Tensor b_folded, Tensor b, Tensor beta2, double scale, bool tile) {
  fold(stream_, b_folded, b, beta2, scale, tile);
}
void CudaBackend::iec_dbeta1(Tensor dbeta1, Tensor da, bool tile, double beta) {
  constexpr int kMaxBlocks = 512;
  fold_bwd(stream_, static_cast<float*>(workspace(kMaxBlocks * sizeof(float))), kMaxBlocks, dbeta1, da, tile, beta);
}
void CudaBackend::iec_dbeta2(Tensor dbeta2, Tensor db, bool tile, double beta) { iec_dbeta1(dbeta2, db, tile, beta); }

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
