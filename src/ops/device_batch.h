// DeviceBatch: a Batch where the ops can read it.
#pragma once
#include "kernels/backend.h"
#include "src/core/arena.h"
#include "src/ops/batch.h"

namespace irq {

// Fields as in Batch; N rows and L label rows, dead ones included.
struct DeviceBatch {
  Tensor tokens, positions, samples, row_label;  // (1, N) i32
  Tensor label_rows, targets;                    // (1, L) i32
  Tensor label_positions, label_samples;         // (1, L) i32: those of the label rows
  Tensor seqs;                                   // (n_seqs, 6) i32
  int64_t rows = 0, labels = 0;
  Tensor params;  // StepParams

  // The label rows alone, for ops that work row by row.
  DeviceBatch scored() const {
    DeviceBatch d = *this;
    d.positions = label_positions, d.samples = label_samples, d.rows = labels;
    return d;
  }
};

// Pushed on the arena's stack: whoever uploads pops.
DeviceBatch upload_batch(Backend& backend, Arena& arena, const Batch& batch, const Tensor& params);

}  // namespace irq
