// llm.c's evaluation files (magic 20240522, version 1): multiple-choice questions that are tokenized already. 256 int32
// (magic, version, count of examples, bytes of the longest), then each example as uint16: 65535, its bytes, its index, the
// right choice, the number of choices (4), the context's length and ids, then the length and ids of each choice.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace irq {

struct EvalQuestion {
  int32_t index = 0, label = 0;  // label: the right choice, from 0
  std::vector<int32_t> context;
  std::vector<std::vector<int32_t>> choices;
};

// True if the file begins as an evaluation file does.
bool is_eval_file(const std::string& content);
// content: the whole file. Throws an Error if the version is unknown or any count disagrees with the file's size.
std::vector<EvalQuestion> parse_eval_file(const std::string& path, const std::string& content);

}  // namespace irq
