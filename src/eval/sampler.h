// Which token comes next: greedy, or drawn from the filtered distribution.
#pragma once
#include <cstdint>
#include <vector>

#include "src/core/rng.h"

namespace irq {

// The steps of a choice, in this order (the one most programs use, so that settings carry over):
//   1. repetition penalty  each token that occurs in the context: logit / penalty if positive, * penalty if negative (CTRL)
//   2. temperature 0       the largest logit, the lowest id on ties; nothing below applies
//   3. temperature         logit / temperature
//   4. top-k               only the k largest stay, lower ids first on ties
//   5. softmax, top-p      only the fewest tokens stay whose probabilities, largest first, sum to at least p
//   6. draw                one uniform number; the tokens in descending probability, equal ones by ascending id
struct SamplingOptions {
  double temperature = 0;         // 0 = greedy
  double top_p = 1;               // 1 = all
  int64_t top_k = 0;              // 0 = all
  double repetition_penalty = 1;  // 1 = none
  uint64_t seed = 42;
};

class Sampler {
 public:
  explicit Sampler(const SamplingOptions& options);
  // logits (V); context: every token so far, prompt included. Throws an Error if no logit is a number.
  int32_t pick(std::vector<float> logits, const std::vector<int32_t>& context);
  // Whether pick() is nothing but argmax(); then whoever has that result passes it here instead: -1 (no number) is an Error.
  bool greedy() const { return options_.temperature == 0 && options_.repetition_penalty == 1; }
  int32_t accept(int32_t likeliest) const;

 private:
  SamplingOptions options_;
  Rng rng_;
};

// The token a greedy choice takes.
int32_t argmax(const float* logits, int64_t vocab);

}  // namespace irq
