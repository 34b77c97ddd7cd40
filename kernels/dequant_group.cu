// What  : a group's dense matrix with its adapters beside it, from packed parts, in one launch.
// Math  : ext = [W sB'; A' -]; W as in nfk_dequant.cu, the rest is copied, or 0 where no adapter writes.
// Shapes: parts (out_i, in) of one format, A' (R, in), sB'_i (out_i, r_i) -> ext (out + R, in + R), any row stride.
// Cost  : W as in nfk_dequant.cu, and 4 R in + 2 R out + 2 sum(out_i r_i) bytes: q|k|v of LLaMA-7B with R = 192, NF4: 127 + 9.4 MB =
//         45 us at 3.03 TB/s; 50.8 measured on an H100. Part by part with copies it is 8 launches.
// Tricky: the first blocks of threads place the adapters, two packs a thread; the others take W. The
//         launch is early (dependent_launch.cuh): codes are read, which are older, before the kernel in front has ended;
//         the adapters and ext are touched behind it.
#include "kernels/chunk.cuh"
#include "kernels/dequant_group.h"
#include "kernels/nfk_dequant.cuh"

namespace irq {
namespace {

constexpr int kThreads = kDequantThreads, kParts = PackedGroup::kParts;
constexpr int kPacksPerThread = 2;  // 16 bytes each

template <class T>
struct GroupView {
  T* ext;
  int64_t stride;
  PackedView w[kParts];
  uint32_t blocks[kParts];                                     // of 64 weights
  uint32_t begin[kParts];                                      // blocks of threads in front of the part's
  uint32_t end_row[kParts];                                    // rows up to the end of the part
  const T* b[kParts];                                          // null: no adapter
  uint32_t b_stride[kParts], b_column[kParts], b_end[kParts];  // columns [b_column, b_end) of R
  const T* a;
  int64_t a_stride;
  uint32_t parts, in, out, rank, adapter_blocks;
};

// Pack `index` of sB' if it is below `b_packs`, else of A'. Where it goes, and its value.
template <class T>
__device__ __forceinline__ T* fetch_pack(const GroupView<T>& g, uint32_t index, uint32_t b_packs, Pack<T>& value) {
  constexpr uint32_t W = Pack<T>::kCount;
  if (index >= b_packs) {
    const uint32_t at = index - b_packs, row = at / (g.in / W), col = (at - row * (g.in / W)) * W;
    value = *reinterpret_cast<const Pack<T>*>(g.a + row * g.a_stride + col);
    return g.ext + (int64_t{g.out} + row) * g.stride + col;
  }
  const uint32_t row = index / (g.rank / W), col = (index - row * (g.rank / W)) * W;
  uint32_t part = 0, first_row = 0;
#pragma unroll
  for (uint32_t i = 0; i + 1 < kParts; ++i)
    if (i + 1 < g.parts && row >= g.end_row[i]) part = i + 1, first_row = g.end_row[i];
  value = Pack<T>{};
  if (col >= g.b_column[part] && col < g.b_end[part])
    value = *reinterpret_cast<const Pack<T>*>(g.b[part] + int64_t{row - first_row} * g.b_stride[part] + col -
                                              g.b_column[part]);
  return g.ext + row * g.stride + g.in + col;
}

template <class T>
__device__ __forceinline__ void place_adapters(const GroupView<T>& g) {
  constexpr uint32_t W = Pack<T>::kCount;
  const uint32_t b_packs = g.out * (g.rank / W), packs = b_packs + g.rank * (g.in / W);
  wait_for_previous_kernel();
  Pack<T> value[kPacksPerThread];
  T* to[kPacksPerThread];
#pragma unroll
  for (int k = 0; k < kPacksPerThread; ++k) {
    const uint32_t index = (blockIdx.x * kPacksPerThread + k) * kThreads + threadIdx.x;
    to[k] = index < packs ? fetch_pack(g, index, b_packs, value[k]) : nullptr;
  }
#pragma unroll
  for (int k = 0; k < kPacksPerThread; ++k)
    if (to[k]) *reinterpret_cast<Pack<T>*>(to[k]) = value[k];
}

template <int kBits, bool kTau, class T>
__global__ void __launch_bounds__(kThreads, 8) group_kernel(const __grid_constant__ GroupView<T> g, Codebook book) {
  if (blockIdx.x < g.adapter_blocks) return place_adapters(g);
  const uint32_t index = blockIdx.x - g.adapter_blocks;
  uint32_t part = 0, first_row = 0;
#pragma unroll
  for (uint32_t i = 0; i + 1 < kParts; ++i)
    if (i + 1 < g.parts && index >= g.begin[i + 1]) part = i + 1, first_row = g.end_row[i];
  nfk_dequant_share<kBits, kTau>(g.ext + first_row * g.stride, g.stride, g.w[part], g.blocks[part], book,
                                 index - g.begin[part]);
}

// Whether the kernel takes the group: every pack whole and aligned, one format.
template <class T>
bool fits(const Tensor& ext, const PackedGroup& group) {
  constexpr int64_t W = Pack<T>::kCount;
  const auto packs = [](const Tensor& t) { return t.cols % W == 0 && t.stride % W == 0 && aligned16(t); };
  bool ok = group.w[0].cols % kBlock == 0 && ext.stride % 8 == 0 && aligned16(ext) && ext.rows * ext.cols < INT32_MAX;
  if (group.a) ok = ok && packs(group.a) && group.a.rows % W == 0;
  for (size_t i = 0; i < static_cast<size_t>(group.parts); ++i) {
    const QuantizedMatrix& q = group.w[i];
    ok = ok && q.format == group.w[0].format && q.format.kind == QuantKind::nf && q.format.group == kBlock &&
         nfk_dequant_fits(ext, q) && (!group.b[i] || (packs(group.b[i]) && group.column[i] % W == 0));
  }
  return ok;
}

template <class T>
GroupView<T> view_of(const Tensor& ext, const PackedGroup& group, uint32_t& grid) {
  GroupView<T> g{};
  g.ext = static_cast<T*>(ext.data), g.stride = ext.stride;
  g.parts = static_cast<uint32_t>(group.parts);
  g.in = static_cast<uint32_t>(group.w[0].cols), g.out = static_cast<uint32_t>(group.out());
  g.rank = group.a ? static_cast<uint32_t>(group.a.rows) : 0;
  g.a = static_cast<const T*>(group.a.data), g.a_stride = group.a.stride;
  const int64_t packs = int64_t{g.rank} * (g.out + g.in) / Pack<T>::kCount;
  g.adapter_blocks = static_cast<uint32_t>(ceil_div(packs, kThreads * kPacksPerThread));
  uint32_t begin = 0, row = 0;
  for (size_t i = 0; i < g.parts; ++i) {
    const QuantizedMatrix& q = group.w[i];
    const Tensor& b = group.b[i];
    g.w[i] = packed_view(q), g.blocks[i] = static_cast<uint32_t>(q.blocks());
    g.begin[i] = begin, begin += static_cast<uint32_t>(nfk_dequant_grid(q.blocks()));
    g.end_row[i] = row += static_cast<uint32_t>(q.rows);
    if (!b) continue;
    g.b[i] = static_cast<const T*>(b.data), g.b_stride[i] = static_cast<uint32_t>(b.stride);
    g.b_column[i] = static_cast<uint32_t>(group.column[i]);
    g.b_end[i] = g.b_column[i] + static_cast<uint32_t>(b.cols);
  }
  grid = g.adapter_blocks + begin;
  return g;
}

}  // namespace

void CudaBackend::dequant_group(Tensor ext, PackedGroup group) {
  if (group.out() == 0) return;
  const Codebook& book = nf_codebook(group.w[0].format.bits);
  dispatch_storage(ext.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (!fits<T>(ext, group)) return dequant_group_by_ops(*this, ext, group);
    uint32_t grid = 0;
    const GroupView<T> view = view_of<T>(ext, group, grid);
    dispatch_bits(group.w[0].format.bits, [&](auto k) {
      if (group.w[0].has_tau())
        launch_early(group_kernel<k.value, true, T>, dim3(grid), kThreads, 0, stream(), view, book);
      else launch_early(group_kernel<k.value, false, T>, dim3(grid), kThreads, 0, stream(), view, book);
    });
  });
}

}  // namespace irq
