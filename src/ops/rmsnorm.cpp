#include "src/ops/ops.h"

namespace irq::ops {

Var rmsnorm(Tape& t, Var x, const Weight& w, double eps, int64_t spare_cols, bool save) {
  const Tensor in = t.value(x);
  const Tensor rstd = t.keep("rmsnorm rstd", t.master(), 1, in.rows);
  const Var y = save ? t.saved("normalized rows", in.rows, in.cols, spare_cols)
                     : t.transient("normalized rows", in.rows, in.cols, spare_cols);
  t.backend().rmsnorm_fwd(t.value(y), rstd, in, w.value, eps);
  t.record(
      "rmsnorm", {y}, t.needs_grad(x) || w.param >= 0,
      [&t, x, y, w, rstd] {
        if (w.param >= 0) {
          const GradSlot d = t.param_grad(w.param);
          t.backend().rmsnorm_bwd_weight(d.tensor, t.out_grad(y), t.value(x), rstd, d.beta);
        }
        if (!t.needs_grad(x)) return;
        const GradSlot d = t.grad(x);
        t.backend().rmsnorm_bwd(d.tensor, t.out_grad(y), t.value(x), w.value, rstd, d.beta);
      },
      [&t, x, w, rstd, eps](Tensor out) { t.backend().rmsnorm_fwd(out, rstd, t.value(x), w.value, eps); });
  return y;
}

}  // namespace irq::ops
