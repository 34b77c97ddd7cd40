// Small byte-level BPE tokenizers for tests.
#pragma once
#include <algorithm>
#include <initializer_list>
#include <nlohmann/json.hpp>

#include "src/core/file.h"
#include "src/text/piece_model.h"
#include "tests/text_fixtures.h"

namespace irq {

using Json = nlohmann::json;
using Ids = std::vector<int32_t>;

inline std::string golden_path(const std::string& file) {
  return (std::filesystem::path(__FILE__).parent_path() / "golden" / file).string();
}

// The golden's tokenizer: 959 tokens, <|endoftext|> 0, <|im_start|> 1, <|im_end|> 2.
inline const Tokenizer& tiny_bpe() {
  static const auto tokenizer = open_tokenizer(golden_path("bpe_tokenizer.json"));
  return *tokenizer;
}

// Four symbols and two merges, with values put in at JSON pointers.
inline Json small_json(std::initializer_list<std::pair<const char*, Json>> changes) {
  Json json =
      Json::parse(R"({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "aba": 3}, "merges": ["a b", "ab a"]},
      "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}})");
  for (const auto& [pointer, value] : changes) json[Json::json_pointer(pointer)] = value;
  return json;
}

inline std::unique_ptr<Tokenizer> open_json(const Json& json, const std::string& config = "") {
  const TempFolder folder;
  if (!config.empty()) folder.write("tokenizer_config.json", config);
  return open_tokenizer(folder.write("tokenizer.json", json.dump()));
}

inline const char* const kHardTexts[] = {"A dog is a kind of animal.",
                                         " leading and  double   spaces ",
                                         "line\nbreak\n\nend\n",
                                         "caf\xC3\xA9 \xE6\x97\xA5\xE6\x9C\xAC \xF0\x9F\x98\x80!",
                                         "\ttabs\t 1999, 3.14",
                                         "<s> is text</s><unk>x",
                                         "",
                                         " ",
                                         "\xE2\x96\x81x \xE2\x96\x81"};

// LLaMA's tokenizer.json of a SentencePiece model: a merge for every way to make a piece of two others, by score.
inline Json llama_json(const std::string& model_path) {
  const PieceModel m = read_piece_model(model_path, read_text_file(model_path));
  std::map<std::string, size_t> ids;
  for (size_t i = 0; i < m.pieces.size(); ++i) ids[m.pieces[i].text] = i;
  struct Merge {
    float score;
    size_t left, right;
  };
  std::vector<Merge> merges;
  for (const auto& p : m.pieces)
    for (size_t cut = 1; p.type == 1 && cut < p.text.size(); ++cut)
      if (const auto a = ids.find(p.text.substr(0, cut)), b = ids.find(p.text.substr(cut));
          a != ids.end() && b != ids.end())
        merges.push_back({p.score, a->second, b->second});
  std::stable_sort(merges.begin(), merges.end(), [](const Merge& a, const Merge& b) {
    return std::tuple(-a.score, a.left, a.right) < std::tuple(-b.score, b.left, b.right);
  });
  Json json = Json::parse(
      R"({"model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "merges": []},
      "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"},
                     {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
      "pre_tokenizer": null, "added_tokens": []})");
  for (const auto& [text, id] : ids) json["model"]["vocab"][text] = id;
  for (const Merge& x : merges) json["model"]["merges"].push_back({m.pieces[x.left].text, m.pieces[x.right].text});
  for (const char* special : {"<unk>", "<s>", "</s>"})
    json["added_tokens"].push_back(
        {{"id", ids[special]}, {"content", special}, {"special", true}, {"normalized", false}});
  return json;
}

}  // namespace irq
