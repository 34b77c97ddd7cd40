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

// Gradients of A, B and the betas; leaves du in the spare columns behind dy.
void adapter_backward(Tape& t, const Tensor& dy, const Tensor& x, const Tensor& u, const LinearGroup& g,
                      const DeviceBatch& batch) {
  Backend& b = t.backend();
  const Tensor du = dy.slice_cols(g.out, g.rank);
  for (const AdapterPart& p : g.adapters) {
    const Tensor dy_part = dy.slice_cols(p.row, p.out);
    b.matmul(du.slice_cols(p.column, p.rank), dy_part, kPlain, p.b_folded, kPlain, 1, 0, {});
    const GradSlot db = t.param_grad(p.param_b);  // dB = s dy^T u
    b.matmul(db.tensor, dy_part, kTransposed, u.slice_cols(p.column, p.rank), kPlain, g.scale, db.beta, db.tensor);
  }
  if (g.dropout == 0) {  // the A of a group are one matrix: dA = du^T x
    for (const AdapterPart& p : g.adapters) {
      const GradSlot da = t.param_grad(p.param_a);
      b.matmul(da.tensor, du.slice_cols(p.column, p.rank), kTransposed, x.slice_cols(0, g.in), kPlain, 1, da.beta, da.tensor);
    }
    return;
  }
  const Scratch dropped(t.arena(), "dropped-out input", t.storage(), x.rows, g.in);
  for (const AdapterPart& p : g.adapters) {
    b.dropout(dropped, x, batch.positions, batch.samples, batch.params, p.id, g.dropout, 0);
    const GradSlot da = t.param_grad(p.param_a);
    b.matmul(da.tensor, du.slice_cols(p.column, p.rank), kTransposed, dropped, kPlain, 1, da.beta, da.tensor);
  }
}

// dx = [dy | du] [W ; A']; with dropout the A part goes back through its mask, the IEC part through P.
void input_backward(Tape& t, const GradSlot& dx, const Tensor& dy, const Tensor& x, const LinearGroup& g,
                    WeightProvider& weights, const DeviceBatch& batch) {
  Backend& b = t.backend();
  const Tensor ext = weights.acquire(g);
  const int64_t folded = g.dropout == 0 ? g.rank : 0;
  b.matmul(dx.tensor, dy.extend_cols(folded), kPlain, ext.slice_rows(0, g.out + folded).slice_cols(0, g.in), kPlain, 1,
           dx.beta, dx.tensor);
  weights.release(g, ext);
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
        if (g.rank > 0) adapter_backward(t, dy, xv, u, g, batch);
        if (t.needs_grad(x)) {
          const GradSlot dx = t.grad(x);
          input_backward(t, dx, dy, xv, g, weights, batch);
          if (g.dropout > 0) pooled_backward(t, dx.tensor, dy, xv, g);
        } else if (g.dropout > 0) {
          const Scratch unused(t.arena(), "gradient nobody needs", t.storage(), xv.rows, g.in);
          t.backend().fill(unused, 0);
          pooled_backward(t, unused, dy, xv, g);
        }
        if (res && t.needs_grad(res)) t.hand_over(y, res);
      },
      [&t, x, u, &g, &weights, res](Tensor out) { forward(t, out, t.value(x), u, g, weights, res ? t.value(res) : Tensor{}); });
  return y;
}

}  // namespace irq::ops
