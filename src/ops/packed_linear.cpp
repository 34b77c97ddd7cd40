// The few-rows way of packed groups: one call of nfk_linear for a group and what stands around it, without gradients.
#include "src/ops/ops.h"

namespace irq::ops {
namespace {

// The group's weights and adapters.
PackedLinear call_of(const LinearGroup& g, const Tensor& x) {
  PackedLinear c;
  c.x = x;
  c.parts = static_cast<int>(g.parts.size());
  if (g.rank > 0) c.a = g.a_folded;
  for (size_t i = 0; i < g.parts.size(); ++i) {
    c.w[i] = g.parts[i].packed;
    for (const AdapterPart& p : g.adapters)
      if (p.row == g.parts[i].row) c.b[i] = p.b_folded, c.column[i] = p.column;
  }
  return c;
}

}  // namespace

bool runs_packed(const Tape& t, const LinearGroup& g, int64_t rows) {
  bool packed = !t.recording() && !t.training() && rows <= kFewRows && !g.resident && g.dropout == 0 &&
                g.parts.size() <= PackedLinear::kParts;
  for (const LinearPart& p : g.parts) packed = packed && p.quantized && !p.packed.is_integer();
  return packed;
}

void packed_linear(Tape& t, const Tensor& y, const Tensor& x, const LinearGroup& g, const Tensor& residual) {
  PackedLinear c = call_of(g, x);
  c.y = y, c.residual = residual;
  t.backend().nfk_linear(c);
}

namespace {

void fill_qkv(PackedLinear& c, const Tensor& q, const PackedNorm& norm, const PackedRope& rope) {
  c.y = q, c.norm = norm.weight.value, c.eps = norm.eps, c.finish = PackedLinear::Finish::rope;
  c.head_dim = rope.head_dim, c.cos_table = rope.cos_table, c.sin_table = rope.sin_table;
  c.positions = rope.positions, c.cache_rows = rope.cache_rows, c.keys = rope.keys, c.values = rope.values;
}
void fill_gate_up(PackedLinear& c, const Tensor& h, const PackedNorm& norm) {
  c.y = h, c.norm = norm.weight.value, c.eps = norm.eps, c.finish = PackedLinear::Finish::swiglu;
}

}  // namespace

Var packed_qkv(Tape& t, Var x, const LinearGroup& g, const PackedNorm& norm, const PackedRope& rope) {
  PackedLinear c = call_of(g, t.value(x));
  const Var q = t.saved("queries", c.x.rows, g.parts[0].out);
  fill_qkv(c, t.value(q), norm, rope);
  t.backend().nfk_linear(c);
  t.record("q|k|v packed", {q}, false, {});
  return q;
}

Var packed_gate_up(Tape& t, Var x, const LinearGroup& g, const PackedNorm& norm) {
  PackedLinear c = call_of(g, t.value(x));
  const Var h = t.saved("swiglu output", c.x.rows, g.parts[0].out);
  fill_gate_up(c, t.value(h), norm);
  t.backend().nfk_linear(c);
  t.record("gate|up packed", {h}, false, {});
  return h;
}

void packed_layers(Tape& t, Var x, const std::vector<PackedBlock>& layers, const DeviceBatch& batch) {
  if (layers.empty()) return;
  const PackedBlock& first = layers.front();
  const Tensor stream = t.value(x);
  const int64_t heads = first.qkv.parts[0].out / first.rope.head_dim;
  const Var q = t.saved("queries", stream.rows, first.qkv.parts[0].out);
  const Var a = t.saved("attention output", stream.rows, first.qkv.parts[0].out);
  const Var h = t.saved("swiglu output", stream.rows, first.gate_up.parts[0].out);
  const Tensor lse = t.keep("attention lse", t.master(), heads, stream.rows);
  std::vector<PackedLayer> calls;
  for (const PackedBlock& b : layers) {
    PackedLayer c{call_of(b.qkv, stream),
                  call_of(b.o, t.value(a)),
                  call_of(b.gate_up, stream),
                  call_of(b.down, t.value(h)),
                  lse,
                  batch.seqs};
    fill_qkv(c.qkv, t.value(q), b.attn_norm, b.rope);
    fill_gate_up(c.gate_up, t.value(h), b.ffn_norm);
    for (PackedLinear* linear : {&c.o, &c.down}) linear->y = linear->residual = stream;
    calls.push_back(c);
  }
  t.backend().nfk_layers(calls.data(), static_cast<int>(calls.size()));
  t.record("packed layers", {q, a, h}, false, {});
  for (const Var v : {q, a, h}) t.done(v);
}

void choose(Tape& t, const Tensor& logits, const Tensor& index) { t.backend().argmax(index, logits); }

}  // namespace irq::ops
