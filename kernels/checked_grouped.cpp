// CheckedBackend: the ops of QA-LoRA and PEQA.
#include "kernels/checked.h"

namespace irq {

#define CHECKS const OpChecks check(__func__, device_, precision_)
#define FORWARD(...) Scope::run(*this, __func__, [&](Backend& inner) { inner.__VA_ARGS__; })

void CheckedBackend::group_pool(Tensor y, Tensor x, GroupPool pool) {
  CHECKS;
  IRQ_CHECK(pool.cols > 0 && pool.group > 0 && pool.repeat > 0, "group_pool: groups of %ld of %ld columns, %ld times",
            pool.group, pool.cols, pool.repeat);
  check.shape("x", x, x.rows, pool.cols, Type::storage);
  check.shape("y", y, x.rows, pool.outputs(), Type::storage);
  FORWARD(group_pool(y, x, pool));
}

void CheckedBackend::group_spread(Tensor dx, Tensor dy, GroupPool pool, double beta) {
  CHECKS;
  IRQ_CHECK(pool.cols > 0 && pool.group > 0 && pool.repeat == 1,
            "group_spread: groups of %ld of %ld columns, %ld times", pool.group, pool.cols, pool.repeat);
  check.shape("dx", dx, dy.rows, pool.cols, Type::storage);
  check.shape("dy", dy, dy.rows, pool.groups(), Type::storage);
  FORWARD(group_spread(dx, dy, pool, beta));
}

void CheckedBackend::int_scale_grad(Tensor ds, Tensor dw, QuantizedMatrix q, double beta) {
  CHECKS;
  IRQ_CHECK(q.is_integer() && q.format.scale == ScaleKind::f32, "int_scale_grad reads integer codes");
  check.quantized(q);
  check.shape("dw", dw, q.rows, q.cols, Type::master);
  check.vector("ds", ds, q.blocks(), Type::master);
  FORWARD(int_scale_grad(ds, dw, q, beta));
}

}  // namespace irq
