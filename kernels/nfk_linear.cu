// What  : a group of packed linears for few rows (decoding) in one launch: RMSNorm before, adapters beside, residual, SwiGLU
//         or RoPE and the write into the KV cache behind.
// Math  : kernels/nfk_linear.h. Each row of W by blocks of 64: s_b sum level x + tau_b sum x; levels as bf16 (nfk_pairs.cuh),
//         sums, scales and shifts F32; u stays F32; one rounding at the end.
// Shapes: x (m, cols), m <= 8, cols a multiple of 256; dq8 scales, with or without tau; all of x fits into shared memory.
//         Everything else goes through packed_linear_by_ops().
// Cost  : k/8 + 0.03 bytes a weight, 2 bytes an adapter's weight: LLaMA-7B NF4, rank 64: q|k|v 29.9 MB, o 9.9, gate|up 52.1,
//         down 25.9; 10.7, 3.5, 18.6 and 9.3 us at 2.8 TB/s. Measured: 25, 14, 39 and 23; about 7 us of each do not depend on
//         its size, and the rest runs at 63 to 76 % of copy, whatever the bits. About 3.2 instructions a weight (NF4, one token).
// Tricky: one block of 16 warps per multiprocessor, two groups of 8, walks through tiles of 16 rows: tables, x and its sums are
//         made once, and each warp's copies run up to kStages pieces ahead, across tiles; they start before x is looked at.
//         A tile's warps split its columns and meet once: partial sums lie in two alternating buffers, so that one barrier a
//         tile is enough, and one warp adds them in a fixed order and finishes the tile.
//         u = n A'^T is shared work: each warp makes a part of it first, publishes it, and a group looks for the others'
//         when its first tile's sums are done. All blocks run at once (never more than multiprocessors), so nobody
//         waits for a block that has not begun.
#include <bit>

#include "kernels/nfk_linear_block.cuh"

namespace irq {
namespace {

using Finish = PackedLinear::Finish;

template <int kBits, int kM, int kStages>
__global__ void __launch_bounds__(kLinearThreads, 1)
    packed_linear_kernel(const __grid_constant__ PackedLinearArgs a, const __grid_constant__ LinearMemory at) {
  extern __shared__ __align__(16) char memory[];
  const uint32_t begin = smem_address(memory);
  if (begin > kTableAddress) __trap();
  LinearBlock<kBits, kM, kStages>{a, at, memory + (kTableAddress - begin)}.run();
}

constexpr int kReservedBytes = 0;  // of the window that are certainly in front of dynamic shared memory

bool aligned(const void* p, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

bool takes(const PackedView& q) {
  return q.cols % kLinearColumns == 0 && !q.scales && q.rows > 0 && aligned(q.codes, 16) && aligned(q.scale_codes, 4) &&
         aligned(q.tau_codes, 4) && q.rows * q.cols / 2 < int64_t{1} << 31;
}

// False if there is too little shared memory for it.
bool launch(PackedLinearArgs a, int bits, int multiprocessors, int64_t shared_bytes, cudaStream_t stream) {
  a.scaled = nf_codebook(bits);
  for (float& level : a.scaled.level) level *= kLevelScale[bits];
  a.unit = 1.0f / kLevelScale[bits];
  const unsigned grid = static_cast<unsigned>(std::min(a.tiles, multiprocessors));
  bool done = false;
  dispatch_bits(bits, [&](auto k) {
    const auto run = [&](auto tokens, auto stages) {
      using S = LinearShape<k.value>;
      constexpr int kTableBytes = S::kPairs * LinearBlock<k.value, tokens.value, stages.value>::kTablePitch;
      const LinearMemory at(kTableBytes, tokens.value, a.m_count, a.cols, a.ranks, S::kStage, stages.value);
      if (done || at.total + kTableAddress > shared_bytes) return;
      const auto kernel = packed_linear_kernel<k.value, tokens.value, stages.value>;
      const int bytes = at.total + kTableAddress - kReservedBytes;
      CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
      launch_early(kernel, grid, kLinearThreads, bytes, stream, a, at);
      done = true;
    };
    const auto run_stages = [&](auto tokens) {
      run(tokens, std::integral_constant<int, 3>{});
      run(tokens, std::integral_constant<int, 2>{});
    };
    if (a.m_count == 1) run_stages(std::integral_constant<int, 1>{});
    else run_stages(std::integral_constant<int, kLinearTokens>{});
  });
  return done;
}

int tiles_of(int64_t rows) { return static_cast<int>(ceil_div(rows, kLinearRows)); }

}  // namespace

bool packed_linear_arguments(const PackedLinear& c, PackedLinearArgs& a) {
  const int64_t rows = c.x.rows;
  if (c.x.dtype != DType::BF16 || rows > kLinearTokens || !aligned(c.x.data, 16) || (rows > 1 && c.x.stride % 8 != 0))
    return false;
  if (c.norm && !aligned(c.norm.data, 16)) return false;
  a.cols = static_cast<int>(c.x.cols), a.m_count = static_cast<int>(rows), a.finish = c.finish;
  a.x = static_cast<const __nv_bfloat16*>(c.x.data), a.x_stride = c.x.stride;
  a.norm = c.norm ? c.norm.as<float>() : nullptr, a.eps = static_cast<float>(c.eps);
  a.y = static_cast<__nv_bfloat16*>(c.y.data), a.y_stride = c.y.stride;
  if (c.residual)
    a.base = static_cast<const __nv_bfloat16*>(c.residual.data), a.base_stride = c.residual.stride, a.base_scale = 1;
  if (c.a) {
    if (!aligned(c.a.data, 16) || c.a.stride % 8 != 0) return false;
    a.a = static_cast<const __nv_bfloat16*>(c.a.data), a.a_stride = c.a.stride, a.ranks = static_cast<int>(c.a.rows);
    a.segments = (a.cols + kLinearSegment - 1) / kLinearSegment;
  }
  int tiles = 0;
  for (int i = 0; i < PackedLinear::kParts; ++i) {
    const size_t k = static_cast<size_t>(i);
    a.tile_end[i] = tiles;
    if (i >= c.parts) continue;
    const QuantizedMatrix& w = c.w[k];
    if (w.format.kind != QuantKind::nf || w.format.group != kBlock || w.format.bits != c.w[0].format.bits ||
        w.map.data != c.w[0].map.data)
      return false;
    a.part[i] = packed_view(w);
    if (!takes(a.part[i])) return false;
    a.tile_end[i] = tiles += tiles_of(w.rows);
    const Tensor& b = c.b[k];
    if (!b) continue;
    if (!aligned(b.data, 8) || b.stride % 4 != 0 || b.cols % 4 != 0) return false;
    a.b[i] = static_cast<const __nv_bfloat16*>(b.data), a.b_stride[i] = b.stride;
    a.b_column[i] = static_cast<int>(c.column[k]), a.b_rank[i] = static_cast<int>(b.cols);
  }
  a.tiles = tiles;
  if (c.finish == Finish::swiglu) {
    a.tiles = static_cast<int>(c.w[0].rows / 8);
    return c.w[0].rows % 8 == 0;
  }
  if (c.finish == Finish::add) return true;
  a.half = c.head_dim / 2;
  a.cosine = c.cos_table.as<float>(), a.sine = c.sin_table.as<float>();
  a.cos_stride = c.cos_table.stride, a.sin_stride = c.sin_table.stride, a.kv_stride = c.keys.stride;
  a.positions = c.positions.as<int32_t>(), a.cache_rows = c.cache_rows.as<int32_t>();
  a.keys = static_cast<__nv_bfloat16*>(c.keys.data), a.values = static_cast<__nv_bfloat16*>(c.values.data);
  if (c.head_dim < 16 || !std::has_single_bit(static_cast<unsigned>(c.head_dim))) return false;
  a.tile_shift = std::countr_zero(static_cast<unsigned>(c.head_dim)) - 4;
  return c.w[2].rows % kLinearRows == 0 && c.keys.stride == c.values.stride;
}

void CudaBackend::nfk_linear(PackedLinear call) {
  if (call.x.rows == 0) return;
  PackedLinearArgs a{};
  if (packed_linear_arguments(call, a)) {
    a.u = static_cast<float*>(
        workspace(int64_t{kLinearTokens} * a.ranks * a.segments * static_cast<int64_t>(sizeof(float))));
    a.meet = meetings();
    if (launch(a, call.w[0].format.bits, sm_count(), shared_bytes(), stream())) return;
  }
  const int64_t element = size_of(call.x.dtype), rstd = ceil_div(call.x.rows * 4, 256) * 256;
  char* scratch = static_cast<char*>(workspace(rstd + packed_linear_scratch(call) * element));
  packed_linear_by_ops(*this, call, scratch + rstd, scratch);
}

}  // namespace irq
