#include "src/ops/ops.h"

namespace irq::ops {
namespace {

constexpr bool kPlain = false, kTransposed = true;

// u = x A'^T into u (N, R). With dropout each adapter sees its own mask of x, and the IEC branch sees x itself:
// u = A drop(x) + beta1 P x (fidelity 4.1).
void rank_forward(Tape& t, const Tensor& u, const Tensor& x, const LinearGroup& g, const DeviceBatch& batch) {
  Backend& b = t.backend();
  if (g.dropout == 0 || !t.training()) {
    b.matmul(u, x, kPlain, g.a_folded, kTransposed, 1, 0, {});
  } else {
    const Scratch dropped(t.arena(), "dropped-out input", t.storage(), x.rows, x.cols);
    for (const AdapterPart& p : g.adapters) {
      b.dropout(dropped, x, batch.positions, batch.samples, batch.params, p.id, g.dropout, 0);
      b.matmul(u.slice_cols(p.column, p.rank), dropped, kPlain, g.a_folded.slice_rows(p.column, p.rank), kTransposed, 1, 0, {});
    }
  }
  if (g.dropout == 0) return;  // a_folded holds beta1 P already
  for (const AdapterPart& p : g.adapters)
    if (p.beta1) b.iec_pool_fwd(u.slice_cols(p.column, p.rank), x, p.beta1, g.tile);
}

// y = [x | u] [W | sB']^T (+ residual)
void forward(Tape& t, const Tensor& y, const Tensor& x, const Tensor& u, const LinearGroup& g, WeightProvider& weights,
             const Tensor& residual) {
  Backend& b = t.backend();
  const Tensor ext = weights.acquire(g);
  const double beta = residual ? 1 : 0;
  if (g.rank > 0) b.copy(x.slice_cols(g.in, g.rank), u);  // the spare columns behind x
  b.matmul(y, x.extend_cols(g.rank), kPlain, ext.slice_rows(0, g.out), kTransposed, 1, beta, residual);
  weights.release(g, ext);
}

// The gradients of a group's A as one matrix (R, in) where they follow each other in memory, as the ParamStore lays them
// out when r * in is a multiple of its alignment: then dA of q, k and v is one product. Else nothing.
GradSlot stacked_grad_a(Tape& t, const LinearGroup& g) {
  Tensor all = t.params().grad_value(g.adapters[0].param_a);
  for (size_t i = 1; i < g.adapters.size(); ++i) {
    const Tensor next = t.params().grad_value(g.adapters[i].param_a);
    if (static_cast<const char*>(all.data) + all.bytes() != next.data) return {};
    all.rows += next.rows;
  }
  double beta = 0;
  for (const AdapterPart& p : g.adapters) beta = t.param_grad(p.param_a).beta;  // they are touched together, always
  return {all, beta};
}

// Gradients of A, B and the betas; leaves du in the spare columns behind dy.
void adapter_backward(Tape& t, const Tensor& dy, const Tensor& x, const Tensor& u, const Tensor& ext, const LinearGroup& g,
                      const DeviceBatch& batch) {
  Backend& b = t.backend();
  const Tensor du = dy.slice_cols(g.out, g.rank);
  b.matmul(du, dy, kPlain, ext.slice_rows(0, g.out).slice_cols(g.in, g.rank), kPlain, 1, 0, {});  // du = dy sB'
  for (const AdapterPart& p : g.adapters) {
    const GradSlot db = t.param_grad(p.param_b);  // dB = s dy^T u
    b.matmul(db.tensor, dy.slice_cols(p.row, p.out), kTransposed, u.slice_cols(p.column, p.rank), kPlain, g.scale, db.beta, db.tensor);
  }
  const auto grad_a = [&](const GradSlot& da, const Tensor& du_part, const Tensor& input) {  // dA = du^T x
    b.matmul(da.tensor, du_part, kTransposed, input, kPlain, 1, da.beta, da.tensor);
  };
  const Tensor input = x.slice_cols(0, g.in);
  if (g.dropout == 0) {
    const GradSlot all = stacked_grad_a(t, g);
    if (all.tensor) return grad_a(all, du, input);
    for (const AdapterPart& p : g.adapters) grad_a(t.param_grad(p.param_a), du.slice_cols(p.column, p.rank), input);
    return;
  }
  const Scratch dropped(t.arena(), "dropped-out input", t.storage(), x.rows, g.in);
  for (const AdapterPart& p : g.adapters) {
    b.dropout(dropped, input, batch.positions, batch.samples, batch.params, p.id, g.dropout, 0);
    grad_a(t.param_grad(p.param_a), du.slice_cols(p.column, p.rank), dropped);
  }
}

// dx = [dy | du] [W ; A']; with dropout the A part goes back through its mask, the IEC part through P.
void input_backward(Tape& t, const GradSlot& dx, const Tensor& dy, const Tensor& x, const Tensor& ext, const LinearGroup& g,
                    const DeviceBatch& batch) {
  Backend& b = t.backend();
  const int64_t folded = g.dropout == 0 ? g.rank : 0;
  b.matmul(dx.tensor, dy.extend_cols(folded), kPlain, ext.slice_rows(0, g.out + folded).slice_cols(0, g.in), kPlain, 1,
           dx.beta, dx.tensor);
  if (folded == g.rank) return;
  const Scratch through_a(t.arena(), "dropped-out gradient", t.storage(), x.rows, g.in);
  for (const AdapterPart& p : g.adapters) {
    const Tensor du = dy.slice_cols(g.out + p.column, p.rank);
    b.matmul(through_a, du, kPlain, g.a_folded.slice_rows(p.column, p.rank), kPlain, 1, 0, {});
    b.dropout(dx.tensor, through_a, batch.positions, batch.samples, batch.params, p.id, g.dropout, 1);
  }
}

// The pooled branch kept apart by dropout: dbeta1 += du . (P x), dx += beta1 P^T du.
void pooled_backward(Tape& t, Tensor dx, const Tensor& dy, const Tensor& x, const LinearGroup& g) {
  Backend& b = t.backend();
  for (const AdapterPart& p : g.adapters) {
    if (!p.beta1) continue;
    const Scratch partial(t.arena(), "dbeta1 of each row", t.master(), 1, x.rows);
    b.iec_pool_bwd(dx, partial, dy.slice_cols(g.out + p.column, p.rank), x.slice_cols(0, g.in), p.beta1, g.tile, 1);
    const GradSlot d = t.param_grad(p.param_beta1);
    b.reduce_sum(d.tensor, partial, d.beta);
  }
}

}  // namespace

Var adapted_linear(Tape& t, Var x, const LinearGroup& g, WeightProvider& weights, const DeviceBatch& batch,
                   const LinearOptions& options) {
  const Tensor in = t.value(x);
  const Tensor u = g.rank > 0 ? t.keep("rank-r activations", t.storage(), in.rows, g.rank) : Tensor{};
  const int64_t spare = std::max(options.spare_cols, g.rank);
  const Var y = options.transient ? t.transient(options.name, in.rows, g.out, spare) : t.saved(options.name, in.rows, g.out, spare);
  if (g.rank > 0) rank_forward(t, u, in, g, batch);
  const Tensor residual = options.residual ? t.value(options.residual) : Tensor{};
  forward(t, t.value(y), in, u, g, weights, residual);

  const bool trains = g.param_weight >= 0 || !g.adapters.empty();
  const bool needs = trains || t.needs_grad(x) || (options.residual && t.needs_grad(options.residual));
  const Var res = options.residual;
  t.record(
      options.name, {y}, needs,
      [&t, x, y, u, res, &g, &weights, batch] {
        const Tensor dy = t.out_grad(y), xv = t.value(x);
        if (g.param_weight >= 0) {
          const GradSlot dw = t.param_grad(g.param_weight);
          t.backend().matmul(dw.tensor, dy, kTransposed, xv, kPlain, 1, dw.beta, dw.tensor);
        }
        const Tensor ext = weights.acquire(g);
        if (g.rank > 0) adapter_backward(t, dy, xv, u, ext, g, batch);
        if (t.needs_grad(x)) {
          const GradSlot dx = t.grad(x);
          input_backward(t, dx, dy, xv, ext, g, batch);
          if (g.dropout > 0) pooled_backward(t, dx.tensor, dy, xv, g);
        } else if (g.dropout > 0) {
          const Scratch unused(t.arena(), "gradient nobody needs", t.storage(), xv.rows, g.in);
          t.backend().fill(unused, 0);
          pooled_backward(t, unused, dy, xv, g);
        }
        weights.release(g, ext);
        if (res && t.needs_grad(res)) t.hand_over(y, res);
      },
      [&t, x, u, &g, &weights, res](Tensor out) { forward(t, out, t.value(x), u, g, weights, res ? t.value(res) : Tensor{}); });
  return y;
}

}  // namespace irq::ops
