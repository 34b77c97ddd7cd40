// What tokenizer_config.json says about a tokenizer, as far as this engine needs it.
#pragma once
#include <optional>
#include <string>

namespace irq {

struct TokenizerConfig {
  std::string path;  // of the file that was read, "" if there is none
  std::optional<bool> legacy, add_bos;
  std::string bos, eos, unknown, padding;  // as spelled, "" where nothing is said
  std::string chat_template;
};

// Reads the tokenizer_config.json beside a tokenizer file (and, beside one of exactly that name, chat_template.jinja, where newer
// models keep the template); nothing is set where there is none. Throws an Error if the file is there but cannot be understood.
TokenizerConfig read_tokenizer_config(const std::string& tokenizer_path);

}  // namespace irq
