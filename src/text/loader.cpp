#include "src/text/loader.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "src/core/check.h"
#include "src/core/interrupt.h"
#include "src/core/rng.h"

namespace irq {
namespace {

constexpr uint64_t kOrderStream = 0x6f72646572ull << 24;  // "order": Rng streams of its own, one per epoch

// fidelity.md 6.5. order: a random permutation; returns it with like lengths together, the globally longest first.
std::vector<int64_t> grouped_by_length(std::vector<int64_t> order, const std::vector<int64_t>& chars, int64_t batch) {
  const auto n = static_cast<int64_t>(order.size());
  const int64_t mega = batch * std::max<int64_t>(1, std::min<int64_t>(50, n / (batch * 4)));
  int64_t longest = 0;  // where the first mega-batch that holds the greatest length begins
  for (int64_t begin = 0; begin < n; begin += mega) {
    std::stable_sort(order.begin() + begin, order.begin() + std::min(begin + mega, n),
                     [&](int64_t a, int64_t b) { return chars[a] > chars[b]; });
    if (chars[order[begin]] > chars[order[longest]]) longest = begin;
  }
  std::swap(order[0], order[longest]);
  return order;
}

}  // namespace

DataLoader::DataLoader(const std::vector<Example>& examples, const LoaderOptions& options, std::vector<int64_t> chars)
    : examples_(examples), options_(options), chars_(std::move(chars)) {
  IRQ_CHECK(!examples_.empty() && options_.batch > 0, "%zu examples, batch %lld", examples_.size(),
            static_cast<long long>(options_.batch));
  IRQ_CHECK(!options_.group_by_length || chars_.size() == examples_.size(), "%zu lengths for %zu examples",
            chars_.size(), examples_.size());
  if (options_.micro_batch <= 0 || options_.micro_batch > options_.batch) options_.micro_batch = options_.batch;
}

std::vector<int64_t> DataLoader::epoch_order(int64_t epoch) const {
  std::vector<int64_t> order(count());
  std::iota(order.begin(), order.end(), 0);
  Rng rng(options_.seed, kOrderStream + static_cast<uint64_t>(epoch));
  for (int64_t i = count() - 1; i > 0; --i) std::swap(order[i], order[rng.below(static_cast<uint64_t>(i) + 1)]);
  return options_.group_by_length ? grouped_by_length(std::move(order), chars_, options_.batch) : order;
}

int64_t DataLoader::window_end(int64_t begin) const {
  const int64_t end = begin + options_.batch;
  return options_.group_by_length ? std::min(end, (begin / count() + 1) * count()) : end;
}

int64_t DataLoader::example_at(int64_t sample, std::vector<int64_t>& order, int64_t& order_epoch) const {
  if (const int64_t epoch = sample / count(); epoch != order_epoch) {
    order = epoch_order(epoch);
    order_epoch = epoch;
  }
  return order[sample % count()];
}

std::vector<MicroBatch> DataLoader::next() {
  const int64_t end = window_end(cursor_);
  IRQ_CHECK(end <= INT32_MAX, "sample %lld does not fit the dropout counter", static_cast<long long>(end));
  std::vector<MicroBatch> window;
  for (; cursor_ < end; ++cursor_) {
    if (window.empty() || static_cast<int64_t>(window.back().examples.size()) == options_.micro_batch)
      window.push_back({{}, {}, options_.prefixes});
    window.back().examples.push_back(&examples_[example_at(cursor_, order_, order_epoch_)]);
    window.back().samples.push_back(static_cast<int32_t>(cursor_));
  }
  return window;
}

void DataLoader::seek(int64_t cursor) {
  IRQ_CHECK(cursor >= 0, "cursor %lld", static_cast<long long>(cursor));
  cursor_ = cursor;
}

int64_t DataLoader::steps_for_epochs(double epochs) const {
  const auto steps = [&](double examples) {
    return static_cast<int64_t>(std::ceil(examples / static_cast<double>(options_.batch) - 1e-9));
  };
  if (!options_.group_by_length) return steps(epochs * static_cast<double>(count()));
  const double whole = std::floor(epochs), n = static_cast<double>(count());
  return static_cast<int64_t>(whole) * steps(n) + steps((epochs - whole) * n);
}

void DataLoader::for_each_size(int64_t steps, const std::function<void(const BatchSize&)>& visit) const {
  std::vector<int64_t> order;
  std::vector<const Example*> chosen;
  int64_t order_epoch = -1;
  int64_t sample = cursor_;
  for (int64_t step = 0; step < steps; ++step) {
    for (const int64_t end = window_end(sample); sample < end;) {
      chosen.clear();
      for (const int64_t stop = std::min(end, sample + options_.micro_batch); sample < stop; ++sample)
        chosen.push_back(&examples_[example_at(sample, order, order_epoch)]);
      visit(packed_size(chosen, options_.prefixes));
      throw_if_interrupted();
    }
  }
}

std::vector<BatchSize> DataLoader::sizes(int64_t steps) const {
  std::vector<BatchSize> result;
  for_each_size(steps, [&](const BatchSize& size) { result.push_back(size); });
  return result;
}

}  // namespace irq
