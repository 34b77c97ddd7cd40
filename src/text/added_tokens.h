// Tokens that are found in a text before anything else looks at it: special tokens, and added or user-defined ones.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace irq {

struct AddedToken {
  std::string content;
  int32_t id = -1;
  bool special = true;
  bool normalized = false;              // looked for after those that are not (tokenizer.json's two passes)
  bool single_word = false;             // only where no letter, digit or _ stands beside it
  bool lstrip = false, rstrip = false;  // takes the white space before, after it along
};

// A part of a text: a token (id >= 0), or text in between (id -1, never empty).
struct Section {
  std::string_view text;
  int32_t id = -1;
};

class AddedTokens {
 public:
  void add(AddedToken token);  // an empty one is ignored; of two with the same spelling the last counts
  void prepare();              // once, after the last add()
  // Leftmost first, of several at one place the longest. The text that is found once is not looked at again.
  std::vector<Section> split(std::string_view text) const;
  int32_t find(std::string_view spelled) const;  // its id, -1 if there is none
  const std::vector<AddedToken>& tokens() const { return tokens_; }

 private:
  void split_pass(std::string_view text, bool normalized, std::vector<Section>& out) const;
  const AddedToken* longest_at(std::string_view text, size_t at, bool normalized) const;

  std::vector<AddedToken> tokens_;  // sorted by content
  uint32_t first_[257] = {};        // tokens_ whose first byte is b: [first_[b], first_[b + 1])
  bool any_[2] = {};                // is there a token of this pass?
};

// Unicode's White_Space that begins (ends) at text[at] (at text[at - 1]): its length in bytes, 0 if there is none.
size_t space_at(std::string_view text, size_t at);
size_t space_before(std::string_view text, size_t at);

}  // namespace irq
