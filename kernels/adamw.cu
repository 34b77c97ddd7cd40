// What:   one AdamW step over a flat slice of the trained parameters, with clipping by the global norm.
// Math:   g' = min(1, clip / (norm + 1e-6)) g;  m = b1 m + (1-b1) g';  v = b2 v + (1-b2) g'^2;
//         p = (p - lr (m / bias1) / (sqrt(v / bias2) + eps)) (1 - lr decay).
// Shapes: p, m, v, g (1, n) M; norm (1, 1) M; params StepParams.
// Cost:   28 n bytes: LLaMA-7B, r = 64, n = 160M: 4.5 GB, 1.6 ms.
// Tricky: everything that changes from step to step (lr, bias corrections, norm) is read on the device, so that a captured
//         step can be replayed. Constants are rounded from double once, as on the CPU.
#include "kernels/chunk.cuh"

namespace irq {
namespace {

constexpr int kThreads = 256;
using Pack4 = Pack<float>;

struct AdamStep {
  float clip, rate, inv_bias2, shrink;  // rate = lr / bias1
};

__device__ __forceinline__ AdamStep adam_step(const StepParams* params, const float* norm, double decay) {
  double clip = 1;
  if (params->clip > 0) clip = fmin(1.0, params->clip / (static_cast<double>(*norm) + 1e-6));
  return {static_cast<float>(clip), static_cast<float>(params->lr / params->bias1),
          static_cast<float>(1 / params->bias2), static_cast<float>(1 - params->lr * decay)};
}

__device__ __forceinline__ void update(float& p, float& m, float& v, float g, const AdamStep& step) {
  constexpr float kB1 = static_cast<float>(kAdamBeta1), kRest1 = static_cast<float>(1 - kAdamBeta1);
  constexpr float kB2 = static_cast<float>(kAdamBeta2), kRest2 = static_cast<float>(1 - kAdamBeta2);
  const float gradient = step.clip * g;
  m = kB1 * m + kRest1 * gradient;
  v = kB2 * v + kRest2 * gradient * gradient;
  p -= step.rate * m / (sqrtf(v * step.inv_bias2) + static_cast<float>(kAdamEps));
  p *= step.shrink;
}

__global__ void __launch_bounds__(kThreads)
    adamw_kernel(float* p, float* m, float* v, const float* g, const float* norm, const StepParams* params,
                 double decay, int64_t packs, int64_t n) {
  const AdamStep step = adam_step(params, norm, decay);
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x, threads = int64_t{gridDim.x} * kThreads;
  for (int64_t i = thread; i < packs; i += threads) {
    Pack4 pp = reinterpret_cast<const Pack4*>(p)[i], mm = reinterpret_cast<const Pack4*>(m)[i];
    Pack4 vv = reinterpret_cast<const Pack4*>(v)[i];
    const Pack4 gg = reinterpret_cast<const Pack4*>(g)[i];
#pragma unroll
    for (int k = 0; k < 4; ++k) update(pp.v[k], mm.v[k], vv.v[k], gg.v[k], step);
    reinterpret_cast<Pack4*>(p)[i] = pp;
    reinterpret_cast<Pack4*>(m)[i] = mm;
    reinterpret_cast<Pack4*>(v)[i] = vv;
  }
  for (int64_t i = packs * 4 + thread; i < n; i += threads) update(p[i], m[i], v[i], g[i], step);
}

}  // namespace

void CudaBackend::adamw(Tensor p, Tensor m, Tensor v, Tensor g, Tensor norm, Tensor params, double decay) {
  const int64_t n = p.numel();
  if (n == 0) return;
  const int64_t packs = aligned16(p) && aligned16(m) && aligned16(v) && aligned16(g) ? n / 4 : 0;
  const int64_t blocks = std::min<int64_t>(ceil_div(packs > 0 ? packs : n, kThreads), int64_t{sm_count()} * 8);
  adamw_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream_>>>(
      static_cast<float*>(p.data), static_cast<float*>(m.data), static_cast<float*>(v.data),
      static_cast<const float*>(g.data), static_cast<const float*>(norm.data),
      static_cast<const StepParams*>(params.data), decay, packs, n);
  CUDA_LAUNCHED();
}

}  // namespace irq
