// Decoder: one token for each of a fixed number of sequences, keys and values in a cache. What differs from step to step lies
// in one buffer on the device, so that a step is recorded once and launched as one graph from then on.
#pragma once
#include <memory>
#include <vector>

#include "src/model/llama.h"

namespace irq {

// One sequence's next token. Its keys lie in the cache rows [begin, begin + position), its own goes to begin + position.
struct DecodeRow {
  int32_t token = -1;  // -1: nobody sits here; the row's logits mean nothing
  int32_t position = -1;
  int32_t begin = 0;
};

class Decoder {
 public:
  // Takes the buffers of `rows` sequences from the arena for good. recorded = false: every step is enqueued op by op.
  Decoder(Backend& backend, Arena& arena, Llama& model, KvCache cache, int64_t rows, bool recorded = true);

  int64_t rows() const { return batch_.rows; }
  // Enqueues one step on what the buffers hold: also what a memory plan runs.
  void enqueue();
  // Logits (rows, V) row-major. `next` has rows() entries.
  std::vector<float> step(const std::vector<DecodeRow>& next);
  // The same, but only the likeliest token of each row comes back (the lowest id on ties): what argmax() of sampler.h would
  // choose. -1: the logits are no numbers.
  std::vector<int32_t> choose(const std::vector<DecodeRow>& next);
  // The same without the transfers, for measuring: repeats the step as the last one left it.
  void repeat();

 private:
  void upload(const std::vector<DecodeRow>& next);

  Backend& backend_;
  Arena& arena_;
  Llama& model_;
  KvCache cache_;  // with `rows` set to a part of numbers_
  bool recorded_;
  DeviceBatch batch_;
  Tensor numbers_;  // (1, n) i32: everything that changes
  Tensor logits_;   // (rows, V) M
  Tensor choice_;   // (1, rows) i32
  int64_t steps_ = 0;
  std::unique_ptr<Recorded> recording_;
};

}  // namespace irq
