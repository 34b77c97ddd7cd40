// Pre-tokenizers of byte-level BPE: a text is cut into pieces, and no token reaches over a cut.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "src/text/regex.h"

namespace irq {

// What becomes of the parts that a pattern matches: tokenizer.json's five ways.
enum class SplitBehavior { isolated, removed, merged_with_previous, merged_with_next, contiguous };

struct SplitStep {
  Regex regex;
  SplitBehavior behavior = SplitBehavior::isolated;
  bool invert = false;            // matches and what lies between them change places
  bool add_prefix_space = false;  // ByteLevel's: a piece that begins with no space gets one
};

class PreTokenizer {
 public:
  void add(SplitStep step) { steps_.push_back(std::move(step)); }
  // The pieces, none empty, in order. Bytes that are not UTF-8 form pieces of their own. `spare` holds pieces that are no
  // part of the text (a space was put in front); it must live as long as the result.
  std::vector<std::string_view> split(std::string_view text, std::vector<std::unique_ptr<std::string>>& spare) const;
  const std::vector<SplitStep>& steps() const { return steps_; }
  // True if a text may be cut between a letter of ASCII and a line break without changing the pieces: known patterns only.
  bool splits_after_letter() const;

 private:
  std::vector<SplitStep> steps_;
};

// GPT-2's pattern, which tokenizer.json's ByteLevel with use_regex means, and LLaMA-3's.
extern const char* const kGpt2Pattern;
extern const char* const kLlama3Pattern;

// The pre-tokenizer that a GGUF file names under tokenizer.ggml.pre: "smollm" (digits one by one, then GPT-2's pattern),
// "gpt-2" and "default" (GPT-2's pattern alone), "llama-bpe" ("llama3", "llama-v3": LLaMA-3's). Any other is an Error with
// its name.
PreTokenizer named_pre_tokenizer(const std::string& name, const std::string& source);
// The other direction; "" if GGUF has no name for it that this engine knows.
std::string name_of(const PreTokenizer& pre_tokenizer);

}  // namespace irq
