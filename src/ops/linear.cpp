#include "src/ops/ops.h"

namespace irq::ops {
namespace {

constexpr bool kPlain = false, kTransposed = true;

// The bits of the masks of what A sees, which forward makes and backward reads twice more: nothing without dropout.
MaskBits make_masks(Tape& t, const LinearGroup& g, int64_t rows, const DeviceBatch& batch) {
  if (g.rank == 0 || g.dropout == 0 || !t.training()) return {};
  AdapterMasks m;
  IRQ_CHECK(g.adapters.size() <= m.ids.size(), "%zu adapters share an input", g.adapters.size());
  for (const AdapterPart& p : g.adapters) m.ids[static_cast<size_t>(m.count++)] = p.id;
  m.p = g.dropout, m.positions = batch.positions, m.samples = batch.samples, m.params = batch.params;
  const int64_t features = g.grouped() ? g.pool.groups() : g.in;
  const Tensor bits = t.keep("dropout masks", DType::U8, m.count * mask_blocks(features), mask_bytes(rows));
  t.backend().dropout_masks(bits, features, m);
  return {m.count, m.p, bits, m.positions};
}

// A copy that outlives the node whose memory the bits are in; to be given back.
MaskBits take_masks(Tape& t, const MaskBits& masks) {
  MaskBits copy = masks;
  copy.bits = t.arena().take("dropout masks", DType::U8, masks.bits.rows, masks.bits.cols);
  t.backend().copy_bytes(copy.bits.data, masks.bits.data, masks.bits.bytes());
  return copy;
}

// What A sees of x under QA-LoRA, (N, groups); to be given back. Rows are padded to 16 bytes.
Tensor take_pooled(Tape& t, const LinearGroup& g, int64_t rows) {
  const int64_t groups = g.pool.groups();
  return t.arena().take("pooled input", t.storage(), rows, groups, (groups + 7) / 8 * 8 - groups);
}
Tensor pooled_input(Tape& t, const Tensor& x, const LinearGroup& g) {
  const Tensor y = take_pooled(t, g, x.rows);
  t.backend().group_pool(y, x, g.pool);
  return y;
}

// The same under dropout, which masks the pooled input: u = A drop(pool(x)) + beta1 P x.
void grouped_forward(Tape& t, const Tensor& u, const Tensor& x, const LinearGroup& g, const MaskBits& masks) {
  Backend& b = t.backend();
  const Tensor in = pooled_input(t, x, g);
  if (t.training()) b.lora_dropout_fwd(u, {}, in, g.a_plain, {}, masks, g.tile);
  else b.matmul(u, in, kPlain, g.a_plain, kTransposed, 1, 0, {});
  t.arena().give(in);
  if (g.pooled()) b.matmul(u, x, kPlain, g.a_folded, kTransposed, 1, 1, u);
}

// u = x A'^T into u (N, R). With dropout each adapter sees its own mask of x, and the IEC branch sees x itself:
// u = A drop(x) + beta1 P x (fidelity 4.1); px = P x stays for backward.
void rank_forward(Tape& t, const Tensor& u, const Tensor& px, const Tensor& x, const LinearGroup& g,
                  const MaskBits& masks) {
  Backend& b = t.backend();
  if (g.dropout == 0) return b.matmul(u, x, kPlain, g.a_folded, kTransposed, 1, 0, {});
  if (g.grouped()) return grouped_forward(t, u, x, g, masks);
  if (!t.training()) {
    b.matmul(u, x, kPlain, g.a_plain, kTransposed, 1, 0, {});
    if (g.pooled()) b.matmul(u, x, kPlain, g.a_folded, kTransposed, 1, 1, u);
    return;
  }
  AdapterScalars beta1{};
  for (size_t i = 0; i < g.adapters.size(); ++i) beta1[i] = g.adapters[i].beta1;
  b.lora_dropout_fwd(u, px, x, g.a_plain, beta1, masks, g.tile);
}

// y = [x | u] [W | sB']^T (+ residual)
void forward(Tape& t, const Tensor& y, const Tensor& x, const Tensor& u, const LinearGroup& g, WeightProvider& weights,
             const Tensor& residual) {
  Backend& b = t.backend();
  const Tensor ext = weights.acquire(g);
  const double beta = residual ? 1 : 0;
  const Tensor behind = x.extend_cols(g.rank).slice_cols(g.in, g.rank);  // the spare columns behind x
  if (g.rank > 0 && behind.data != u.data) b.copy(behind, u);
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

// dA = du^T x; with dropout dA_m = s du_m^T drop_m(x). x: what A sees.
void grad_a(Tape& t, const Tensor& du, const Tensor& x, const LinearGroup& g, const MaskBits& masks) {
  Backend& b = t.backend();
  const auto add = [&](const GradSlot& da, const Tensor& part, const MaskBits& mask) {
    if (g.dropout > 0) b.lora_dropout_da(da.tensor, part, x, mask, da.beta);
    else b.matmul(da.tensor, part, kTransposed, x, kPlain, 1, da.beta, da.tensor);
  };
  if (const GradSlot all = stacked_grad_a(t, g); all.tensor) return add(all, du, masks);
  for (size_t m = 0; m < g.adapters.size(); ++m) {
    const AdapterPart& p = g.adapters[m];
    const MaskBits own = g.dropout > 0 ? masks.only(static_cast<int>(m)) : MaskBits{};
    add(t.param_grad(p.param_a), du.slice_cols(p.column, p.rank), own);
  }
}

// With dropout or a pooled input dbeta1_m = <du_m, P x>; else finish_gradients() takes dbeta1 from dA.
void grad_beta1(Tape& t, const Tensor& du, const Tensor& px, const LinearGroup& g) {
  AdapterScalars dbeta1{};
  double beta = 0;  // they are touched together, always
  for (size_t i = 0; i < g.adapters.size(); ++i) {
    if (g.adapters[i].param_beta1 < 0) continue;
    const GradSlot d = t.param_grad(g.adapters[i].param_beta1);
    dbeta1[i] = d.tensor, beta = d.beta;
  }
  t.backend().lora_dropout_dbeta1(dbeta1, du, px, static_cast<int>(g.adapters.size()), beta);
}

// The gradients of QA-LoRA's A and beta1, from x itself.
void grouped_grads(Tape& t, const Tensor& du, const Tensor& x, const LinearGroup& g, const MaskBits& masks) {
  Arena& arena = t.arena();
  const Tensor in = pooled_input(t, x, g);
  grad_a(t, du, in, g, masks);
  if (g.pooled()) {
    const int64_t rank = g.adapters[0].rank;
    const Tensor px = arena.take("pooled input", t.storage(), x.rows, rank);
    if (g.aligned && !(means_of(g.pool) == g.pool)) t.backend().group_pool(in, x, means_of(g.pool));
    t.backend().group_pool(px, g.aligned ? in : x, group_pool_of(IecMap(g.aligned ? in.cols : x.cols, rank, g.tile)));
    grad_beta1(t, du, px, g);
    arena.give(px);
  }
  arena.give(in);
}

// The gradient of a group's scales: of all of W in scratch, then summed over each group against its codes.
void grad_scales(Tape& t, const Tensor& dy, const Tensor& x, const LinearGroup& g) {
  for (const LinearPart& p : g.parts) {
    const GradSlot ds = t.param_grad(p.param_scales);
    const Tensor dw = t.arena().take("gradient of a weight", t.master(), p.out, g.in);
    t.backend().matmul(dw, dy.slice_cols(p.row, p.out), kTransposed, x, kPlain, 1, 0, {});
    t.backend().int_scale_grad(ds.tensor.flat(), dw, p.packed, ds.beta);
    t.arena().give(dw);
  }
}

// Does adapter i of the group continue the gradients of B in `all`: as large as its predecessor, right behind it in memory,
// in dy and in u?
bool follows(Tape& t, const LinearGroup& g, size_t i, const Tensor& all) {
  const AdapterPart &p = g.adapters[i], &before = g.adapters[i - 1];
  return p.out == before.out && p.row == before.row + before.out && p.column == before.column + before.rank &&
         t.params().grad_value(p.param_b).data == static_cast<const char*>(all.data) + all.bytes();
}

// Is du = dy sB' made as more columns of dx = dy W, behind dx, where they cost nothing? The part of dx that comes through du then
// follows alone and reads and writes dx once more, which is worth it where dy is more than that. dx is rounded to storage between the two.
// Many rows keep an H100 at its power limit, where a wave's free places are not free: 16 x 123 takes 1.0 ms of 96 less, 16 x 512 nothing.
bool du_behind_dx(Tape& t, const GradSlot& dx, const LinearGroup& g, int64_t rows) {
  constexpr int64_t kMostRows = 4096;
  return dx.tensor && dx.beta == 0 && rows <= kMostRows && g.rank > 0 && !g.grouped() && g.out > 2 * g.in &&
         dx.tensor.stride - dx.tensor.cols >= g.rank && t.backend().free_columns(rows, g.in) >= g.rank;
}

// The gradients that need no x: of B, with dropout of beta1.
void adapter_backward(Tape& t, const Tensor& dy, const Tensor& du, const Tensor& u, const Tensor& px,
                      const LinearGroup& g) {
  Backend& b = t.backend();
  for (size_t first = 0, last = 0; first < g.adapters.size();
       first = last) {  // dB = s dy^T u, equal neighbours together
    const AdapterPart& p = g.adapters[first];
    const GradSlot db = t.param_grad(p.param_b);
    Tensor all = db.tensor;
    for (last = first + 1; last < g.adapters.size() && follows(t, g, last, all); ++last) {
      t.param_grad(g.adapters[last].param_b);  // they are touched together, always
      all.rows += p.out;
    }
    const auto parts = static_cast<int64_t>(last - first);
    b.matmul_blocks(all, dy.slice_cols(p.row, parts * p.out), u.slice_cols(p.column, parts * p.rank),
                    static_cast<int>(parts), g.scale, db.beta);
  }
  if (px) grad_beta1(t, du, px, g);
}

// dx = dy W + du A', where [dx | du] = dy [W | sB'] is there; with dropout the A part goes back through its masks.
void input_backward_behind(Tape& t, const Tensor& dx, const Tensor& du, const Tensor& ext, const LinearGroup& g,
                           const MaskBits& masks) {
  Backend& b = t.backend();
  const bool masked = g.dropout > 0;
  if (masked) b.lora_dropout_dx(dx, du, g.a_plain, masks, 1);
  if (!masked || g.pooled())
    b.matmul(dx, du, kPlain, ext.slice_rows(g.out, g.rank).slice_cols(0, g.in), kPlain, 1, 1, dx);
}

// dx = [dy | du] [W ; A']; with dropout the A part goes back through its masks. It comes first: a pass over dx that only
// writes is half of one that reads as well, and the product can add to what is there while it is bound by arithmetic.
void input_backward(Tape& t, const GradSlot& dx, const Tensor& dy, const Tensor& ext, const LinearGroup& g,
                    const MaskBits& masks) {
  Backend& b = t.backend();
  const bool masked = g.rank > 0 && g.dropout > 0;
  if (masked && g.grouped()) {
    const Tensor pooled = take_pooled(t, g, dy.rows);
    b.lora_dropout_dx(pooled, dy.slice_cols(g.out, g.rank), g.a_plain, masks, 0);
    b.group_spread(dx.tensor, pooled, g.pool, dx.beta);
    t.arena().give(pooled);
  } else if (masked) {
    b.lora_dropout_dx(dx.tensor, dy.slice_cols(g.out, g.rank), g.a_plain, masks, dx.beta);
  }
  const int64_t folded = masked && !g.pooled() ? 0 : g.rank;
  b.matmul(dx.tensor, dy.extend_cols(folded), kPlain, ext.slice_rows(0, g.out + folded).slice_cols(0, g.in), kPlain, 1,
           masked ? 1 : dx.beta, dx.tensor);
}

// All that goes back through dy but dA, which may have to wait for x. Returns du.
Tensor backward_products(Tape& t, const GradSlot& dx, const Tensor& dy, const Tensor& u, const Tensor& px,
                         const Tensor& ext, const LinearGroup& g, const MaskBits& masks) {
  Backend& b = t.backend();
  const Tensor wide = ext.slice_rows(0, g.out);  // [W | sB']
  if (du_behind_dx(t, dx, g, dy.rows)) {
    const Tensor dx_du = dx.tensor.extend_cols(g.rank), du = dx_du.slice_cols(g.in, g.rank);
    b.matmul(dx_du, dy, kPlain, wide, kPlain, 1, 0, {});
    adapter_backward(t, dy, du, u, px, g);
    input_backward_behind(t, dx.tensor, du, ext, g, masks);
    return du;
  }
  const Tensor du = g.rank > 0 ? dy.slice_cols(g.out, g.rank) : Tensor{};
  if (g.rank > 0) b.matmul(du, dy, kPlain, wide.slice_cols(g.in, g.rank), kPlain, 1, 0, {});
  if (g.rank > 0) adapter_backward(t, dy, du, u, px, g);
  if (dx.tensor) input_backward(t, dx, dy, ext, g, masks);
  return du;
}

}  // namespace

Var adapted_linear(Tape& t, Var x, const LinearGroup& g, WeightProvider& weights, const DeviceBatch& batch,
                   const LinearOptions& options) {
  const Tensor in = t.value(x);
  if (runs_packed(t, g, in.rows)) {
    const Var y = t.saved(options.name, in.rows, g.out, std::max(options.spare_cols, g.rank));
    packed_linear(t, t.value(y), in, g, options.residual ? t.value(options.residual) : Tensor{});
    t.record(options.name, {y}, false, {});
    return y;
  }
  // u belongs behind x. Where x does not live until backward it is kept apart and copied there.
  const bool apart = t.training() && t.is_transient(x);
  const Tensor u = g.rank == 0 ? Tensor{}
                   : apart     ? t.keep("rank-r activations", t.storage(), in.rows, g.rank)
                               : in.extend_cols(g.rank).slice_cols(g.in, g.rank);
  const MaskBits masks = make_masks(t, g, in.rows, batch);
  const bool pools = masks.count > 0 && g.pooled() && !g.grouped();
  const Tensor px = pools ? t.keep("pooled input", t.storage(), in.rows, g.adapters[0].rank) : Tensor{};
  const int64_t spare = std::max(options.spare_cols, g.rank);
  const Var y = options.transient ? t.transient(options.name, in.rows, g.out, spare)
                                  : t.saved(options.name, in.rows, g.out, spare);
  if (g.rank > 0) rank_forward(t, u, px, in, g, masks);
  const Tensor residual = options.residual ? t.value(options.residual) : Tensor{};
  if (!(options.ends_block && t.replaying())) forward(t, t.value(y), in, u, g, weights, residual);

  const bool trains = g.param_weight >= 0 || !g.adapters.empty() || g.trains_scales();
  const bool needs = trains || t.needs_grad(x) || (options.residual && t.needs_grad(options.residual));
  const Var res = options.residual;
  t.record(
      options.name, {y}, needs,
      [&t, x, y, u, px, res, &g, &weights, masks] {
        const Tensor dy = t.out_grad(y);
        if (g.param_weight >= 0) {
          const GradSlot dw = t.param_grad(g.param_weight);
          t.backend().matmul(dw.tensor, dy, kTransposed, t.value(x), kPlain, 1, dw.beta, dw.tensor);
        }
        if (g.trains_scales()) grad_scales(t, dy, t.value(x).slice_cols(0, g.in), g);  // before dy is handed over
        const Tensor ext = weights.acquire(g);
        const GradSlot dx = t.needs_grad(x) ? t.grad(x) : GradSlot{};
        const Tensor du = backward_products(t, dx, dy, u, px, ext, g, masks);
        weights.release(g, ext);
        const bool stays = res && t.needs_grad(res) && t.hand_over(y, res);  // dy's memory, and du in it
        if (g.rank == 0) return;
        const auto use = [&t, &g, du](const Tensor& input, const MaskBits& m) {
          if (g.grouped()) grouped_grads(t, du, input.slice_cols(0, g.in), g, m);
          else grad_a(t, du, input.slice_cols(0, g.in), g, m);
        };
        if (!stays || !t.comes_later(x)) return use(t.value(x), masks);
        t.use_later(x, [&t, use, own = masks.count > 0 ? take_masks(t, masks) : masks](const Tensor& input) {
          use(input, own);
          if (own.count > 0) t.arena().give(own.bits);
        });
      },
      [&t, x, u, &g, &weights, res](Tensor out) {
        forward(t, out, t.value(x), u, g, weights, res ? t.value(res) : Tensor{});
      });
  return y;
}

}  // namespace irq::ops
