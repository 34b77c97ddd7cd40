// The loss of a model on a data file: mean negative log-likelihood of its trainable tokens.
#pragma once
#include <functional>

#include "src/eval/model_session.h"

namespace irq {

struct LossResult {
  double nll_sum = 0;  // natural log
  int64_t tokens = 0;  // scored
  double nll() const { return nll_sum / static_cast<double>(tokens); }
  double perplexity() const;
};

// Examples [first, second) packed into one batch.
using ExampleRange = std::pair<size_t, size_t>;
// Neighbours together, at most max_rows rows a batch; a longer example has a batch of its own. The result does not depend
// on max_rows, but for the rounding of sums.
std::vector<ExampleRange> pack_ranges(const std::vector<Example>& examples, int64_t max_rows);
Batch pack_range(const std::vector<Example>& examples, const ExampleRange& range);

// For ModelSession::load: the same work with ever smaller batches, and the row budgets that belong to them.
struct LossWorkloads {
  std::vector<Workload> workloads;
  std::vector<int64_t> max_rows;
};
LossWorkloads loss_workloads(const std::vector<Example>& examples, Device device);

using RowProgress = std::function<void(int64_t done_rows)>;
LossResult evaluate_loss(ModelSession& session, const std::vector<Example>& examples, int64_t max_rows,
                         const RowProgress& progress = {});

// The batch that asks for the logits of every position of one sequence.
Batch every_position(const std::vector<int32_t>& ids);

}  // namespace irq
