// What a training step computes, for comparing its speed with the device's own.
#pragma once
#include "src/model/config.h"
#include "src/model/method.h"
#include "src/ops/batch.h"

namespace irq {

// Multiplications and additions of one token in a training step, counted as 2; recomputing counts nothing. Attention sees a
// causal half of `length`; `labelled` is the share of rows that reach the head. targets: the linears with an adapter of
// this rank. full: no adapters, every weight has a gradient; scales: every linear's has, on the way to
// its scales'.
double model_flops_per_token(const ModelConfig& c, int64_t rank, double length, double labelled,
                             uint32_t targets = kAllTargets, bool full = false, bool scales = false);
// Of a whole step: of the rows that are computed, where examples share some.
double model_flops(const ModelConfig& c, int64_t rank, const std::vector<Batch>& window, uint32_t targets = kAllTargets,
                   bool full = false, bool scales = false);

}  // namespace irq
