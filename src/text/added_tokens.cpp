#include "src/text/added_tokens.h"

#include <algorithm>

#include "src/text/regex.h"
#include "src/text/tokenizer.h"

namespace irq {
namespace {

// \w as tokenizer.json means it; PCRE2's own takes other numbers (one half) along and leaves marks out.
bool is_word(std::string_view character) {
  static const Regex word("[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}]", "single_word");
  size_t begin = 0, end = 0;
  Regex::Matches matches(word);
  matches.start(character);
  return matches.next(begin, end);
}

// Does a letter, digit or underscore stand directly in front of text[begin] or at text[end]?
bool beside_words(std::string_view text, size_t begin, size_t end) {
  for (size_t n = 1; n <= 4 && n <= begin; ++n)
    if (utf8_length(text.substr(begin - n)) == static_cast<int>(n)) {
      if (is_word(text.substr(begin - n, n))) return true;
      break;
    }
  const int n = end < text.size() ? utf8_length(text.substr(end)) : 0;
  return n > 0 && is_word(text.substr(end, static_cast<size_t>(n)));
}

}  // namespace

size_t space_at(std::string_view text, size_t at) {
  if (at >= text.size()) return 0;
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[at + i]); };
  const size_t left = text.size() - at;
  if ((byte(0) >= 0x09 && byte(0) <= 0x0D) || byte(0) == ' ') return 1;
  if (byte(0) == 0xC2) return left >= 2 && (byte(1) == 0x85 || byte(1) == 0xA0) ? 2 : 0;
  if (left < 3) return 0;
  const bool ogham = byte(0) == 0xE1 && byte(1) == 0x9A && byte(2) == 0x80;                            // U+1680
  const bool ideographic = byte(0) == 0xE3 && byte(1) == 0x80 && byte(2) == 0x80;                      // U+3000
  const bool medium = byte(0) == 0xE2 && byte(1) == 0x81 && byte(2) == 0x9F;                           // U+205F
  const bool general = byte(0) == 0xE2 && byte(1) == 0x80 &&                                           // U+2000..200A,
                       ((byte(2) >= 0x80 && byte(2) <= 0x8A) || byte(2) == 0xA8 || byte(2) == 0xA9 ||  // 2028, 2029,
                        byte(2) == 0xAF);                                                              // 202F
  return ogham || ideographic || medium || general ? 3 : 0;
}

size_t space_before(std::string_view text, size_t at) {
  for (size_t n = 1; n <= 3 && n <= at; ++n)
    if (space_at(text, at - n) == n) return n;
  return 0;
}

void AddedTokens::add(AddedToken token) {
  if (!token.content.empty()) tokens_.push_back(std::move(token));
}

void AddedTokens::prepare() {
  std::stable_sort(tokens_.begin(), tokens_.end(),
                   [](const AddedToken& a, const AddedToken& b) { return a.content < b.content; });
  std::vector<AddedToken> unique;
  for (AddedToken& t : tokens_) {
    if (!unique.empty() && unique.back().content == t.content) unique.pop_back();
    unique.push_back(std::move(t));
  }
  tokens_ = std::move(unique);
  std::fill(std::begin(first_), std::end(first_), 0);
  for (const AddedToken& t : tokens_) {
    ++first_[static_cast<unsigned char>(t.content[0]) + 1];
    any_[t.normalized] = true;
  }
  for (int b = 0; b < 256; ++b) first_[b + 1] += first_[b];
}

int32_t AddedTokens::find(std::string_view spelled) const {
  const auto it = std::lower_bound(tokens_.begin(), tokens_.end(), spelled,
                                   [](const AddedToken& t, std::string_view s) { return t.content < s; });
  return it != tokens_.end() && it->content == spelled ? it->id : -1;
}

// Among the sorted tokens those that share a longer and longer beginning with the text are a smaller and smaller range.
const AddedToken* AddedTokens::longest_at(std::string_view text, size_t at, bool normalized) const {
  const auto byte = static_cast<unsigned char>(text[at]);
  size_t lo = first_[byte], hi = first_[byte + 1];
  const AddedToken* best = nullptr;
  for (size_t n = 1; lo < hi; ++n) {
    if (tokens_[lo].content.size() == n) {  // the shortest of the range stands first in it
      if (tokens_[lo].normalized == normalized) best = &tokens_[lo];
      ++lo;
    }
    if (at + n >= text.size()) break;
    const auto c = static_cast<unsigned char>(text[at + n]);
    const auto byte_at = [n](const AddedToken& t) { return static_cast<unsigned char>(t.content[n]); };
    const auto begin = tokens_.begin() + static_cast<int64_t>(lo), end = tokens_.begin() + static_cast<int64_t>(hi);
    const auto low = std::partition_point(begin, end, [&](const AddedToken& t) { return byte_at(t) < c; });
    const auto high = std::partition_point(low, end, [&](const AddedToken& t) { return byte_at(t) <= c; });
    lo = static_cast<size_t>(low - tokens_.begin()), hi = static_cast<size_t>(high - tokens_.begin());
  }
  return best;
}

void AddedTokens::split_pass(std::string_view text, bool normalized, std::vector<Section>& out) const {
  size_t done = 0;  // text before it is in `out`
  for (size_t at = 0; at < text.size();) {
    const AddedToken* t = longest_at(text, at, normalized);
    const size_t end = t == nullptr ? at + 1 : at + t->content.size();
    if (t != nullptr && !(t->single_word && beside_words(text, at, end))) {
      size_t begin = at, stop = end;
      if (t->lstrip)
        for (size_t n; begin > done && (n = space_before(text, begin)) > 0 && begin - n >= done;) begin -= n;
      if (t->rstrip)
        for (size_t n; (n = space_at(text, stop)) > 0;) stop += n;
      if (begin > done) out.push_back({text.substr(done, begin - done), -1});
      out.push_back({text.substr(begin, stop - begin), t->id});
      done = stop;
      at = stop;
    } else {
      at = end;
    }
  }
  if (done < text.size()) out.push_back({text.substr(done), -1});
}

std::vector<Section> AddedTokens::split(std::string_view text) const {
  std::vector<Section> sections;
  if (any_[0]) split_pass(text, false, sections);
  else if (!text.empty()) sections.push_back({text, -1});
  if (!any_[1]) return sections;
  std::vector<Section> all;
  for (const Section& s : sections) {
    if (s.id >= 0) all.push_back(s);
    else split_pass(s.text, true, all);
  }
  return all;
}

}  // namespace irq
