#include "src/ops/linear_group.h"

namespace irq {
namespace {

// Writes the folded adapters into the last rows and columns of a dequantized ext.
void place_adapters(Backend& backend, const LinearGroup& g, const Tensor& ext) {
  backend.copy(ext.slice_rows(g.out, g.rank).slice_cols(0, g.in), g.a_folded);
  const Tensor b_columns = ext.slice_rows(0, g.out).slice_cols(g.in, g.rank);
  const bool diagonal = g.adapters.size() > 1 || g.adapters[0].out != g.out;
  if (diagonal) backend.fill(b_columns, 0);
  for (const AdapterPart& p : g.adapters) backend.copy(b_columns.slice_rows(p.row, p.out).slice_cols(p.column, p.rank), p.b_folded);
}

}  // namespace

Tensor DeviceWeights::acquire(const LinearGroup& g) {
  if (g.resident) return g.resident;
  const DType s = backend_.precision().storage;
  const Tensor ext = arena_.take("dequantized weights", s, g.out + g.rank, g.in + g.rank);
  for (const LinearPart& part : g.parts) {
    IRQ_CHECK(part.quantized, "%s of layer %d is neither packed nor resident", part.name, g.layer);
    backend_.nfk_dequant(ext.slice_rows(part.row, part.out).slice_cols(0, g.in), part.packed);
  }
  if (g.rank > 0) place_adapters(backend_, g, ext);
  return ext;
}

void DeviceWeights::release(const LinearGroup& g, const Tensor& ext) {
  if (!g.resident) arena_.give(ext);
}

void fold_adapters(Backend& backend, LinearGroup& g) {
  for (AdapterPart& p : g.adapters) {
    const Tensor pooled_apart = {};  // with dropout the IEC branch must not see A's mask
    backend.iec_fold_a(g.a_folded.slice_rows(p.column, p.rank), p.a, g.dropout > 0 ? pooled_apart : p.beta1, g.tile);
    backend.iec_fold_b(p.b_folded, p.b, p.beta2, g.scale, g.tile);
  }
}

void finish_betas(Backend& backend, ParamStore& params, const LinearGroup& g) {
  for (const AdapterPart& p : g.adapters) {
    // With dropout the pooled branch has given dbeta1 already; else both follow from dA and dB (fidelity 4.4).
    if (p.param_beta1 >= 0 && g.dropout == 0)
      backend.iec_dbeta1(params.grad_value(p.param_beta1), params.grad_value(p.param_a), g.tile, 0);
    if (p.param_beta2 >= 0) backend.iec_dbeta2(params.grad_value(p.param_beta2), params.grad_value(p.param_b), g.tile, 0);
  }
}

}  // namespace irq
