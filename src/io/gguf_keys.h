// Typed access to a GGUF file's key-value pairs; every Error names the file, the key and what stands there.
#pragma once
#include <string>

#include "src/core/check.h"
#include "src/io/gguf.h"
#include "src/text/vocabulary.h"

namespace irq {

class GgufKeys {
 public:
  explicit GgufKeys(const GgufReader& file) : file_(file) {}
  bool has(const std::string& key) const { return file_.find(key) != nullptr; }
  // Whole numbers. An array of equal numbers (one per layer) counts as that number.
  int64_t integer(const std::string& key) const;  // must be there
  int64_t integer(const std::string& key, int64_t fallback) const;
  double number(const std::string& key, double fallback) const;  // f32 0.1 -> 0.1: the shortest decimal it stands for
  std::string text(const std::string& key, const std::string& fallback) const;
  bool flag(const std::string& key, bool fallback) const;
  const GgufValue* array(const std::string& key, GgufType type) const;  // null if it is not there
  Error wrong(const std::string& key, const std::string& expected) const;

 private:
  const GgufReader& file_;
};

// The vocabulary of the tokenizer.ggml.* pairs, its counts and ids checked. Its `model` is "" where the file has no
// vocabulary; else as the file spells it ("llama", "gpt2", or a kind that tokenizer_files() does not know).
Vocabulary gguf_vocabulary(const GgufReader& file);

}  // namespace irq
