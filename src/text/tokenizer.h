// Tokenizer: text <-> token ids, as the model's own tokenizer file says. It travels with the model (find_tokenizer).
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace irq {

// What stands before a text decides whether SentencePiece puts its dummy space in front of the text's first word.
enum class Before {
  nothing,  // the text is the start of a string: the dummy space, if the tokenizer has one
  special,  // a special token (BOS, EOS) stands before it in the same string: legacy tokenizers (LLaMA-1) add the dummy
            // space here as well, LLaMA-2's (legacy = false) do not
  text,     // the text goes on from a piece of text that was encoded before: never a dummy space
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Empty text -> no ids (with add_bos: BOS alone). Special tokens spelled out in the text are plain characters.
  // add_bos puts BOS in front and changes nothing else. Thread-safe.
  // (Added tokens that are not special, SentencePiece's user-defined pieces, are recognised everywhere.)
  std::vector<int32_t> encode(std::string_view text, bool add_bos = false, Before before = Before::nothing) const;
  // The same with special tokens spelled out in the text read as these tokens, as chat templates need it and as
  // transformers' encode(text, add_special_tokens=False) does it.
  std::vector<int32_t> encode_with_specials(std::string_view text, Before before = Before::nothing) const;
  // The same ids for a text of any size: encoded in parallel chunks, cut where no piece can reach across.
  std::vector<int32_t> encode_long(std::string_view text, bool add_bos = false) const;
  // Special tokens vanish, the dummy space in front vanishes, bytes that are not UTF-8 become U+FFFD each.
  std::string decode(const std::vector<int32_t>& ids) const;

  // The bytes that id stands for, spaces as spaces; "" for a special token. May be a part of a UTF-8 character.
  virtual std::string bytes_of(int32_t id) const = 0;
  // True if the first text token's leading space is no part of the text (SentencePiece's dummy prefix).
  virtual bool has_dummy_space() const = 0;
  virtual int32_t bos() const = 0;  // -1: the vocabulary has none
  virtual int32_t eos() const = 0;
  virtual int64_t vocab_size() const = 0;
  virtual std::string describe() const = 0;  // "SentencePiece, 32,000 pieces"

  // True if the tokenizer's own default puts BOS in front of a text: "add_bos_token" of tokenizer_config.json where it is
  // given, else the post-processor of tokenizer.json; a SentencePiece model that has a BOS adds it. LLaMA: true;
  // SmolLM2: false. Training examples, --prompt and plain text get a BOS exactly where this is true.
  virtual bool adds_bos() const { return bos() >= 0; }
  // Every token that ends an answer: EOS (if there is one) and the known end-of-turn tokens of the vocabulary.
  virtual std::vector<int32_t> end_ids() const;
  // The id of a special token by its spelling ("<|im_start|>"), -1 if the vocabulary has no such special token.
  virtual int32_t special_id(std::string_view) const { return -1; }
  // The model's own chat template, as its tokenizer_config.json has it; "" if there is none.
  virtual std::string chat_template() const { return ""; }

 protected:
  virtual std::vector<int32_t> encode_text(std::string_view text, Before before) const = 0;
  virtual std::vector<int32_t> encode_special_text(std::string_view text, Before before) const {
    return encode_text(text, before);
  }
  // True if a text may be cut in front of any line break without changing its ids.
  virtual bool splits_at_newline() const = 0;
  // The same for the one line break at text[at].
  virtual bool splits_before(std::string_view text, size_t at) const {
    return static_cast<void>(text), static_cast<void>(at), splits_at_newline();
  }
};

// Decodes token by token; gives out only whole UTF-8 characters. decode() = all push() results + finish().
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}
  std::string push(int32_t id);  // the text that became complete with this token, often ""
  std::string finish();          // what is left: U+FFFD for each byte of a character that never ended

 private:
  const Tokenizer& tokenizer_;
  std::string pending_;  // the beginning of a character, at most 3 bytes
  bool started_ = false;
};

int64_t count_code_points(std::string_view utf8);
bool is_utf8(std::string_view bytes);
// Length of the UTF-8 character that s (not empty) begins with: 1..4; 0 if s is the beginning of a longer one; -1 if it
// cannot be one.
int utf8_length(std::string_view s);

// Reads a SentencePiece model or a tokenizer.json (byte-level BPE, or LLaMA's BPE); the kind is seen from the content. The
// tokenizer_config.json beside it (of the same name, "tokenizer.model" replaced) says which tokens are BOS and EOS, whether
// BOS is added, and the chat template. Throws an Error that names the file and, where a tokenizer is of a kind that would
// not be reproduced exactly, the reason.
// legacy (see Before::special): absent = what tokenizer_config.json says under "legacy", true where it says nothing; a
// tokenizer.json says it itself. Needs a vocabulary with byte fallback if false. No byte-level BPE has it.
std::unique_ptr<Tokenizer> open_tokenizer(const std::string& path, std::optional<bool> legacy = {});

// The tokenizer file that goes with a model: beside DIR/NAME.bin (or NAME.bits4.irq, or DIR/config.json) it is
// DIR/NAME.bits4.tokenizer.model, .json, DIR/NAME.tokenizer.model, .json, DIR/tokenizer.model or .json, the first that
// exists (so a .model wins over the .json of the same name); "" if none does.
std::string find_tokenizer(const std::string& model_path);
// The tokenizer_config.json that belongs to a tokenizer file; it need not exist. "" if the file has another name.
std::string tokenizer_config_path(const std::string& tokenizer_path);
std::string chat_template_path(const std::string& tokenizer_path);  // the same of chat_template.jinja
// The files that are read for it: the tokenizer, its tokenizer_config.json, a chat_template.jinja; those that exist.
std::vector<std::string> tokenizer_paths(const std::string& model_path);
// find_tokenizer + open_tokenizer; throws an Error saying where it looked and what works without a tokenizer.
std::unique_ptr<Tokenizer> require_tokenizer(const std::string& model_path, std::optional<bool> legacy = {});

// Copies the tokenizer of `from_model`, with its tokenizer_config.json, beside `to_model`, where a model works. Returns a
// line that says so or why not; "" when there is nothing to do.
std::string carry_tokenizer(const std::string& from_model, const std::string& to_model);

}  // namespace irq
