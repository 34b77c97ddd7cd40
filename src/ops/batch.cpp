#include "src/ops/batch.h"

#include "src/core/check.h"
#include "src/ops/prefix_groups.h"

namespace irq {
namespace {

class Packer {
 public:
  Batch batch;

  // Rows [from, to) of an example behind a prefix, as a sequence of their own; the rows.
  SeqRange add(const Example& x, int64_t from, int64_t to, int32_t sample, const SeqRange& prefix) {
    Batch& b = batch;
    const auto begin = static_cast<int32_t>(b.tokens.size());
    for (int64_t row = from; row < to; ++row) {
      const auto i = static_cast<size_t>(row);
      const bool scored = x.trainable[i + 1] != 0;
      b.row_label.push_back(scored ? static_cast<int32_t>(b.label_rows.size()) : -1);
      if (scored) {
        b.label_rows.push_back(static_cast<int32_t>(b.tokens.size()));
        b.targets.push_back(x.ids[i + 1]);
      }
      b.tokens.push_back(x.ids[i]);
      b.positions.push_back(static_cast<int32_t>(row));
      b.samples.push_back(sample);
    }
    const auto end = static_cast<int32_t>(b.tokens.size());
    const SeqRange rows{begin, end, begin, end, prefix.q_begin, prefix.q_end};
    if (end > begin) b.seqs.push_back(rows);
    return rows;
  }

  void finish(int64_t sequence_bucket) {
    Batch& b = batch;
    b.real_rows = static_cast<int64_t>(b.tokens.size());
    b.real_labels = static_cast<int64_t>(b.label_rows.size());
    const auto rows = static_cast<size_t>(bucketed(b.real_rows));
    const auto labels = static_cast<size_t>(bucketed(b.real_labels));
    for (auto* per_row : {&b.tokens, &b.positions, &b.samples, &b.row_label}) per_row->resize(rows, -1);
    b.label_rows.resize(labels, -1);
    b.targets.resize(labels, -1);
    b.seqs.resize(static_cast<size_t>(bucketed(static_cast<int64_t>(b.seqs.size()), sequence_bucket)), SeqRange{});
  }
};

int64_t sequence_bucket(Prefixes prefixes) { return prefixes == Prefixes::shared ? kSharingBucket : 1; }

}  // namespace

Batch pack(const std::vector<const Example*>& examples, const std::vector<int32_t>& sample_numbers, Prefixes prefixes) {
  IRQ_CHECK(examples.size() == sample_numbers.size(), "%zu examples", examples.size());
  Packer packer;
  std::vector<SeqRange> prefix_of(examples.size(), SeqRange{});
  if (prefixes == Prefixes::shared)
    for (const PrefixGroup& g : group_by_prefix(examples)) {
      const size_t first = g.members[0];
      const SeqRange rows = packer.add(*examples[first], 0, g.rows, sample_numbers[first], {});
      for (const size_t member : g.members) prefix_of[member] = rows;
    }
  for (size_t e = 0; e < examples.size(); ++e) {
    const SeqRange& prefix = prefix_of[e];
    packer.add(*examples[e], prefix.q_end - prefix.q_begin, rows_of(*examples[e]), sample_numbers[e], prefix);
    packer.batch.tokens_read += rows_of(*examples[e]);
  }
  packer.batch.examples = static_cast<int64_t>(examples.size());
  packer.finish(sequence_bucket(prefixes));
  return std::move(packer.batch);
}

BatchSize packed_size(const std::vector<const Example*>& examples, Prefixes prefixes) {
  BatchSize size{};
  std::vector<int64_t> own;
  for (const Example* e : examples) {
    own.push_back(rows_of(*e));
    size.tokens_read += own.back();
    for (int64_t row = 0; row < own.back(); ++row) size.real_labels += e->trainable[static_cast<size_t>(row) + 1] != 0;
  }
  if (prefixes == Prefixes::shared)
    for (const PrefixGroup& g : group_by_prefix(examples)) {
      size.real_rows += g.rows, ++size.sequences;
      for (const size_t member : g.members) own[member] -= g.rows;
    }
  for (const int64_t rows : own) size.real_rows += rows, size.sequences += rows > 0;
  size.rows = bucketed(size.real_rows);
  size.label_rows = bucketed(size.real_labels);
  size.sequences = bucketed(size.sequences, sequence_bucket(prefixes));
  return size;
}

int64_t most_sequences(int64_t examples, Prefixes prefixes) {
  return prefixes == Prefixes::shared ? bucketed(examples + examples / 2, kSharingBucket) : examples;
}

}  // namespace irq
