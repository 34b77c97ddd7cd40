// Trainer: one optimizer step = accumulate the gradients of a window of micro-batches, clip, AdamW, refold. The same code
// run on a planning arena gives the memory plan.
#pragma once
#include <compare>
#include <map>
#include <memory>
#include <vector>

#include "src/model/llama.h"

namespace irq {

struct StepResult {
  double loss = 0;                 // mean over the trainable tokens of the window, before the update
  double grad_norm = 0;            // before clipping
  int64_t tokens = 0, labels = 0;  // tokens: of the examples, whether or not they share rows
};

struct OptimizerConfig {
  double lr = 2e-4;
  double clip = 0.3;
  double weight_decay = 0;
  uint64_t seed = 42;  // of the dropout masks
};

class Trainer {
 public:
  // Takes everything that stays from the arena. max_labels: the most label rows (dead ones included) of a micro-batch.
  Trainer(Backend& backend, Arena& arena, const ModelPlan& plan, int64_t max_labels);

  Llama& model() { return model_; }
  // step counts from 1 (Adam's bias correction).
  StepResult step(const std::vector<Batch>& window, int64_t step, const OptimizerConfig& config);
  // Sum of the losses and number of labels of a batch; no gradients.
  std::pair<double, int64_t> evaluate(const Batch& batch);
  // The loss (natural log) of each label row, dead ones dropped; from logits in master precision.
  std::vector<double> row_losses(const Batch& batch, const KvCache* cache = nullptr);
  // Logits (n, V) row-major of the batch's label rows, dead ones dropped.
  std::vector<float> logits(const Batch& batch, const KvCache* cache = nullptr);

  // On a GPU, record the passes over a micro-batch when a shape comes for the second time, and replay them from then on: the
  // same kernels on the same memory, so the same bits, without the host's work for each. Off at first.
  void use_graphs(bool on) { use_graphs_ = on; }
  int64_t graphs() const { return static_cast<int64_t>(graphs_.size()); }

  // The next step's tape as a table (--print-tape).
  void print_next_tape() { print_tape_ = true; }
  const std::string& tape_table() const { return tape_table_; }

 private:
  // Everything that decides which kernels run on which memory.
  struct GraphKey {
    int64_t rows, labels, sequences;
    std::vector<uint8_t> touched;  // before: gradients that exist are added to
    auto operator<=>(const GraphKey&) const = default;
  };
  struct Graph {
    std::unique_ptr<Recorded> recorded;  // null: met once
    std::vector<uint8_t> touched;        // after
    int64_t last_use = 0;
  };
  void accumulate(const Batch& batch);  // leaves the summed loss in nll_sum_
  void run_passes(const DeviceBatch& batch);
  void replay_passes(const DeviceBatch& batch);
  void make_room();
  void write_params(const StepParams& params);

  Backend& backend_;
  Arena& arena_;
  Llama model_;
  Tensor params_, norm_, nll_, nll_sum_;
  bool use_graphs_ = false;
  std::map<GraphKey, Graph> graphs_;
  int64_t uses_ = 0;
  bool print_tape_ = false;
  std::string tape_table_;
};

}  // namespace irq
