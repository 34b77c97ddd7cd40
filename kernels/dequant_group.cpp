// ext = [W sB'; A' -] part by part: paper Eqs 3 and 10 for W, copies for the adapters. CPU reference.
#include "kernels/dequant_group.h"

#include "kernels/cpu.h"

namespace irq {

void dequant_group_by_ops(Backend& backend, const Tensor& ext, const PackedGroup& group) {
  const int64_t out = group.out(), in = group.w[0].cols, rank = group.a ? group.a.rows : 0;
  const Tensor b_columns = ext.slice_rows(0, out).slice_cols(in, rank);
  if (rank > 0) backend.copy(ext.slice_rows(out, rank).slice_cols(0, in), group.a);
  if (rank > 0 && (group.parts > 1 || !group.b[0] || group.b[0].cols < rank)) backend.fill(b_columns, 0);
  int64_t row = 0;
  for (size_t i = 0; i < static_cast<size_t>(group.parts); ++i) {
    const QuantizedMatrix& q = group.w[i];
    const Tensor w = ext.slice_rows(row, q.rows).slice_cols(0, in);
    if (q.is_integer()) backend.int_dequant(w, q);
    else backend.nfk_dequant(w, q);
    const Tensor& b = group.b[i];
    if (b) backend.copy(b_columns.slice_rows(row, q.rows).slice_cols(group.column[i], b.cols), b);
    row += q.rows;
  }
}

void CpuBackend::dequant_group(Tensor ext, PackedGroup group) { dequant_group_by_ops(*this, ext, group); }

}  // namespace irq
