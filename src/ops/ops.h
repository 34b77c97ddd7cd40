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
// x (N, C), w (1, C) M -> (N, C), not saved: backward rebuilds it from x
Var rmsnorm(Tape& t, Var x, const Weight& w, double eps, int64_t spare_cols);
// Turns the heads in columns [0, width) of x in place.
void rope(Tape& t, Var x, int64_t width, int head_dim, const Tensor& cos_table, const Tensor& sin_table,
          const DeviceBatch& batch);
// qkv (N, (H + 2G) D) -> (N, H D)
Var attention(Tape& t, Var qkv, int64_t heads, int64_t kv_heads, int head_dim, const DeviceBatch& batch,
              int64_t spare_cols);
// Attention of q (N, H D) over keys and values held elsewhere (a cache); no gradient.
Var cached_attention(Tape& t, Var qkv, int64_t heads, int head_dim, const Tensor& keys, const Tensor& values,
                     const DeviceBatch& batch, int64_t spare_cols);
// gate_up (N, 2F) -> silu(g) * u (N, F), not saved; the gradient overwrites gate_up
Var swiglu(Tape& t, Var gate_up, int64_t spare_cols);
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

// Mean next-token loss over the step: x (L, C) against targets, with head (V, C), in chunks of rows so that no (L, V)
// matrix exists. Writes each row's loss into nll (1, L) M. A root of the tape: backward starts here.
void cross_entropy_head(Tape& t, Var x, const Weight& head, const DeviceBatch& batch, Tensor nll);
// Rows of logits (n, V) in master precision, for evaluation and sampling.
void logits(Tape& t, Var x, const Weight& head, Tensor out);

}  // namespace ops
}  // namespace irq
