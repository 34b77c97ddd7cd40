// CheckedBackend: the ops of the model's forward and backward. Each checks its arguments against ops.inc, then calls.
#include "kernels/checked.h"

namespace irq {

#define CHECKS const OpChecks check(__func__, device_, precision_)
#define FORWARD(...) Scope::run(*this, __func__, [&](Backend& inner) { inner.__VA_ARGS__; })

// ---- memory -------------------------------------------------------------------------------------------------------
void CheckedBackend::copy(Tensor dst, Tensor src) {
  CHECKS;
  check.any("dst", dst, Type::floating);
  check.shape("src", src, dst.rows, dst.cols, Type::floating);
  FORWARD(copy(dst, src));
}

void CheckedBackend::fill(Tensor x, double value) {
  CHECKS;
  check.any("x", x, Type::either);
  FORWARD(fill(x, value));
}

void CheckedBackend::axpby(Tensor y, Tensor x, double alpha, double beta) {
  CHECKS;
  check.any("y", y, Type::either);
  check.shape("x", x, y.rows, y.cols, Type::either);
  FORWARD(axpby(y, x, alpha, beta));
}

void CheckedBackend::gather_rows(Tensor y, Tensor x, Tensor index, double beta) {
  CHECKS;
  check.any("y", y, Type::storage);
  check.shape("x", x, x.rows, y.cols, Type::storage);
  check.vector("index", index, y.rows, Type::i32);
  FORWARD(gather_rows(y, x, index, beta));
}

void CheckedBackend::scatter_rows(Tensor y, Tensor x, Tensor index) {
  CHECKS;
  check.any("y", y, Type::storage);
  check.shape("x", x, x.rows, y.cols, Type::storage);
  check.vector("index", index, x.rows, Type::i32);
  FORWARD(scatter_rows(y, x, index));
}

void CheckedBackend::reduce_sum(Tensor total, Tensor x, double beta) {
  CHECKS;
  check.vector("total", total, 1, Type::master);
  check.vector("x", x, x.cols, Type::master);
  FORWARD(reduce_sum(total, x, beta));
}

// ---- embedding ----------------------------------------------------------------------------------------------------
void CheckedBackend::embedding_fwd(Tensor y, Tensor table, Tensor tokens) {
  CHECKS;
  check.any("y", y, Type::storage);
  check.shape("table", table, table.rows, y.cols, Type::storage);
  check.vector("tokens", tokens, y.rows, Type::i32);
  FORWARD(embedding_fwd(y, table, tokens));
}

void CheckedBackend::embedding_bwd(Tensor dtable, Tensor dy, Tensor tokens, double beta) {
  CHECKS;
  check.any("dtable", dtable, Type::master);
  check.shape("dy", dy, dy.rows, dtable.cols, Type::storage);
  check.vector("tokens", tokens, dy.rows, Type::i32);
  FORWARD(embedding_bwd(dtable, dy, tokens, beta));
}

// ---- rmsnorm ------------------------------------------------------------------------------------------------------
void CheckedBackend::rmsnorm_fwd(Tensor y, Tensor rstd, Tensor x, Tensor w, double eps) {
  CHECKS;
  check.any("x", x, Type::storage);
  check.shape("y", y, x.rows, x.cols, Type::storage);
  check.vector("rstd", rstd, x.rows, Type::master);
  check.vector("w", w, x.cols, Type::master);
  FORWARD(rmsnorm_fwd(y, rstd, x, w, eps));
}

void CheckedBackend::rmsnorm_bwd(Tensor dx, Tensor dy, Tensor x, Tensor w, Tensor rstd, double beta) {
  CHECKS;
  check.any("x", x, Type::storage);
  check.shape("dx", dx, x.rows, x.cols, Type::storage);
  check.shape("dy", dy, x.rows, x.cols, Type::storage);
  check.vector("w", w, x.cols, Type::master);
  check.vector("rstd", rstd, x.rows, Type::master);
  FORWARD(rmsnorm_bwd(dx, dy, x, w, rstd, beta));
}

void CheckedBackend::rmsnorm_bwd_weight(Tensor dw, Tensor dy, Tensor x, Tensor rstd, double beta) {
  CHECKS;
  check.any("x", x, Type::storage);
  check.vector("dw", dw, x.cols, Type::master);
  check.shape("dy", dy, x.rows, x.cols, Type::storage);
  check.vector("rstd", rstd, x.rows, Type::master);
  FORWARD(rmsnorm_bwd_weight(dw, dy, x, rstd, beta));
}

// ---- rope and attention -------------------------------------------------------------------------------------------
void CheckedBackend::rope(Tensor x, Tensor cos_table, Tensor sin_table, Tensor positions, int head_dim, bool inverse) {
  CHECKS;
  check.any("x", x, Type::storage);
  check.heads("x", x, head_dim);
  check.rope({cos_table, sin_table, positions}, x.rows, head_dim);
  FORWARD(rope(x, cos_table, sin_table, positions, head_dim, inverse));
}

void OpChecks::rope(const Rope& r, int64_t rows, int head_dim) const {
  IRQ_CHECK(head_dim % 2 == 0, "%s: head_dim %d is odd", op_, head_dim);
  shape("cos_table", r.cos_table, r.cos_table.rows, head_dim / 2, Type::master);
  shape("sin_table", r.sin_table, r.cos_table.rows, head_dim / 2, Type::master);
  vector("positions", r.positions, rows, Type::i32);
}

void OpChecks::attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o, const Tensor& lse,
                         const Tensor& seqs, int head_dim) const {
  any("q", q, Type::storage);
  heads("q", q, head_dim);
  any("k", k, Type::storage);
  heads("k", k, head_dim);
  const int64_t query_heads = q.cols / head_dim, kv_heads = k.cols / head_dim;
  IRQ_CHECK(kv_heads > 0 && query_heads % kv_heads == 0, "%s: %ld query heads do not share %ld key/value heads evenly",
            op_, query_heads, kv_heads);
  shape("v", v, k.rows, k.cols, Type::storage);
  shape("o", o, q.rows, q.cols, Type::storage);
  shape("lse", lse, query_heads, q.rows, Type::master);
  shape("seqs", seqs, seqs.rows, 6, Type::i32);
}

void CheckedBackend::attention_fwd(Tensor o, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor seqs, int head_dim) {
  CHECKS;
  check.attention(q, k, v, o, lse, seqs, head_dim);
  FORWARD(attention_fwd(o, lse, q, k, v, seqs, head_dim));
}

void CheckedBackend::attention_bwd(Tensor dq, Tensor dk, Tensor dv, Tensor delta, Tensor dout, Tensor q, Tensor k,
                                   Tensor v, Tensor o, Tensor lse, Tensor seqs, int head_dim, Rope rope) {
  CHECKS;
  check.attention(q, k, v, o, lse, seqs, head_dim);
  if (rope.cos_table) check.rope(rope, q.rows, head_dim);
  if (rope.cos_table) IRQ_CHECK(k.rows == q.rows, "attention_bwd: rope of %ld rows of q, %ld of k", q.rows, k.rows);
  check.shape("dq", dq, q.rows, q.cols, Type::storage);
  check.shape("dk", dk, k.rows, k.cols, Type::storage);
  check.shape("dv", dv, k.rows, k.cols, Type::storage);
  check.shape("delta", delta, lse.rows, q.rows, Type::master);
  check.shape("dout", dout, q.rows, q.cols, Type::storage);
  FORWARD(attention_bwd(dq, dk, dv, delta, dout, q, k, v, o, lse, seqs, head_dim, rope));
}

// ---- swiglu -------------------------------------------------------------------------------------------------------
void CheckedBackend::swiglu_fwd(Tensor h, Tensor gate_up) {
  CHECKS;
  check.any("h", h, Type::storage);
  check.shape("gate_up", gate_up, h.rows, 2 * h.cols, Type::storage);
  FORWARD(swiglu_fwd(h, gate_up));
}

void CheckedBackend::swiglu_bwd(Tensor dgate_up, Tensor h, Tensor dh, Tensor gate_up) {
  CHECKS;
  check.any("dh", dh, Type::storage);
  check.shape("dgate_up", dgate_up, dh.rows, 2 * dh.cols, Type::storage);
  check.shape("gate_up", gate_up, dh.rows, 2 * dh.cols, Type::storage);
  if (h) check.shape("h", h, dh.rows, dh.cols, Type::storage);
  FORWARD(swiglu_bwd(dgate_up, h, dh, gate_up));
}

// ---- matmul -------------------------------------------------------------------------------------------------------
void CheckedBackend::matmul(Tensor y, Tensor a, bool transpose_a, Tensor b, bool transpose_b, double alpha, double beta,
                            Tensor c) {
  CHECKS;
  const int64_t m = transpose_a ? a.cols : a.rows, k = transpose_a ? a.rows : a.cols;  // op(a) (m, k), op(b) (k, n)
  const int64_t n = transpose_b ? b.rows : b.cols;
  check.any("a", a, Type::either);
  check.shape("b", b, transpose_b ? n : k, transpose_b ? k : n, Type::either);
  check.shape("y", y, m, n, Type::either);
  IRQ_CHECK(a.dtype == b.dtype, "matmul: a ('%s') is %s, b ('%s') is %s", a.name, name_of(a.dtype), b.name,
            name_of(b.dtype));
  if (beta != 0) {
    check.shape("c", c, m, n, Type::either);
    IRQ_CHECK(c.dtype == y.dtype, "matmul: c ('%s') is %s, y ('%s') is %s", c.name, name_of(c.dtype), y.name,
              name_of(y.dtype));
  }
  FORWARD(matmul(y, a, transpose_a, b, transpose_b, alpha, beta, c));
}

void CheckedBackend::matmul_blocks(Tensor y, Tensor a, Tensor b, int parts, double alpha, double beta) {
  CHECKS;
  IRQ_CHECK(parts > 0, "matmul_blocks: %d parts", parts);
  check.any("a", a, Type::storage);
  check.shape("y", y, a.cols, b.cols / parts, Type::either);
  check.shape("b", b, a.rows, y.cols * parts, Type::storage);
  IRQ_CHECK(a.cols % parts == 0, "matmul_blocks: %ld columns in %d parts", a.cols, parts);
  FORWARD(matmul_blocks(y, a, b, parts, alpha, beta));
}

void CheckedBackend::dropout(Tensor y, Tensor x, Tensor positions, Tensor samples, Tensor params, int adapter, double p,
                             double beta) {
  CHECKS;
  check.any("y", y, Type::storage);
  check.shape("x", x, y.rows, y.cols, Type::storage);
  check.vector("positions", positions, y.rows, Type::i32);
  check.vector("samples", samples, y.rows, Type::i32);
  check.params(params);
  IRQ_CHECK(p >= 0 && p < 1, "dropout: probability %g, expected [0, 1)", p);
  FORWARD(dropout(y, x, positions, samples, params, adapter, p, beta));
}

void CheckedBackend::argmax(Tensor index, Tensor logits) {
  CHECKS;
  check.any("logits", logits, Type::master);
  check.vector("index", index, logits.rows, Type::i32);
  IRQ_CHECK(logits.cols > 0, "%s", "argmax of nothing");
  FORWARD(argmax(index, logits));
}

}  // namespace irq
