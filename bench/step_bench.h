// A training step of a whole model with random weights made on the spot: no checkpoint is needed, nothing is searched.
#pragma once
#include <string>

#include "src/train/memory_plan.h"

namespace irq {

struct StepBenchOptions {
  std::string model = "7b";
  ModelConfig config;
  int64_t sequences = 16, length = 512;  // tokens that are processed: 16 x 512 = 8192
  int64_t micro_batch = 0;               // sequences at a time, 0 = all
  double labelled = 1;                   // share of the tokens whose successor is scored
  std::vector<int64_t> templates;  // the sequences take turns in beginning with this many tokens that never change
  bool share_prefixes = true;      // what sequences begin alike with is computed once a micro-batch
  int bits = 4;
  int64_t rank = 64;  // 0: the frozen linears alone, forward and backward
  double dropout = 0;
  bool iec = true;
  std::string residency = "auto", recompute = "auto";
  int64_t memory_limit = 0;  // bytes of the arena, 0 = what is free
  bool graphs = true;
  bool overfit = false;  // the same tokens in every step, at kOverfitRate: the loss must fall
  int steps = 20, warmup = 3;
  bool profile = false, csv = false;
  uint64_t seed = 1;
};
void run_step_bench(CheckedBackend& backend, const StepBenchOptions& options);
// Steps without adapters, with them, and without them again: what LoRA + IEC cost on top of the frozen linears.
void run_lora_ratio(CheckedBackend& backend, const StepBenchOptions& options);

}  // namespace irq
