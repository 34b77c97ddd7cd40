#include "src/ops/linear_group.h"

namespace irq {

Tensor DeviceWeights::acquire(const LinearGroup& g) {
  if (g.resident) return g.resident;
  const DType s = backend_.precision().storage;
  const Tensor ext = arena_.take("dequantized weights", s, g.out + g.rank, g.in + g.rank);
  PackedGroup group;
  group.parts = static_cast<int>(g.parts.size());
  if (g.rank > 0) group.a = g.a_folded;
  for (size_t i = 0; i < g.parts.size(); ++i) {
    const LinearPart& part = g.parts[i];
    IRQ_CHECK(part.quantized, "%s of layer %d is neither packed nor resident", part.name, g.layer);
    group.w[i] = part.packed;
    for (const AdapterPart& p : g.adapters)
      if (p.row == part.row) group.b[i] = p.b_folded, group.column[i] = p.column;
  }
  backend_.dequant_group(ext, group);
  return ext;
}

void DeviceWeights::release(const LinearGroup& g, const Tensor& ext) {
  if (!g.resident) arena_.give(ext);
}

namespace {

// With dropout the pooled branch runs apart: it must not see A's mask, and gives dbeta1 itself; on a pooled input it does so
// too, since dA is not fine enough for it. Else both gradients follow from dA and dB (fidelity 4.4).
bool beta1_from_da(const LinearGroup& g, const AdapterPart& p) {
  return p.param_beta1 >= 0 && g.dropout == 0 && !g.grouped();
}
bool beta2_from_db(const AdapterPart& p) { return p.param_beta2 >= 0; }

}  // namespace

void add_adapters(IecTableBuilder& table, const ParamStore& params, const LinearGroup& g) {
  const auto gradient = [&](bool wanted, int index) {
    return wanted && params.grads() ? params.grad_value(index) : Tensor{};
  };
  const IecPooling pooling{g.pool, g.aligned};
  for (const AdapterPart& p : g.adapters) {
    const bool beta1 = beta1_from_da(g, p), beta2 = beta2_from_db(p);
    const Tensor folded = g.a_folded.slice_rows(p.column, p.rank);
    if (g.dropout == 0) {
      table.add(folded, p.a, p.beta1, 1, gradient(beta1, p.param_a), gradient(beta1, p.param_beta1), g.tile, pooling);
    } else {
      table.add(g.a_plain.slice_rows(p.column, p.rank), p.a, {}, 1, {}, {}, g.tile);
      if (p.beta1)
        table.add(folded, {}, p.beta1, 1, {}, {}, g.tile, pooling);  // without a beta the rows stay as zero as they are
    }
    table.add(p.b_folded, p.b, p.beta2, g.scale, gradient(beta2, p.param_b), gradient(beta2, p.param_beta2), g.tile);
  }
}

void fold_adapters(Backend& backend, const IecTable& table) {
  if (table.fold_chunks > 0) backend.iec_fold_all(table);
}

void finish_betas(Backend& backend, const IecTable& table) {
  if (table.dbeta_chunks > 0) backend.iec_dbeta_all(table);
}

void claim_betas(ParamStore& params, const LinearGroup& g) {
  for (const AdapterPart& p : g.adapters) {
    if (beta1_from_da(g, p)) params.claim(p.param_beta1);
    if (beta2_from_db(p)) params.claim(p.param_beta2);
  }
}

}  // namespace irq
