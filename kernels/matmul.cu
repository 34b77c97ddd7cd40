// What:   y = alpha * op(a) op(b) + beta * c through cuBLASLt, and a plain tiled kernel for what it declines.
// Math:   cuBLASLt is column-major, and a row-major matrix is its own transpose there, so it is asked for
//         y^T = alpha * op(b)^T op(a)^T + beta * c^T: the operands change places and nothing is copied.
// Shapes: op(a) (m, k), op(b) (k, n), y and c (m, n), any row strides. a, b BF16 with y BF16 or F32; a, b F32 with y F32
//         or BF16. Sums in F32 always; F32 inputs are never rounded to TF32.
// Cost:   bytes = 2 (m k + k n + m n), FLOPs = 2 m n k. N = 8192 tokens by a 4096 x 4096 matrix: 275 GFLOP, 370 us at
//         75 % of an H100's 989 TFLOP/s.
// Tricky: split sums only through a workspace, added in a fixed order (never atomically), so that the same shape gives the
//         same bits. Algorithms assume an alignment, so it is part of the key; for a BF16 row stride that
//         is odd cuBLASLt may have nothing, and the tiled kernel takes over.
#include <algorithm>
#include <cstring>

#include "kernels/matmul_plans.cuh"

namespace irq {
namespace {

constexpr int kTile = 64;      // a block makes a (kTile, kTile) tile of y
constexpr int kStep = 16;      // terms per pass through shared memory
constexpr int kPerThread = 4;  // a thread makes (4, 4) of it, rows and columns 16 apart: no bank conflicts
constexpr int kSide = kTile / kPerThread;

// One op(matrix): element (i, k) is data[i * row_step + k * col_step].
template <class T>
struct View {
  const T* data;
  int64_t row_step, col_step;
};

// Grid: one block per tile, tiles of a row of y first. Block: kSide^2 threads.
template <class In, class Out>
__global__ void __launch_bounds__(kSide* kSide)
    tiled_matmul(Out* y, int64_t y_stride, View<In> a, View<In> b_t, const Out* c, int64_t c_stride, int64_t m,
                 int64_t n, int64_t k, float alpha, float beta) {
  __shared__ float tile_a[kStep][kTile + 1], tile_b[kStep][kTile + 1];
  const int64_t tiles_n = (n + kTile - 1) / kTile;
  const int64_t i0 = blockIdx.x / tiles_n * kTile, j0 = blockIdx.x % tiles_n * kTile;
  const int tx = threadIdx.x % kSide, ty = threadIdx.x / kSide;
  float sum[kPerThread][kPerThread] = {};
  for (int64_t k0 = 0; k0 < k; k0 += kStep) {
    // Consecutive threads load along the direction that is contiguous in memory.
    for (int e = threadIdx.x; e < kTile * kStep; e += kSide * kSide) {
      const int ia = a.col_step == 1 ? e / kStep : e % kTile, pa = a.col_step == 1 ? e % kStep : e / kTile;
      const int ib = b_t.col_step == 1 ? e / kStep : e % kTile, pb = b_t.col_step == 1 ? e % kStep : e / kTile;
      tile_a[pa][ia] = i0 + ia < m && k0 + pa < k ? to_f(a.data[(i0 + ia) * a.row_step + (k0 + pa) * a.col_step]) : 0.f;
      tile_b[pb][ib] =
          j0 + ib < n && k0 + pb < k ? to_f(b_t.data[(j0 + ib) * b_t.row_step + (k0 + pb) * b_t.col_step]) : 0.f;
    }
    __syncthreads();
#pragma unroll
    for (int p = 0; p < kStep; ++p) {
      float x[kPerThread], w[kPerThread];
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) x[i] = tile_a[p][ty + i * kSide], w[i] = tile_b[p][tx + i * kSide];
#pragma unroll
      for (int i = 0; i < kPerThread; ++i)
#pragma unroll
        for (int j = 0; j < kPerThread; ++j) sum[i][j] = fmaf(x[i], w[j], sum[i][j]);
    }
    __syncthreads();
  }
  for (int i = 0; i < kPerThread; ++i)
    for (int j = 0; j < kPerThread; ++j) {
      const int64_t row = i0 + ty + i * kSide, col = j0 + tx + j * kSide;
      if (row >= m || col >= n) continue;
      float value = alpha * sum[i][j];
      if (beta != 0) value += beta * to_f(c[row * c_stride + col]);
      y[row * y_stride + col] = from_f<Out>(value);
    }
}

cudaDataType_t cuda_type(DType t) { return t == DType::BF16 ? CUDA_R_16BF : CUDA_R_32F; }

int alignment_of(const void* p) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  return address == 0 ? 16 : static_cast<int>(std::min<uintptr_t>(address & -address, 16));
}

// The column-major view of a row-major (rows, cols).
cublasLtMatrixLayout_t layout_of(DType t, int64_t rows, int64_t cols, int64_t stride, int64_t count, int64_t step) {
  cublasLtMatrixLayout_t layout = nullptr;
  cublas_check(cublasLtMatrixLayoutCreate(&layout, cuda_type(t), static_cast<uint64_t>(cols),
                                          static_cast<uint64_t>(rows), stride),
               "cublasLtMatrixLayoutCreate");
  if (count > 1) {
    const auto batch = static_cast<int32_t>(count);
    cublas_check(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch, sizeof batch),
                 "BATCH_COUNT");
    cublas_check(
        cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &step, sizeof step),
        "STRIDED_BATCH_OFFSET");
  }
  return layout;
}

template <class T>
void set_preference(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute, T value) {
  cublas_check(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value),
               "cublasLtMatmulPreferenceSetAttribute");
}

// Appends what cuBLASLt proposes for this workspace, best guess first; a proposal that is there already is left out.
void add_candidates(std::vector<MatmulCandidate>& candidates, cublasLtHandle_t blas, const MatmulPlan& plan,
                    const MatmulKey& key, uint64_t workspace_bytes) {
  cublasLtMatmulPreference_t preference = nullptr;
  cublas_check(cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate");
  set_preference(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_bytes);
  set_preference(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                 uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
  set_preference(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<uint32_t>(key.alignment[1]));
  set_preference(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<uint32_t>(key.alignment[0]));
  set_preference(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<uint32_t>(key.alignment[2]));
  set_preference(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<uint32_t>(key.alignment[3]));
  cublasLtMatmulHeuristicResult_t found[kMatmulCandidates];
  int count = 0;
  const cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(blas, plan.operation, plan.first, plan.second, plan.base, plan.result, preference,
                                     kMatmulCandidates, found, &count);
  cublasLtMatmulPreferenceDestroy(preference);
  for (int i = 0; status == CUBLAS_STATUS_SUCCESS && i < count; ++i) {
    const auto same = [&](const MatmulCandidate& c) {
      return std::memcmp(&c.algorithm, &found[i].algo, sizeof found[i].algo) == 0;
    };
    if (found[i].state == CUBLAS_STATUS_SUCCESS && std::none_of(candidates.begin(), candidates.end(), same))
      candidates.push_back({found[i].algo});
  }
}

template <class In, class Out>
void launch_tiled(const MatmulKey& key, Tensor y, Tensor a, Tensor b, const void* c, float alpha, float beta,
                  cudaStream_t stream) {
  const View<In> va = key.transpose_a ? View<In>{static_cast<const In*>(a.data), 1, key.a_stride}
                                      : View<In>{static_cast<const In*>(a.data), key.a_stride, 1};
  const View<In> vb = key.transpose_b ? View<In>{static_cast<const In*>(b.data), key.b_stride, 1}
                                      : View<In>{static_cast<const In*>(b.data), 1, key.b_stride};
  const int64_t tiles = ceil_div(key.m, kTile) * ceil_div(key.n, kTile);
  IRQ_CHECK(tiles <= INT32_MAX, "matmul: %ld tiles", tiles);
  tiled_matmul<In, Out><<<static_cast<unsigned>(tiles), kSide * kSide, 0, stream>>>(
      static_cast<Out*>(y.data), key.y_stride, va, vb, static_cast<const Out*>(c), key.c_stride, key.m, key.n, key.k,
      alpha, beta);
  CUDA_LAUNCHED();
}

}  // namespace

void cublas_check(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw Error(strf("cuBLASLt error: %s (%s)", cublasLtGetStatusString(status), cublasLtGetStatusName(status)))
      .line("at", what);
}

CudaBackend::MatmulPlans::~MatmulPlans() {
  for (auto& [key, plan] : plans) {
    for (cublasLtMatrixLayout_t layout : {plan.first, plan.second, plan.base, plan.result})
      cublasLtMatrixLayoutDestroy(layout);
    cublasLtMatmulDescDestroy(plan.operation);
  }
  cudaFree(workspace);
}

MatmulPlan& CudaBackend::MatmulPlans::find(cublasLtHandle_t blas, const MatmulKey& key) {
  if (const auto known = plans.find(key); known != plans.end()) return known->second;
  MatmulPlan plan;
  cublas_check(cublasLtMatmulDescCreate(&plan.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
  const cublasOperation_t first = key.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N,
                          second = key.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
  cublas_check(cublasLtMatmulDescSetAttribute(plan.operation, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first),
               "TRANSA");
  cublas_check(cublasLtMatmulDescSetAttribute(plan.operation, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second),
               "TRANSB");
  plan.first = layout_of(key.in, key.transpose_b ? key.n : key.k, key.transpose_b ? key.k : key.n, key.b_stride,
                         key.count, key.b_step);
  plan.second = layout_of(key.in, key.transpose_a ? key.k : key.m, key.transpose_a ? key.m : key.k, key.a_stride,
                          key.count, key.a_step);
  plan.base = layout_of(key.out, key.m, key.n, key.c_stride, key.count, key.y_step);
  plan.result = layout_of(key.out, key.m, key.n, key.y_stride, key.count, key.y_step);
  // A list ends after eight; without workspace there are no split sums in it, so other ones come up.
  for (const int64_t bytes : {kMatmulWorkspaceBytes, int64_t{0}})
    if (bytes > 0 || tuning) add_candidates(plan.candidates, blas, plan, key, static_cast<uint64_t>(bytes));
  settle(blas, plan, key);
  return plans.emplace(key, std::move(plan)).first->second;
}

cublasStatus_t CudaBackend::MatmulPlans::run(cublasLtHandle_t blas, const MatmulPlan& plan, size_t candidate,
                                             const MatmulCall& call, cudaStream_t stream) const {
  return cublasLtMatmul(blas, plan.operation, &call.alpha, call.b, plan.first, call.a, plan.second, &call.beta, call.c,
                        plan.base, call.y, plan.result, &plan.candidates[candidate].algorithm, workspace,
                        kMatmulWorkspaceBytes, stream);
}

void CudaBackend::matmul(Tensor y, Tensor a, bool transpose_a, Tensor b, bool transpose_b, double alpha, double beta,
                         Tensor c) {
  if (y.numel() == 0) return;
  if (beta == 0) c = y;  // never read, but cuBLASLt wants its layout
  const auto stride_of = [](const Tensor& t) { return t.rows <= 1 ? std::max<int64_t>(t.cols, 1) : t.stride; };
  const MatmulKey key{y.rows,
                      y.cols,
                      transpose_a ? a.rows : a.cols,
                      stride_of(a),
                      stride_of(b),
                      stride_of(c),
                      stride_of(y),
                      a.dtype,
                      y.dtype,
                      transpose_a,
                      transpose_b,
                      {alignment_of(a.data), alignment_of(b.data), alignment_of(c.data), alignment_of(y.data)}};
  const MatmulCall call{a.data, b.data, c.data, y.data, static_cast<float>(alpha), static_cast<float>(beta)};
  MatmulPlan* plan = key.k > 0 ? &plans_->find(blas_, key) : nullptr;  // an empty sum is left to our own kernel
  if (plan && !plan->candidates.empty()) {
    if (plans_->tuning && !plan->settled) plans_->tune(blas_, *plan, key, call, stream_);
    cublas_check(plans_->run(blas_, *plan, plan->chosen, call, stream_), "cublasLtMatmul");
    return;
  }
  dispatch_storage(a.dtype, [&](auto in) {
    dispatch_storage(y.dtype, [&](auto out) {
      launch_tiled<decltype(in), decltype(out)>(key, y, a, b, c.data, call.alpha, call.beta, stream_);
    });
  });
}

void CudaBackend::matmul_blocks(Tensor y, Tensor a, Tensor b, int parts, double alpha, double beta) {
  const int64_t m = a.cols / parts, n = b.cols / parts;
  const auto one_by_one = [&] {
    for (int64_t i = 0; i < parts; ++i) {
      const Tensor part = y.slice_rows(i * m, m);
      matmul(part, a.slice_cols(i * m, m), true, b.slice_cols(i * n, n), false, alpha, beta, part);
    }
  };
  if (parts == 1 || y.numel() == 0 || a.rows == 0) return one_by_one();
  // Every part's operands are as aligned as the least aligned part's.
  const auto alignment = [&](const Tensor& t, int64_t step) {
    const auto bytes = static_cast<uint64_t>(step * size_of(t.dtype));
    return std::min(alignment_of(t.data), alignment_of(reinterpret_cast<const void*>(bytes)));
  };
  const int64_t y_step = m * y.stride;
  const int y_alignment = alignment(y, y_step);
  const MatmulKey key{m,        n,        a.rows,   a.stride,
                      b.stride, y.stride, y.stride, a.dtype,
                      y.dtype,  true,     false,    {alignment(a, m), alignment(b, n), y_alignment, y_alignment},
                      parts,    m,        n,        y_step};
  MatmulPlan& plan = plans_->find(blas_, key);
  if (plan.candidates.empty()) return one_by_one();
  const MatmulCall call{a.data, b.data, y.data, y.data, static_cast<float>(alpha), static_cast<float>(beta)};
  if (plans_->tuning && !plan.settled) plans_->tune(blas_, plan, key, call, stream_);
  cublas_check(plans_->run(blas_, plan, plan.chosen, call, stream_), "cublasLtMatmul");
}

}  // namespace irq
