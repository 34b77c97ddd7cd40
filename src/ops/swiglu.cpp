#include "src/ops/ops.h"

namespace irq::ops {

Var swiglu(Tape& t, Var gate_up, int64_t spare_cols, bool save) {
  const Tensor in = t.value(gate_up);
  const Var h = save ? t.saved("swiglu output", in.rows, in.cols / 2, spare_cols)
                     : t.transient("swiglu output", in.rows, in.cols / 2, spare_cols);
  t.backend().swiglu_fwd(t.value(h), in);
  t.record(
      "swiglu", {h}, t.needs_grad(gate_up),
      [&t, gate_up, h] {
        const Tensor x = t.value(gate_up);
        const GradSlot d = t.grad_over_value(gate_up);
        const Tensor dh = t.out_grad(h);  // becomes h where a consumer still waits for that
        t.backend().swiglu_bwd(d.tensor, t.awaited(h) ? dh : Tensor{}, dh, x);
        t.deliver(h, dh);
      },
      [&t, gate_up](Tensor out) { t.backend().swiglu_fwd(out, t.value(gate_up)); });
  t.will_deliver(h);
  return h;
}

}  // namespace irq::ops
