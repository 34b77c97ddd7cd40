#include "src/ops/ops.h"

namespace irq::ops {

Var embedding(Tape& t, const Weight& table, const DeviceBatch& batch, int64_t spare_cols) {
  const Var y = t.saved("residual stream", batch.rows, table.value.cols, spare_cols);
  t.backend().embedding_fwd(t.value(y), table.value, batch.tokens);
  t.record("embedding", {y}, table.param >= 0, [&t, y, table, tokens = batch.tokens] {
    const GradSlot d = t.param_grad(table.param);
    t.backend().embedding_bwd(d.tensor, t.out_grad(y), tokens, d.beta);
  });
  return y;
}

Var gather_labels(Tape& t, Var x, const DeviceBatch& batch, int64_t spare_cols) {
  const Var y = t.saved("label rows", batch.labels, t.value(x).cols, spare_cols);
  t.backend().gather_rows(t.value(y), t.value(x), batch.label_rows, 0);
  t.record("gather_labels", {y}, t.needs_grad(x), [&t, x, y, inverse = batch.row_label] {
    const GradSlot d = t.grad(x);
    t.backend().gather_rows(d.tensor, t.out_grad(y), inverse, d.beta);
  });
  return y;
}

}  // namespace irq::ops
