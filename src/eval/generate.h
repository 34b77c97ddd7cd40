// Generation: tokens one at a time, keys and values cached.
#pragma once
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "src/eval/model_session.h"
#include "src/eval/sampler.h"
#include "src/text/tokenizer.h"

namespace irq {

enum class StopReason { end_of_text, stopped, max_tokens, context_full };
const char* describe(StopReason reason);  // "end of text", "stop string", ...

struct GenerateOptions {
  int64_t max_tokens = 256;
  std::vector<int32_t> end_ids;  // end-of-text tokens: they end the completion and are no part of it
};

struct Generated {
  std::vector<int32_t> ids;  // the completion
  StopReason reason = StopReason::max_tokens;
  int64_t prefilled = 0;  // rows run before the first token was known
  double prefill_s = 0, decode_s = 0;
};

class Generator {
 public:
  static constexpr int64_t kPrefillRows = 1024;  // of one pass: longer prompts take several, with the same result
  // What to load the session with: sequences of up to `tokens` (prompt and completion together).
  static Workload workload(int64_t tokens, int64_t prefill_rows = kPrefillRows);

  explicit Generator(ModelSession& session, int64_t prefill_rows = kPrefillRows);

  // Continues `context` (not empty). on_token sees each token as it comes; false ends the completion behind it.
  // What the cache still holds of the context's beginning is not computed again, so that a conversation goes on cheaply.
  using OnToken = std::function<bool(int32_t id)>;
  Generated run(const std::vector<int32_t>& context, Sampler& sampler, const GenerateOptions& options,
                const OnToken& on_token = {});

 private:
  // What follows the tokens so far: the logits (V), or where they stayed on the device the likeliest token alone.
  struct Next {
    std::vector<float> logits;
    std::optional<int32_t> likeliest;
  };
  Next feed(const int32_t* ids, int64_t count, bool greedy);

  ModelSession& session_;
  int64_t prefill_rows_;
  std::vector<int32_t> cached_;  // the tokens whose keys and values are in the cache, from row 0
};

// Text that is cut at the first stop string. What could be the beginning of one is held back until that is known.
class StopFilter {
 public:
  explicit StopFilter(std::vector<std::string> stops);
  std::string push(const std::string& text);  // what may be shown now
  std::string finish();                       // what was held back, if no stop string came
  bool stopped() const { return stopped_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

// Token ids -> text to show: whole UTF-8 characters only, up to the first stop string.
class TextStream {
 public:
  // context: the tokens in front of the completion if it goes on in their text (its first space then belongs to it);
  // empty if the completion is a text of its own, such as an answer.
  TextStream(const Tokenizer& tokenizer, std::vector<std::string> stops, const std::vector<int32_t>& context = {});
  std::string push(int32_t id) { return stopped() ? "" : filter_.push(decoder_.push(id)); }
  std::string finish();
  bool stopped() const { return filter_.stopped(); }

 private:
  StreamDecoder decoder_;
  StopFilter filter_;
};

}  // namespace irq
