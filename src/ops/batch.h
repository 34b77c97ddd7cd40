// Batch: what one micro-step runs on. Examples are packed one behind the other with no padding between them; the row
// count is rounded up to kRowBucket with dead rows so that GEMM shapes and captured graphs repeat.
#pragma once
#include <cstdint>
#include <vector>

namespace irq {

constexpr int64_t kRowBucket = 128;
constexpr int64_t kSharingBucket = 4;  // of sequences, where prefixes are shared
constexpr int64_t bucketed(int64_t n, int64_t bucket = kRowBucket) { return (n + bucket - 1) / bucket * bucket; }

// One packed sequence, in rows of the batch (what the ranges mean: ops.inc, attention_fwd). Training: k = q, and a prefix
// only where it is shared.
struct SeqRange {
  int32_t q_begin, q_end, k_begin, k_end, p_begin, p_end;
};

struct Batch {
  // One entry per row; dead rows hold -1. Row i's logits predict the token after tokens[i] in its sequence; a sequence's
  // last token has no row unless somebody asks for its logits.
  std::vector<int32_t> tokens, positions;
  std::vector<int32_t>
      samples;  // the sample's number in the run (dropout masks follow it through any packing with rows of its own)
  std::vector<int32_t> row_label;  // index into label_rows, -1 = no loss here
  // One entry per label row; padded with -1 to a multiple of kRowBucket.
  std::vector<int32_t> label_rows;  // the row whose logits are scored
  std::vector<int32_t> targets;     // the token it must predict
  std::vector<SeqRange> seqs;
  int64_t real_rows = 0, real_labels = 0, examples = 0;
  int64_t tokens_read = 0;  // rows that the examples would have if none was shared

  int64_t rows() const { return static_cast<int64_t>(tokens.size()); }
};

// One tokenized example: ids, and for each id whether predicting it counts (false on the source, true on the target).
struct Example {
  std::vector<int32_t> ids;
  std::vector<uint8_t> trainable;  // same length; trainable[0] is never used (nothing predicts the first id)
};
// The last id is only predicted: it has no row.
inline int64_t rows_of(const Example& e) { return e.ids.empty() ? 0 : static_cast<int64_t>(e.ids.size()) - 1; }

// Rows that begin several examples alike and have no loss (an instruction's template): each example has its own, or they
// are computed once, in front of the examples, and attention sees them as the prefix of all of them. The same sums in
// another order; but under dropout the examples have the masks of the first one there.
enum class Prefixes { own, shared };

// Packs examples (in order) into one batch; sample_numbers has one entry per example.
Batch pack(const std::vector<const Example*>& examples, const std::vector<int32_t>& sample_numbers,
           Prefixes prefixes = Prefixes::own);

// What pack() would make: rows and label rows as packed (multiples of kRowBucket), and how many of them are real.
struct BatchSize {
  int64_t rows, label_rows, real_rows, real_labels, sequences, tokens_read;
};
BatchSize packed_size(const std::vector<const Example*>& examples, Prefixes prefixes);
// No batch of this many examples has more.
int64_t most_sequences(int64_t examples, Prefixes prefixes);

}  // namespace irq
