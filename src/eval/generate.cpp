#include "src/eval/generate.h"

#include <algorithm>

#include "src/core/clock.h"
#include "src/core/interrupt.h"

namespace irq {
const char* describe(StopReason reason) {
  switch (reason) {
    case StopReason::end_of_text: return "end of text";
    case StopReason::stopped: return "stop string";
    case StopReason::max_tokens: return "--max-tokens reached";
    case StopReason::context_full: return "the model's context is full";
  }
  return "";
}

Workload Generator::workload(int64_t tokens, int64_t prefill_rows) {
  return {.evaluate = {},
          .logits = {{std::min(tokens, prefill_rows), 1, 1}},
          .positions = tokens,
          .cache_tokens = tokens,
          .decode_rows = 1};
}

Generator::Generator(ModelSession& session, int64_t prefill_rows) : session_(session), prefill_rows_(prefill_rows) {}

// Runs `count` tokens behind those in the cache.
Generator::Next Generator::feed(const int32_t* ids, int64_t count, bool greedy) {
  const auto begin = static_cast<int32_t>(cached_.size()), n = static_cast<int32_t>(count);
  IRQ_CHECK(begin + n <= session_.cache_tokens(), "%d tokens behind %d of %ld", n, begin, session_.cache_tokens());
  if (n == 1 && session_.decode_rows() == 1) {
    const std::vector<DecodeRow> row = {{ids[0], begin, 0}};
    Next next;
    if (greedy) next.likeliest = session_.decode_greedily(row)[0];
    else next.logits = session_.decode(row);
    cached_.push_back(ids[0]);
    return next;
  }
  Batch b;
  b.tokens.assign(ids, ids + count);
  for (int32_t i = 0; i < n; ++i) b.positions.push_back(begin + i);
  b.samples.assign(b.tokens.size(), 0);
  b.row_label.assign(b.tokens.size(), -1);
  b.row_label.back() = 0;
  b.label_rows = {n - 1};
  b.targets = {-1};                       // nothing is scored
  b.seqs = {{0, n, 0, begin + n, 0, 0}};  // the last query sees every key up to itself
  b.real_rows = n, b.real_labels = 1, b.examples = 1;
  Next next{session_.logits(b, {{0, begin, count}}), {}};
  cached_.insert(cached_.end(), ids, ids + count);
  return next;
}

Generated Generator::run(const std::vector<int32_t>& context, Sampler& sampler, const GenerateOptions& options,
                         const OnToken& on_token) {
  IRQ_CHECK(!context.empty() && static_cast<int64_t>(context.size()) <= session_.cache_tokens(),
            "a context of %zu tokens", context.size());
  const double start = now_seconds();
  // The last token runs in any case: its logits are wanted.
  const size_t known = static_cast<size_t>(
      std::mismatch(cached_.begin(), cached_.end(), context.begin(), context.end() - 1).first - cached_.begin());
  cached_.resize(known);
  Generated result;
  std::vector<int32_t> ids = context;
  Next next;
  for (size_t at = known; at < ids.size();) {
    throw_if_interrupted();
    const int64_t count = std::min(prefill_rows_, static_cast<int64_t>(ids.size() - at));
    next = feed(ids.data() + at, count, sampler.greedy());
    at += static_cast<size_t>(count);
    result.prefilled += count;
  }
  const double filled = now_seconds();
  while (static_cast<int64_t>(result.ids.size()) < options.max_tokens) {
    throw_if_interrupted();
    const int32_t id = next.likeliest ? sampler.accept(*next.likeliest) : sampler.pick(std::move(next.logits), ids);
    if (std::find(options.end_ids.begin(), options.end_ids.end(), id) != options.end_ids.end()) {
      result.reason = StopReason::end_of_text;
      break;
    }
    ids.push_back(id);
    result.ids.push_back(id);
    if (on_token && !on_token(id)) {
      result.reason = StopReason::stopped;
      break;
    }
    if (static_cast<int64_t>(result.ids.size()) == options.max_tokens) break;  // nobody asks what would follow
    if (static_cast<int64_t>(ids.size()) > session_.cache_tokens()) {
      result.reason = StopReason::context_full;
      break;
    }
    next = feed(&id, 1, sampler.greedy());
  }
  result.prefill_s = filled - start;
  result.decode_s = now_seconds() - filled;
  return result;
}

StopFilter::StopFilter(std::vector<std::string> stops) : stops_(std::move(stops)) {
  for (const std::string& s : stops_) IRQ_CHECK(!s.empty(), "%s", "an empty stop string");
}

std::string StopFilter::push(const std::string& text) {
  if (stopped_) return "";
  held_ += text;
  size_t cut = std::string::npos;
  for (const std::string& s : stops_) cut = std::min(cut, held_.find(s));
  if (cut != std::string::npos) {
    stopped_ = true;
    std::string shown = held_.substr(0, cut);
    held_.clear();
    return shown;
  }
  size_t keep = 0;  // the longest end of held_ that begins a stop string
  for (const std::string& s : stops_)
    for (size_t n = std::min(held_.size(), s.size() - 1); n > keep; --n)
      if (held_.compare(held_.size() - n, n, s, 0, n) == 0) keep = n;
  std::string shown = held_.substr(0, held_.size() - keep);
  held_.erase(0, shown.size());
  return shown;
}

std::string StopFilter::finish() { return std::exchange(held_, ""); }

TextStream::TextStream(const Tokenizer& tokenizer, std::vector<std::string> stops, const std::vector<int32_t>& context)
    : decoder_(tokenizer), filter_(std::move(stops)) {
  for (const int32_t id : context) decoder_.push(id);
  decoder_.finish();  // a character that the context broke off has no rest to show
}

std::string TextStream::finish() {
  if (stopped()) return "";
  const std::string last = filter_.push(decoder_.finish());
  return last + filter_.finish();
}

}  // namespace irq
