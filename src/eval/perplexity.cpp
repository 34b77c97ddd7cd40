#include "src/eval/perplexity.h"

#include <algorithm>
#include <cmath>

#include "src/core/interrupt.h"

namespace irq {
namespace {

std::vector<const Example*> chosen(const std::vector<Example>& examples, const ExampleRange& range) {
  std::vector<const Example*> all;
  for (size_t i = range.first; i < range.second; ++i) all.push_back(&examples[i]);
  return all;
}

// The shape pack() gives these examples, without packing them.
StepShape packed_shape(const std::vector<Example>& examples, const ExampleRange& range) {
  const BatchSize s = packed_size(chosen(examples, range), Prefixes::own);
  return {s.rows, s.label_rows, s.sequences};
}

}  // namespace

double LossResult::perplexity() const { return std::exp(nll()); }

std::vector<ExampleRange> pack_ranges(const std::vector<Example>& examples, int64_t max_rows) {
  std::vector<ExampleRange> ranges;
  int64_t rows = 0;
  for (size_t i = 0; i < examples.size(); ++i) {
    if (ranges.empty() || rows + rows_of(examples[i]) > max_rows) ranges.push_back({i, i}), rows = 0;
    ranges.back().second = i + 1;
    rows += rows_of(examples[i]);
  }
  return ranges;
}

Batch pack_range(const std::vector<Example>& examples, const ExampleRange& range) {
  return pack(chosen(examples, range), std::vector<int32_t>(range.second - range.first, 0));
}

LossWorkloads loss_workloads(const std::vector<Example>& examples, Device device) {
  LossWorkloads result;
  Workload work;
  for (const Example& e : examples) work.positions = std::max(work.positions, rows_of(e));
  // A GPU is busy with some thousand rows; a CPU with few, and there the progress should move.
  for (const int64_t max_rows : {int64_t{8192}, int64_t{2048}, int64_t{512}, int64_t{1}}) {
    if (max_rows > 2048 && device == Device::CPU) continue;
    // Only shapes that no other one covers can set the peak.
    std::vector<StepShape> shapes;
    for (const ExampleRange& r : pack_ranges(examples, max_rows)) {
      const StepShape s = packed_shape(examples, r);
      const auto covers = [](const StepShape& a, const StepShape& b) {
        return a.rows >= b.rows && a.labels >= b.labels && a.sequences >= b.sequences;
      };
      if (std::any_of(shapes.begin(), shapes.end(), [&](const StepShape& o) { return covers(o, s); })) continue;
      std::erase_if(shapes, [&](const StepShape& o) { return covers(s, o); });
      shapes.push_back(s);
    }
    work.evaluate = shapes;
    result.workloads.push_back(work);
    result.max_rows.push_back(max_rows);
  }
  return result;
}

LossResult evaluate_loss(ModelSession& session, const std::vector<Example>& examples, int64_t max_rows,
                         const RowProgress& progress) {
  LossResult result;
  int64_t done = 0;
  for (const ExampleRange& range : pack_ranges(examples, max_rows)) {
    throw_if_interrupted();
    const Batch batch = pack_range(examples, range);
    const auto [nll, labels] = session.evaluate(batch);
    if (!std::isfinite(nll))
      throw Error("the loss is not a number")
          .line("found", strf("%g over %ld tokens", nll, labels))
          .line("likely", "NaN or infinite values in the model or its adapter")
          .line("try", "the model it was made from, or another adapter");
    result.nll_sum += nll;
    result.tokens += labels;
    done += batch.real_rows;
    if (progress) progress(done);
  }
  return result;
}

Batch every_position(const std::vector<int32_t>& ids) {
  Batch b;
  const auto n = static_cast<int32_t>(ids.size());
  b.tokens = ids;
  for (int32_t i = 0; i < n; ++i) b.positions.push_back(i), b.label_rows.push_back(i), b.row_label.push_back(i);
  b.samples.assign(ids.size(), 0);
  b.targets.assign(ids.size(), -1);  // nothing is scored
  b.seqs = {{0, n, 0, n, 0, 0}};
  b.real_rows = b.real_labels = n;
  b.examples = 1;
  return b;
}

}  // namespace irq
