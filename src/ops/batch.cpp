#include "src/ops/batch.h"

#include "src/core/check.h"

namespace irq {

Batch pack(const std::vector<const Example*>& examples, const std::vector<int32_t>& sample_numbers) {
  IRQ_CHECK(examples.size() == sample_numbers.size(), "%zu examples", examples.size());
  Batch b;
  for (size_t e = 0; e < examples.size(); ++e) {
    const Example& x = *examples[e];
    const auto begin = static_cast<int32_t>(b.tokens.size());
    for (size_t i = 0; i + 1 < x.ids.size(); ++i) {  // the last token predicts nothing that is scored
      const bool scored = x.trainable[i + 1] != 0;
      b.row_label.push_back(scored ? static_cast<int32_t>(b.label_rows.size()) : -1);
      if (scored) {
        b.label_rows.push_back(static_cast<int32_t>(b.tokens.size()));
        b.targets.push_back(x.ids[i + 1]);
      }
      b.tokens.push_back(x.ids[i]);
      b.positions.push_back(static_cast<int32_t>(i));
      b.samples.push_back(sample_numbers[e]);
    }
    const auto end = static_cast<int32_t>(b.tokens.size());
    if (end > begin) b.seqs.push_back({begin, end, begin, end, 0, 0});
  }
  b.examples = static_cast<int64_t>(examples.size());
  b.real_rows = static_cast<int64_t>(b.tokens.size());
  b.real_labels = static_cast<int64_t>(b.label_rows.size());
  const auto bucket = [](size_t n) { return (n + kRowBucket - 1) / kRowBucket * kRowBucket; };
  const size_t rows = bucket(b.tokens.size()), labels = bucket(b.label_rows.size());
  for (auto* per_row : {&b.tokens, &b.positions, &b.samples, &b.row_label}) per_row->resize(rows, -1);
  b.label_rows.resize(labels, -1);
  b.targets.resize(labels, -1);
  return b;
}

}  // namespace irq
