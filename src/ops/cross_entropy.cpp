#include <algorithm>

#include "src/ops/ops.h"

namespace irq::ops {
namespace {
// Rows of logits that exist at a time: 1024 x 32000 bf16 = 64 MB. One piece of scratch serves all chunks: a shorter one of its
// own for the last would make a batch of fewer rows need more memory than one of more, and plans are made for the most rows.
constexpr int64_t kChunkRows = 1024;
}  // namespace

void cross_entropy_head(Tape& t, Var x, const Weight& head, int64_t vocab, const DeviceBatch& batch, Tensor nll) {
  Backend& b = t.backend();
  const Tensor in = t.value(x);
  const int64_t rows = in.rows;
  const bool grads = t.recording();
  // The gradient is known as soon as the logits are, so it is taken here and the logits are gone.
  const Tensor dx = grads ? t.keep("gradient of the head's input", t.storage(), rows, in.cols) : Tensor{};
  const Scratch scratch(t.arena(), "logits chunk", t.storage(), std::min(kChunkRows, rows), head.value.rows);
  for (int64_t begin = 0; begin < rows; begin += kChunkRows) {
    const int64_t count = std::min(kChunkRows, rows - begin);
    const Tensor chunk = scratch->slice_rows(0, count);
    const Tensor x_chunk = in.slice_rows(begin, count);
    b.matmul(chunk, x_chunk, false, head.value, true, 1, 0, {});
    b.cross_entropy(nll.slice_cols(begin, count), chunk, batch.targets.slice_cols(begin, count), batch.params, vocab,
                    grads);
    if (!grads) continue;
    b.matmul(dx.slice_rows(begin, count), chunk, false, head.value, false, 1, 0, {});
    if (head.param >= 0) {
      const GradSlot d = t.param_grad(head.param);
      b.matmul(d.tensor, chunk, true, x_chunk, false, 1, d.beta, d.tensor);
    }
  }
  t.record("cross_entropy", {}, true, [&t, x, dx] {
    const GradSlot d = t.grad(x);
    t.backend().axpby(d.tensor, dx, 1, d.beta);
  });
}

void row_losses(Tape& t, Var x, const Tensor& head, const DeviceBatch& batch, Tensor nll) {
  IRQ_CHECK(!t.recording(), "%s", "row_losses has no gradient");
  const Tensor in = t.value(x);
  const Scratch scratch(t.arena(), "logits chunk", t.master(), std::min(kChunkRows, in.rows), head.rows);
  for (int64_t begin = 0; begin < in.rows; begin += kChunkRows) {
    const int64_t count = std::min(kChunkRows, in.rows - begin);
    const Tensor chunk = scratch->slice_rows(0, count);
    t.backend().matmul(chunk, in.slice_rows(begin, count), false, head, true, 1, 0, {});
    t.backend().cross_entropy(nll.slice_cols(begin, count), chunk, batch.targets.slice_cols(begin, count), batch.params,
                              head.rows, false);
  }
}

void logits(Tape& t, Var x, const Tensor& head, Tensor out) {
  t.backend().matmul(out, t.value(x), false, head, true, 1, 0, {});
}

}  // namespace irq::ops
