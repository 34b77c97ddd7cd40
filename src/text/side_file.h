// A small file that belongs beside a model: tokenizer.model, tokenizer.json, tokenizer_config.json, chat_template.jinja.
#pragma once
#include <string>

namespace irq {

// The tokenizer's files that travel with a converted model, under the names that find_tokenizer() looks for; the template last.
inline constexpr const char* kSideFiles[] = {"tokenizer.model", "tokenizer.json", "tokenizer_config.json",
                                             "chat_template.jinja"};

struct SideFile {
  std::string name, content;  // the whole file's bytes
};

}  // namespace irq
