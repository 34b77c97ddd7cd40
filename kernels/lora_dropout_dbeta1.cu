// What:   the gradients of a group's beta1 where dropout keeps the pooled branch apart.
// Math:   dbeta1_m = beta dbeta1_m + sum over n, j of du_m[n, j] px[n, j].
// Shapes: du (N, R), px (N, r) S, R = adapters * r; dbeta1 (1, 1) F32, null ones are skipped.
// Cost:   2 N (R + r) bytes. N = 8192, R = 192: 4.2 MB, which the kernels before have left in L2: 8.6 us measured (with a second
//         launch for the last sum 9.5), N = 2048 7.6 us, nearly all of it latency.
// Tricky: partial sums have fixed places and are added in double, in order: the same bits every time.
#include "kernels/chunk.cuh"
#include "kernels/dependent_launch.cuh"

namespace irq {
namespace {

constexpr int kThreads = 256, kBlocks = 128;

struct Results {
  float* dbeta1[AdapterMasks::kMax];
  float beta;
};

// Block (b, m) sums adapter m over every gridDim.x-th piece of kThreads chunks. The last one to arrive at `meeting` adds up, a
// warp for an adapter.
template <class T, bool kVector>
__global__ void __launch_bounds__(kThreads)
    dot_kernel(Results results, double* partial, int* meeting, const T* du, int64_t du_stride, const T* px,
               int64_t px_stride, int64_t rows, int rank) {
  let_next_kernel_begin();
  // Chunk c of row n, and how far the next one is: no division in the loop.
  const auto chunks = static_cast<uint32_t>((rank + kChunk - 1) / kChunk);
  const uint32_t begin = blockIdx.x * kThreads + threadIdx.x, step = gridDim.x * kThreads;
  const int adapter = static_cast<int>(blockIdx.y);
  uint32_t c = begin % chunks;
  float sum = 0;
#pragma unroll 2
  for (int64_t n = begin / chunks; n < rows;) {
    const int j = static_cast<int>(c) * kChunk;
    float a[kChunk], b[kChunk];
    load_chunk<kVector>(a, du + n * du_stride + adapter * rank + j, rank - j);
    load_chunk<kVector>(b, px + n * px_stride + j, rank - j);
#pragma unroll
    for (int k = 0; k < kChunk; ++k) sum += a[k] * b[k];
    n += step / chunks, c += step % chunks;
    if (c >= chunks) c -= chunks, ++n;
  }
  const double total = block_sum_f64<kThreads>(sum);
  __shared__ bool last;
  const int blocks = static_cast<int>(gridDim.x), adapters = static_cast<int>(gridDim.y);
  if (threadIdx.x == 0) {
    partial[adapter * blocks + static_cast<int>(blockIdx.x)] = total;
    __threadfence();
    last = atomicAdd(meeting, 1) == blocks * adapters - 1;
  }
  __syncthreads();
  const int m = static_cast<int>(threadIdx.x) / kWarp;
  if (!last || m >= adapters) return;
  __threadfence();
  double all = 0;
  for (int i = static_cast<int>(threadIdx.x) % kWarp; i < blocks; i += kWarp) all += __ldcg(partial + m * blocks + i);
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) all += __shfl_xor_sync(0xffffffffu, all, offset);
  if (threadIdx.x == 0) *meeting = 0;
  float* out = results.dbeta1[m];
  if (out && threadIdx.x % kWarp == 0)
    *out = static_cast<float>(results.beta == 0 ? all
                                                : static_cast<double>(results.beta) * static_cast<double>(*out) + all);
}

}  // namespace

void CudaBackend::lora_dropout_dbeta1(AdapterScalars dbeta1, Tensor du, Tensor px, int count, double beta) {
  Results results{.dbeta1 = {}, .beta = static_cast<float>(beta)};
  for (int m = 0; m < count; ++m) results.dbeta1[m] = static_cast<float*>(dbeta1[static_cast<size_t>(m)].data);
  double* partial = static_cast<double*>(workspace(int64_t{kBlocks} * count * static_cast<int64_t>(sizeof(double))));
  dispatch_storage(px.dtype, [&](auto zero) {
    using T = decltype(zero);
    auto* kernel =
        aligned16(du) && aligned16(px) && px.cols % kChunk == 0 ? &dot_kernel<T, true> : &dot_kernel<T, false>;
    kernel<<<dim3(kBlocks, static_cast<unsigned>(count)), kThreads, 0, stream_>>>(
        results, partial, meetings(), static_cast<const T*>(du.data), du.stride, static_cast<const T*>(px.data),
        px.stride, px.rows, static_cast<int>(px.cols));
  });
  CUDA_LAUNCHED();
}

}  // namespace irq
