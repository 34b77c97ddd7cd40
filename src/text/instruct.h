// Data files -> tokenized examples. The form is recognised from the content:
//   Alpaca JSON array or JSONL {instruction, input, output} | JSONL {input, output} | JSONL {messages: [{role, content}]} |
//   plain text | llm.c token files (20240520 v1 uint16, 20240801 v7 uint32)
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "src/ops/batch.h"
#include "src/text/records.h"
#include "src/text/tokenizer.h"

namespace irq {

// Alpaca's prompt, "... ### Response: " with a trailing space, as the QLoRA code has it (Stanford's has none).
std::string alpaca_prompt(const std::string& instruction, const std::string& input);

// The template for chat messages is Alpaca's, made longer: the system message (default: Alpaca's first sentences) and each
// user turn as "### Instruction:\n{user}\n\n### Response: ", then the assistant's answer and EOS, then "\n\n" and the next
// turn. A conversation of one turn is exactly the Alpaca example without input. This is what stands before an answer:
std::string chat_prompt(const std::string& system, const std::string& user, bool first_turn);

// Every example begins with BOS where the tokenizer's own default adds one (LLaMA), and without where it adds none (SmolLM2,
// whose BOS is <|im_start|>): what such a model saw in front of a text when it was trained.
struct DataOptions {
  int64_t source_len = 384;  // ids of a prompt that are kept, BOS included
  int64_t target_len = 128;  // ids of an answer that are kept, EOS included (a longer answer loses its EOS)
  int64_t window = 512;      // plain text and token files: rows (predictions) per example
  int64_t stride = 0;        // from one example to the next, 0 = window; below window, the overlap is context only
  int64_t vocab = 0;         // the model's; ids beyond it are an Error. 0 = the tokenizer's
};

struct LoadedData {
  std::string path;
  DataForm form = DataForm::alpaca;
  std::vector<Example> examples;
  std::vector<int64_t>
      chars;  // per example: characters of prompt and answer (group_by_length); ids for text and tokens
  int64_t truncated_sources = 0, truncated_targets = 0;  // a conversation that is cut counts as a target
  int64_t dropped = 0;                                   // examples without any trainable token
  int64_t rows = 0, labels = 0;                          // over all examples: rows computed, tokens scored
  std::vector<std::string> warnings;
  // "train.json: 4,000 examples (Alpaca instructions), 318,204 tokens, 41,003 scored; 3 prompts and 12 answers cut"
  std::string describe() const;
};

// tokenizer may be null for token files. Every example keeps at least one trainable token; a file without any is an Error.
LoadedData load_data(const std::string& path, const Tokenizer* tokenizer, const DataOptions& options);

// A stream of ids cut into examples of at most `window` rows; each id but the first is scored exactly once.
std::vector<Example> cut_windows(const std::vector<int32_t>& stream, int64_t window, int64_t stride);

// Takes `held_out` examples, chosen by the seed alone, out of data: {the rest, the held out}, both in the file's order.
std::pair<LoadedData, LoadedData> split_holdout(const LoadedData& data, int64_t held_out, uint64_t seed);

}  // namespace irq
