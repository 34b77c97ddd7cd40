// A vocabulary as GGUF files carry it, and the tokenizer files it stands for: both directions.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "src/text/side_file.h"

namespace irq {

struct Vocabulary {
  std::string model;                // "llama": SentencePiece; "gpt2": byte-level BPE
  std::string pre;                  // pre-tokenizer of a byte-level BPE: "smollm", "llama-bpe", "gpt-2", ...
  std::vector<std::string> tokens;  // as GGUF spells them
  std::vector<float> scores;        // SentencePiece only
  std::vector<int32_t> types;       // llama.cpp's: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
  std::vector<std::string> merges;  // byte-level BPE only: "a b"
  int32_t bos = -1, eos = -1, unknown = -1, padding = -1;
  bool add_bos = false, add_space_prefix = true;
  std::string chat_template;
};

// tokenizer.model, or tokenizer.json, and tokenizer_config.json: what open_tokenizer() (and transformers) reads back with
// the same ids. `source` names the vocabulary's file in errors: a model or pre-tokenizer that is not known, lists of unequal
// length, ids outside the vocabulary, tokens that are listed twice.
std::vector<SideFile> tokenizer_files(const Vocabulary& vocabulary, const std::string& source);
// The vocabulary of a tokenizer file (tokenizer.model or tokenizer.json, with its tokenizer_config.json beside it). Throws an
// Error where GGUF cannot express the tokenizer: an unnamed pre-tokenizer, a unigram or normalizing SentencePiece model.
// LLaMA's BPE in a tokenizer.json becomes "llama" with its merges' ranks as scores.
Vocabulary read_vocabulary(const std::string& tokenizer_path);

}  // namespace irq
