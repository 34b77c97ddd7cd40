// The implementations behind open_tokenizer(), one function each. content: the whole file.
#pragma once
#include <memory>
#include <optional>
#include <string>

#include "src/text/tokenizer.h"
#include "src/text/tokenizer_config.h"

namespace irq {

std::unique_ptr<Tokenizer> open_sentencepiece(const std::string& path, const std::string& content,
                                              std::optional<bool> legacy, const TokenizerConfig& config);
std::unique_ptr<Tokenizer> open_tokenizer_json(const std::string& path, const std::string& content,
                                               std::optional<bool> legacy, const TokenizerConfig& config);

}  // namespace irq
