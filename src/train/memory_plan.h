// How much memory a run takes, found by running its real code on a planning arena, and what to give up when it is too much.
#pragma once
#include "src/train/trainer.h"

namespace irq {

// The size of one micro-batch (dead rows included).
struct StepShape {
  int64_t rows = 0, labels = 0, sequences = 1;
  auto operator<=>(const StepShape&) const = default;
};
StepShape shape_of(const Batch& batch);
// A batch with the right sizes and nothing in it, for dry runs alone: of its arrays only those that carry the sizes are
// there (tokens, label_rows, seqs). A batch of a million examples is planned before it is found too large.
Batch hollow_batch(const StepShape& shape);

struct MemoryPlan {
  ModelPlan model;
  int64_t max_labels = 0;
  int64_t peak_bytes = 0;
  std::vector<std::pair<std::string, int64_t>> ledger;  // what is alive at the peak, largest first
};

// Dry-runs training steps and evaluations of the given shapes.
MemoryPlan plan_memory(Device device, Precision precision, const ModelPlan& model, const std::vector<StepShape>& train,
                       const std::vector<StepShape>& evaluate);

// What the user left to the planner.
struct PlanFreedom {
  bool residency = true, recompute = true;
};
// The first plan that fits of these, the fastest first: cached weights; norms computed again; weights packed in as few layers as will do,
// with either; packed weights and gate_up; block. Each level is paid by as few layers as will do. Throws an Error that says what would fit when
// nothing does. Planning stops at an interrupt with Exit::interrupted.
MemoryPlan choose_plan(Device device, Precision precision, ModelPlan model, const std::vector<StepShape>& train,
                       const std::vector<StepShape>& evaluate, int64_t budget_bytes, PlanFreedom freedom);

std::string memory_text(int64_t bytes);  // in the units of --memory-limit: "1.50 GiB", "12.3 MiB", "793.2 KiB"
std::string weights_text(const ModelPlan& model);    // "cached weights", "weights cached in 12 of 60 layers", ...
std::string recompute_text(const ModelPlan& model);  // "none", "norms in 3 of 32 layers", ...
// The plan as a table for people.
std::string describe(const MemoryPlan& plan);

}  // namespace irq
