// Hugging Face's tokenizer.json, read: the two kinds of tokenizer that LLaMA-architecture models bring in this form.
//   byte-level BPE (GPT-2, LLaMA-3, SmolLM2)    every byte is a symbol, pieces are cut by regular expressions
//   LLaMA's BPE (LLaMA-1 and 2 made "fast")     every character is a symbol, spaces are U+2581, unknown ones become bytes
// Whatever would change ids and is not understood (another model type, a normalizer, a pre-tokenizer) is refused by name.
#pragma once
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "src/text/added_tokens.h"
#include "src/text/bpe.h"
#include "src/text/pretokenize.h"

namespace irq {

enum class SpacePrefix { none, always, first };  // where a text gets U+2581 in front: never, every section, the first

struct TokenizerJson {
  std::vector<std::string> tokens;               // by id, added ones included; "" where no token has the id
  std::unordered_map<std::string, int32_t> ids;  // of the model's own vocabulary
  std::vector<Merges::Merge> merges;             // by rank
  AddedTokens added;
  int32_t unknown = -1;
  int32_t template_bos = -1;  // the token that the post-processor puts in front of a text, -1: none
  bool byte_level = false, byte_fallback = false, fuse_unknown = false, ignore_merges = false;
  PreTokenizer pre_tokenizer;  // byte-level only
  // LLaMA's BPE only
  SpacePrefix prefix = SpacePrefix::none;
  bool prefix_only_where_missing = false;  // Metaspace: a text that begins with a space keeps it as its only one
  bool cut_at_spaces = false;              // Metaspace with split: no token reaches over a space from the left
};

// A tokenizer file of either kind: is it this one? (A SentencePiece model never begins so.)
bool is_tokenizer_json(const std::string& content);
// content: the whole file. Throws an Error with file and reason.
TokenizerJson parse_tokenizer_json(const std::string& path, const std::string& content);

}  // namespace irq
