#include "src/text/pretokenize.h"

#include <algorithm>
#include <deque>

#include "src/core/check.h"
#include "src/text/tokenizer.h"

namespace irq {
namespace {

constexpr const char* kDigit = "\\p{N}";

using Pieces = std::vector<std::string_view>;

struct Part {
  std::string_view text;
  bool match;
};

// The text in order, cut into matches and what lies between them; nothing is empty.
std::vector<Part> parts_of(const SplitStep& step, Regex::Matches& matches, std::string_view text) {
  std::vector<Part> parts;
  matches.start(text);
  size_t done = 0, begin = 0, end = 0;
  while (matches.next(begin, end)) {
    if (begin > done) parts.push_back({text.substr(done, begin - done), step.invert});
    parts.push_back({text.substr(begin, end - begin), !step.invert});
    done = end;
  }
  if (done < text.size()) parts.push_back({text.substr(done), step.invert});
  return parts;
}

// Parts lie next to each other in the text, so that a run of them is one view.
std::string_view joined(std::string_view a, std::string_view b) { return {a.data(), a.size() + b.size()}; }

void apply(const SplitStep& step, Regex::Matches& matches, std::string_view text, Pieces& out) {
  const std::vector<Part> parts = parts_of(step, matches, text);
  bool previous_match = false;
  for (size_t i = 0; i < parts.size(); ++i) {
    const Part& p = parts[i];
    switch (step.behavior) {
      case SplitBehavior::isolated: out.push_back(p.text); break;
      case SplitBehavior::removed:
        if (!p.match) out.push_back(p.text);
        break;
      case SplitBehavior::merged_with_previous:
        if (p.match && !previous_match && i > 0) out.back() = joined(out.back(), p.text);
        else out.push_back(p.text);
        break;
      case SplitBehavior::merged_with_next:
        // A match waits for the part behind it; of several matches in a row only the last joins it.
        if (!p.match && previous_match) out.back() = joined(out.back(), p.text);
        else out.push_back(p.text);
        break;
      case SplitBehavior::contiguous:
        if (i > 0 && p.match == previous_match) out.back() = joined(out.back(), p.text);
        else out.push_back(p.text);
        break;
    }
    previous_match = p.match;
  }
}

// The text cut into runs that are UTF-8 throughout (true) and runs that are not.
std::vector<std::pair<std::string_view, bool>> runs_of_utf8(std::string_view text) {
  std::vector<std::pair<std::string_view, bool>> runs;
  for (size_t begin = 0; begin < text.size();) {
    const bool good = utf8_length(text.substr(begin)) > 0;
    size_t end = begin;
    for (int n; end < text.size() && ((n = utf8_length(text.substr(end))) > 0) == good;)
      end += static_cast<size_t>(std::max(n, 1));
    runs.push_back({text.substr(begin, end - begin), good});
    begin = end;
  }
  return runs;
}

}  // namespace

const char* const kGpt2Pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
const char* const kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

std::vector<std::string_view> PreTokenizer::split(std::string_view text,
                                                  std::vector<std::unique_ptr<std::string>>& spare) const {
  Pieces result;
  std::deque<Regex::Matches> matches;
  for (const SplitStep& step : steps_) matches.emplace_back(step.regex);
  for (const auto& [run, good] : runs_of_utf8(text)) {
    Pieces pieces{run};
    for (size_t i = 0; good && i < steps_.size(); ++i) {
      const SplitStep& step = steps_[i];
      Pieces finer;
      for (std::string_view piece : pieces) {
        if (step.add_prefix_space && piece[0] != ' ') {
          spare.push_back(std::make_unique<std::string>(" " + std::string(piece)));
          piece = *spare.back();
        }
        apply(step, matches[i], piece, finer);
      }
      pieces = std::move(finer);
    }
    result.insert(result.end(), pieces.begin(), pieces.end());
  }
  return result;
}

bool PreTokenizer::splits_after_letter() const {
  return std::all_of(steps_.begin(), steps_.end(), [](const SplitStep& s) {
    const std::string& p = s.regex.pattern();
    return s.behavior == SplitBehavior::isolated && !s.invert && !s.add_prefix_space &&
           (p == kDigit || p == kGpt2Pattern || p == kLlama3Pattern);
  });
}

PreTokenizer named_pre_tokenizer(const std::string& name, const std::string& source) {
  PreTokenizer result;
  const auto add = [&](const char* pattern) { result.add({Regex(pattern, source)}); };
  if (name == "smollm") add(kDigit), add(kGpt2Pattern);
  else if (name == "gpt-2" || name == "gpt2" || name == "default" || name.empty()) add(kGpt2Pattern);
  else if (name == "llama-bpe" || name == "llama3" || name == "llama-v3") add(kLlama3Pattern);
  else
    throw Error(source + ": a pre-tokenizer this engine does not know: " + name)
        .line("expected", "smollm, gpt-2, llama-bpe")
        .line("try",
              "convert the model from its Hugging Face folder, whose tokenizer.json spells its pre-tokenizer out");
  return result;
}

std::string name_of(const PreTokenizer& pre_tokenizer) {
  std::vector<std::string> patterns;
  for (const SplitStep& s : pre_tokenizer.steps()) {
    if (s.behavior != SplitBehavior::isolated || s.invert || s.add_prefix_space) return "";
    patterns.push_back(s.regex.pattern());
  }
  if (patterns == std::vector<std::string>{kDigit, kGpt2Pattern}) return "smollm";
  if (patterns == std::vector<std::string>{kGpt2Pattern}) return "gpt-2";
  if (patterns == std::vector<std::string>{kLlama3Pattern}) return "llama-bpe";
  return "";
}

}  // namespace irq
