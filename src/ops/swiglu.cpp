#include "src/ops/ops.h"

namespace irq::ops {

Var swiglu(Tape& t, Var gate_up, int64_t spare_cols) {
  const Tensor in = t.value(gate_up);
  const Var h = t.transient("swiglu output", in.rows, in.cols / 2, spare_cols);
  t.backend().swiglu_fwd(t.value(h), in);
  t.record(
      "swiglu", {h}, t.needs_grad(gate_up),
      [&t, gate_up, h] {
        const Tensor x = t.value(gate_up);
        const GradSlot d = t.grad_over_value(gate_up);
        t.backend().swiglu_bwd(d.tensor, t.out_grad(h), x);
      },
      [&t, gate_up](Tensor out) { t.backend().swiglu_fwd(out, t.value(gate_up)); });
  return h;
}

}  // namespace irq::ops
