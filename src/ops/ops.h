// The language the model is written in: differentiable ops on tape values. Each .cpp here holds one op's forward line and
// its backward closure together. N rows of a packed batch, C model width.
#pragma once
#include "src/autograd/tape.h"
#include "src/ops/device_batch.h"
#include "src/ops/linear_group.h"

namespace irq {

// A plain weight: its value and, when it is trained, its index in the ParamStore.
struct Weight {
  Tensor value;
  int param = -1;
};

namespace ops {

// table (V, C) S -> (N, C)
Var embedding(Tape& t, const Weight& table, const DeviceBatch& batch, int64_t spare_cols);
// x (N, C), w (1, C) M -> (N, C). save: kept until its backward; else rebuilt from x where backward asks for it
Var rmsnorm(Tape& t, Var x, const Weight& w, double eps, int64_t spare_cols, bool save = false);
// In place on the first `width` columns, the q and k heads of x; no gradient.
void rope(Tape& t, Var x, int64_t width, int head_dim, const Rope& rope);
// qkv (N, (H + 2G) D) -> (N, H D), with rope on q and k, in place.
Var attention(Tape& t, Var qkv, int64_t heads, int64_t kv_heads, int head_dim, const Rope& rope,
              const DeviceBatch& batch, int64_t spare_cols);
// Attention of q (N, H D) over keys and values held elsewhere (a cache); no gradient.
Var cached_attention(Tape& t, Var qkv, int64_t heads, int head_dim, const Tensor& keys, const Tensor& values,
                     const DeviceBatch& batch, int64_t spare_cols);
// gate_up (N, 2F) -> silu(g) * u (N, F); the gradient overwrites gate_up. save: as in rmsnorm
Var swiglu(Tape& t, Var gate_up, int64_t spare_cols, bool save = false);
// keys[index[i]] = the key columns of row i of qkv (N, (H + 2G) D), values alike; no gradient.
void write_cache(Tape& t, Var qkv, const Tensor& keys, const Tensor& values, const Tensor& index);
// The rows that are scored: (N, C) -> (L, C)
Var gather_labels(Tape& t, Var x, const DeviceBatch& batch, int64_t spare_cols);

struct LinearOptions {
  Var residual = {};        // y += residual
  bool ends_block = false;  // y is the block's result: a replay needs its gradient, not its value
  bool transient = false;   // do not save y: backward recomputes it (recompute level gate_up)
  int64_t spare_cols = 0;   // at least the group's own R, more if y feeds a wider one
  const char* name = "linear";
};
// y = x W^T (+ scale (x A~^T) B~^T) (+ residual): (N, in) -> (N, out). x needs R spare columns.
Var adapted_linear(Tape& t, Var x, const LinearGroup& g, WeightProvider& weights, const DeviceBatch& batch,
                   const LinearOptions& options);

// A packed group for few rows (decoding) reads its codes as they are: no dequantized matrix exists. Whether this group does so
// in this pass; adapted_linear() then does it by itself.
constexpr int64_t kFewRows = 16;
bool runs_packed(const Tape& t, const LinearGroup& g, int64_t rows);
// y = x W^T + scale (x A~^T) B~^T (+ residual)
void packed_linear(Tape& t, const Tensor& y, const Tensor& x, const LinearGroup& g, const Tensor& residual);
// The two groups of a layer with what surrounds them, in one op each: norm(x) -> q (N, H D), turned, with k and v written into
// rows of the cache; norm(x) -> silu(gate) * up (N, F).
struct PackedNorm {
  const Weight& weight;
  double eps;
};
struct PackedRope {
  int head_dim;
  Tensor cos_table, sin_table, positions, cache_rows, keys, values;
};
Var packed_qkv(Tape& t, Var x, const LinearGroup& g, const PackedNorm& norm, const PackedRope& rope);
Var packed_gate_up(Tape& t, Var x, const LinearGroup& g, const PackedNorm& norm);
// Whole layers of one row in one op: x (1, C) becomes what the last of them gives. All groups run packed.
struct PackedBlock {
  const LinearGroup &qkv, &o, &gate_up, &down;
  PackedNorm attn_norm, ffn_norm;
  PackedRope rope;
};
void packed_layers(Tape& t, Var x, const std::vector<PackedBlock>& layers, const DeviceBatch& batch);
// index (1, n) = the likeliest of logits (n, V) in each row.
void choose(Tape& t, const Tensor& logits, const Tensor& index);

// Mean next-token loss over the step: x (L, C) against targets, with head (V', C), in chunks of rows so that no (L, V')
// matrix exists. The softmax is over the first `vocab` of the V' logits, the others are masked. Writes each row's loss
// into nll (1, L) M. A root of the tape: backward starts here.
void cross_entropy_head(Tape& t, Var x, const Weight& head, int64_t vocab, const DeviceBatch& batch, Tensor nll);
// Each row's loss without gradients, from logits in master precision (in bf16 they would be rounded to 2^-9 of their size):
// x (L, C), head (V, C), nll (1, L) M. In chunks, as above.
void row_losses(Tape& t, Var x, const Tensor& head, const DeviceBatch& batch, Tensor nll);
// Rows of logits (n, V) in master precision, for evaluation and sampling; head (V, C).
void logits(Tape& t, Var x, const Tensor& head, Tensor out);

}  // namespace ops
}  // namespace irq
