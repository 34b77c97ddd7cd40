// DataLoader: which examples each step sees. The order is a function of (seed, epoch, number of examples) alone, so that
// micro-batch size, GPU count and interruptions change nothing; a sample's number counts up over the run.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "src/ops/batch.h"

namespace irq {

struct LoaderOptions {
  int64_t batch = 16;       // examples per optimizer step
  int64_t micro_batch = 0;  // examples per forward pass; 0 = batch
  uint64_t seed = 0;
  // The official script's sampler (fidelity.md 6.5): mega-batches sorted by characters, batches of like length. Its
  // windows end with the epoch (the last is short); otherwise a window runs on into the next epoch and is always full.
  bool group_by_length = false;
  Prefixes prefixes = Prefixes::own;
};

struct MicroBatch {
  std::vector<const Example*> examples;
  std::vector<int32_t> samples;  // the sample's number in the run, from 0
  Prefixes prefixes = Prefixes::own;
  Batch packed() const { return pack(examples, samples, prefixes); }
};

class DataLoader {
 public:
  // examples outlives the loader and is not empty. chars: one per example, only used by group_by_length.
  DataLoader(const std::vector<Example>& examples, const LoaderOptions& options, std::vector<int64_t> chars = {});

  std::vector<MicroBatch> next();  // the next step's window; advances the cursor
  // The cursor is the number of samples consumed so far: all that a resumed run needs.
  int64_t cursor() const { return cursor_; }
  void seek(int64_t cursor);

  double epochs_done() const { return static_cast<double>(cursor_) / static_cast<double>(count()); }
  int64_t steps_for_epochs(double epochs) const;  // steps from the run's beginning that see `epochs` epochs, rounded up
  // The micro-batches of the next `steps` steps, in order, without building them (memory planning; the cursor stays). An
  // interrupt ends it with Exit::interrupted.
  void for_each_size(int64_t steps, const std::function<void(const BatchSize&)>& visit) const;
  std::vector<BatchSize> sizes(int64_t steps) const;
  std::vector<int64_t> epoch_order(int64_t epoch) const;  // a permutation of the examples

 private:
  int64_t count() const { return static_cast<int64_t>(examples_.size()); }
  int64_t window_end(int64_t begin) const;
  int64_t example_at(int64_t sample, std::vector<int64_t>& order, int64_t& order_epoch) const;

  const std::vector<Example>& examples_;
  LoaderOptions options_;
  std::vector<int64_t> chars_;
  int64_t cursor_ = 0;
  std::vector<int64_t> order_;  // epoch order_epoch_'s
  int64_t order_epoch_ = -1;
};

}  // namespace irq
