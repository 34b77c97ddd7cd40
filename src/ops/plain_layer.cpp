#include "src/ops/plain_layer.h"

namespace irq {

PlainLayer::PlainLayer(Backend& backend, const PlainShape& s, int64_t max_rows, Tensor cos_table, Tensor sin_table)
    : backend_(backend), memory_(backend), shape_(s), cos_(cos_table), sin_(sin_table) {
  const DType storage = backend.precision().storage, master = backend.precision().master;
  const int64_t q = s.heads * s.head_dim, kv = s.kv_heads * s.head_dim;
  attn_norm_ = memory_.take(master, 1, s.dim, "attn_norm"), ffn_norm_ = memory_.take(master, 1, s.dim, "ffn_norm");
  qkv_weight_ = memory_.take(storage, q + 2 * kv, s.dim, "wq|wk|wv"), o_weight_ = memory_.take(storage, s.dim, q, "wo");
  gate_up_weight_ = memory_.take(storage, 2 * s.ffn, s.dim, "w_gate|w_up");
  down_weight_ = memory_.take(storage, s.dim, s.ffn, "w_down");
  normed_ = memory_.take(storage, max_rows, s.dim, "normalized rows"),
  rstd_ = memory_.take(master, 1, max_rows, "rstd");
  qkv_ = memory_.take(storage, max_rows, q + 2 * kv, "q|k|v"),
  attended_ = memory_.take(storage, max_rows, q, "attention output");
  lse_ = memory_.take(master, s.heads, max_rows, "attention lse");
  gate_up_ = memory_.take(storage, max_rows, 2 * s.ffn, "gate|up"),
  hidden_ = memory_.take(storage, max_rows, s.ffn, "ffn rows");
}

Tensor PlainLayer::weight(int linear) const {
  const int64_t q = shape_.heads * shape_.head_dim, kv = shape_.kv_heads * shape_.head_dim, f = shape_.ffn;
  switch (linear) {
    case 0: return qkv_weight_.slice_rows(0, q);
    case 1: return qkv_weight_.slice_rows(q, kv);
    case 2: return qkv_weight_.slice_rows(q + kv, kv);
    case 3: return o_weight_;
    case 4: return gate_up_weight_.slice_rows(0, f);
    case 5: return gate_up_weight_.slice_rows(f, f);
    default: return down_weight_;
  }
}

Tensor PlainLayer::normalized(const Tensor& x, const Tensor& weight) {
  const Tensor y = normed_.slice_rows(0, x.rows);
  backend_.rmsnorm_fwd(y, rstd_.slice_cols(0, x.rows), x, weight, shape_.eps);
  return y;
}

Tensor PlainLayer::input_of_qkv(const PlainRows& rows) { return normalized(rows.x, attn_norm_); }

Tensor PlainLayer::input_of_o(const PlainRows& rows) {
  const int64_t n = rows.x.rows, q = shape_.heads * shape_.head_dim, kv = shape_.kv_heads * shape_.head_dim;
  const int head_dim = static_cast<int>(shape_.head_dim);
  const Tensor qkv = qkv_.slice_rows(0, n), o = attended_.slice_rows(0, n);
  const Tensor lse = lse_.reshape(1, lse_.numel()).slice_cols(0, shape_.heads * n).reshape(shape_.heads, n);
  backend_.matmul(qkv, input_of_qkv(rows), false, qkv_weight_, true, 1, 0, {});
  backend_.rope(qkv.slice_cols(0, q + kv), cos_, sin_, rows.positions, head_dim, false);
  backend_.attention_fwd(o, lse, qkv.slice_cols(0, q), qkv.slice_cols(q, kv), qkv.slice_cols(q + kv, kv), rows.seqs,
                         head_dim);
  return o;
}

void PlainLayer::add_attention(const PlainRows& rows) {
  backend_.matmul(rows.x, input_of_o(rows), false, o_weight_, true, 1, 1, rows.x);
}

Tensor PlainLayer::input_of_gate_up(const PlainRows& rows) { return normalized(rows.x, ffn_norm_); }

Tensor PlainLayer::input_of_down(const PlainRows& rows) {
  const Tensor gate_up = gate_up_.slice_rows(0, rows.x.rows), h = hidden_.slice_rows(0, rows.x.rows);
  backend_.matmul(gate_up, input_of_gate_up(rows), false, gate_up_weight_, true, 1, 0, {});
  backend_.swiglu_fwd(h, gate_up);
  return h;
}

void PlainLayer::add_ffn(const PlainRows& rows) {
  backend_.matmul(rows.x, input_of_down(rows), false, down_weight_, true, 1, 1, rows.x);
}

}  // namespace irq
