#include "src/ops/ops.h"

namespace irq::ops {
namespace {

struct Heads {
  Tensor q, k, v;
};
Heads split(const Tensor& qkv, int64_t heads, int64_t kv_heads, int64_t head_dim) {
  const int64_t q = heads * head_dim, kv = kv_heads * head_dim;
  return {qkv.slice_cols(0, q), qkv.slice_cols(q, kv), qkv.slice_cols(q + kv, kv)};
}

}  // namespace

void rope(Tape& t, Var x, int64_t width, int head_dim, const Rope& rope) {
  t.backend().rope(t.value(x).slice_cols(0, width), rope.cos_table, rope.sin_table, rope.positions, head_dim, false);
}

Var attention(Tape& t, Var qkv, int64_t heads, int64_t kv_heads, int head_dim, const Rope& turned,
              const DeviceBatch& batch, int64_t spare_cols) {
  const int64_t rows = batch.rows;
  rope(t, qkv, (heads + kv_heads) * head_dim, head_dim, turned);
  const Tensor lse = t.keep("attention lse", t.master(), heads, rows);
  const Var o = t.saved("attention output", rows, heads * head_dim, spare_cols);
  const Heads in = split(t.value(qkv), heads, kv_heads, head_dim);
  t.backend().attention_fwd(t.value(o), lse, in.q, in.k, in.v, batch.seqs, head_dim);
  t.record("attention", {o}, t.needs_grad(qkv), [=, &t, seqs = batch.seqs] {
    const Heads x = split(t.value(qkv), heads, kv_heads, head_dim);
    const GradSlot slot = t.grad(qkv);
    IRQ_CHECK(slot.beta == 0, "qkv has one consumer");
    const Heads d = split(slot.tensor, heads, kv_heads, head_dim);
    const Scratch delta(t.arena(), "attention delta", t.master(), heads, rows);
    t.backend().attention_bwd(d.q, d.k, d.v, delta, t.out_grad(o), x.q, x.k, x.v, t.value(o), lse, seqs, head_dim,
                              turned);
  });
  return o;
}

Var cached_attention(Tape& t, Var qkv, int64_t heads, int head_dim, const Tensor& keys, const Tensor& values,
                     const DeviceBatch& batch, int64_t spare_cols) {
  IRQ_CHECK(!t.recording(), "a cache has no gradient");
  const Tensor lse = t.keep("attention lse", t.master(), heads, batch.rows);
  const Var o = t.saved("attention output", batch.rows, heads * head_dim, spare_cols);
  const Tensor q = t.value(qkv).slice_cols(0, heads * head_dim);
  t.backend().attention_fwd(t.value(o), lse, q, keys, values, batch.seqs, head_dim);
  t.record("attention", {o}, false, {});
  return o;
}

void write_cache(Tape& t, Var qkv, const Tensor& keys, const Tensor& values, const Tensor& index) {
  const Tensor x = t.value(qkv);
  const int64_t q = x.cols - keys.cols - values.cols;
  t.backend().scatter_rows(keys, x.slice_cols(q, keys.cols), index);
  t.backend().scatter_rows(values, x.slice_cols(q + keys.cols, values.cols), index);
}

}  // namespace irq::ops
