#include "src/eval/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "src/core/check.h"

namespace irq {
namespace {

constexpr uint64_t kSampleStream = 0x73616d706c65;  // "sample": an Rng stream of its own

void penalize(std::vector<float>& logits, const std::vector<int32_t>& context, double penalty) {
  std::vector<uint8_t> seen(logits.size(), 0);
  for (const int32_t id : context) {
    if (id < 0 || id >= static_cast<int32_t>(logits.size()) || seen[static_cast<size_t>(id)]) continue;
    seen[static_cast<size_t>(id)] = 1;
    float& x = logits[static_cast<size_t>(id)];
    x = static_cast<float>(x > 0 ? x / penalty : x * penalty);
  }
}

[[noreturn]] void throw_no_number() {
  throw Error("the model's output is not a number")
      .line("likely", "NaN or infinity in the weights, or an overflow")
      .line("try", "./irq_inspect MODEL    says whether the file holds such values");
}

}  // namespace

int32_t argmax(const float* logits, int64_t vocab) {
  int64_t best = 0;
  for (int64_t i = 1; i < vocab; ++i)
    if (logits[i] > logits[best] || std::isnan(logits[best])) best = i;
  return static_cast<int32_t>(best);
}

Sampler::Sampler(const SamplingOptions& options) : options_(options), rng_(options.seed, kSampleStream) {
  IRQ_CHECK(options.temperature >= 0 && options.top_p > 0 && options.top_p <= 1 && options.top_k >= 0 &&
                options.repetition_penalty > 0,
            "temperature %g, top-p %g, top-k %ld, penalty %g", options.temperature, options.top_p, options.top_k,
            options.repetition_penalty);
}

int32_t Sampler::accept(int32_t likeliest) const {
  IRQ_CHECK(greedy(), "%s", "a choice that is not greedy");
  if (likeliest < 0) throw_no_number();
  return likeliest;
}

int32_t Sampler::pick(std::vector<float> logits, const std::vector<int32_t>& context) {
  const auto vocab = static_cast<int64_t>(logits.size());
  const int32_t best = argmax(logits.data(), vocab);
  if (!std::isfinite(logits[static_cast<size_t>(best)])) throw_no_number();
  if (options_.repetition_penalty != 1) penalize(logits, context, options_.repetition_penalty);
  if (options_.temperature == 0) return argmax(logits.data(), vocab);

  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::erase_if(order, [&](int32_t id) { return std::isnan(logits[static_cast<size_t>(id)]); });
  const auto before = [&](int32_t a, int32_t b) {
    const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  };
  auto kept = static_cast<int64_t>(order.size());
  if (options_.top_k > 0) kept = std::min(kept, options_.top_k);
  std::partial_sort(order.begin(), order.begin() + kept, order.end(), before);
  order.resize(static_cast<size_t>(kept));

  // weight = exp((logit - largest) / temperature): softmax up to its sum.
  std::vector<double> weight(order.size());
  const double largest = logits[static_cast<size_t>(order[0])];
  double sum = 0;
  for (size_t i = 0; i < order.size(); ++i)
    sum += weight[i] =
        std::exp((static_cast<double>(logits[static_cast<size_t>(order[i])]) - largest) / options_.temperature);
  if (options_.top_p < 1) {
    double reached = 0;
    size_t n = 0;
    while (n < order.size() && reached < options_.top_p * sum) reached += weight[n++];
    order.resize(n), sum = reached;
  }
  const double draw = rng_.uniform() * sum;  // [0, sum)
  double reached = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    reached += weight[i];
    if (draw < reached) return order[i];
  }
  return order.back();  // the two sums may differ in the last bit
}

}  // namespace irq
