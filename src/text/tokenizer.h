// Tokenizer: text <-> token ids, as the model's own tokenizer file says. It travels with the model (find_tokenizer).
#pragma once
#include <cstdint>
#include <memory>
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
  std::vector<int32_t> encode(std::string_view text, bool add_bos = false, Before before = Before::nothing) const;
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

 protected:
  virtual std::vector<int32_t> encode_text(std::string_view text, Before before) const = 0;
  // True if a text may be cut in front of any line break without changing its ids.
  virtual bool splits_at_newline() const = 0;
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

// Reads a SentencePiece model; the kind of file is seen from its content. Throws an Error that names the file.
// legacy: see Before::special. Needs a vocabulary with byte fallback if legacy is false.
std::unique_ptr<Tokenizer> open_tokenizer(const std::string& path, bool legacy = true);

// The tokenizer file that goes with a model: beside DIR/NAME.bin (or NAME.bits4.irq, or DIR/config.json) it is
// DIR/NAME.bits4.tokenizer.model, DIR/NAME.tokenizer.model or DIR/tokenizer.model, the first that exists; "" if none does.
std::string find_tokenizer(const std::string& model_path);
// find_tokenizer + open_tokenizer; throws an Error saying where it looked and what works without a tokenizer.
std::unique_ptr<Tokenizer> require_tokenizer(const std::string& model_path, bool legacy = true);

// Copies the tokenizer of `from_model` beside `to_model`, where a model works. Returns a line that says so or why not; ""
// when there is nothing to do.
std::string carry_tokenizer(const std::string& from_model, const std::string& to_model);

}  // namespace irq
