#include "src/text/vocabulary.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "src/core/check.h"
#include "src/core/file.h"
#include "src/text/piece_model.h"
#include "src/text/tokenizer_json.h"
#include "src/text/tokenizer_kinds.h"

namespace irq {
namespace {

using Json = nlohmann::ordered_json;

enum : int32_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };
constexpr int64_t kMostBytes = 256 << 20;

Error broken(const std::string& source, const std::string& expected, const std::string& found) {
  return Error(source + ": its vocabulary cannot be understood").line("expected", expected).line("found", found);
}

void check(const Vocabulary& v, const std::string& source) {
  const auto count = static_cast<long long>(v.tokens.size());
  if (v.model != "llama" && v.model != "gpt2")
    throw Error(source + ": a tokenizer this engine does not know: " + v.model)
        .line("expected", "llama (SentencePiece) or gpt2 (byte-level BPE)");
  if (v.tokens.empty()) throw broken(source, "tokens", "none");
  const auto same_length = [&](const char* what, size_t n, bool may_lack) {
    if (n != v.tokens.size() && !(n == 0 && may_lack))
      throw broken(source, strf("%s for each of the %s tokens", what, with_commas(count).c_str()),
                   with_commas(static_cast<long long>(n)));
  };
  same_length("a type", v.types.size(), v.model == "gpt2");
  if (v.model == "llama") same_length("a score", v.scores.size(), false);
  std::unordered_set<std::string> seen;
  for (const std::string& t : v.tokens) {
    if (t.empty() || !is_utf8(t))
      throw broken(source, "tokens in UTF-8, none empty", "'" + (t.empty() ? t : "\xEF\xBF\xBD") + "'");
    if (!seen.insert(t).second) throw broken(source, "every token once", "'" + t.substr(0, 60) + "' twice");
  }
  for (const int32_t id : {v.bos, v.eos, v.unknown, v.padding})
    if (id < -1 || id >= count) throw broken(source, strf("special tokens' ids below %lld", count), std::to_string(id));
}

int32_t type_of(const Vocabulary& v, size_t id) { return v.types.empty() ? kNormal : v.types[id]; }

// ---- to files ----

SideFile config_file(const Vocabulary& v) {
  Json config = Json::object();
  config["add_bos_token"] = v.add_bos;
  const std::pair<const char*, int32_t> named[] = {
      {"bos_token", v.bos}, {"eos_token", v.eos}, {"unk_token", v.unknown}, {"pad_token", v.padding}};
  for (const auto& [key, id] : named)
    if (id >= 0) config[key] = v.tokens[static_cast<size_t>(id)];
  if (!v.chat_template.empty() && is_utf8(v.chat_template)) config["chat_template"] = v.chat_template;
  config["clean_up_tokenization_spaces"] = false;
  config["tokenizer_class"] = v.model == "llama" ? "LlamaTokenizer" : "PreTrainedTokenizerFast";
  return {"tokenizer_config.json", config.dump(2) + "\n"};
}

Json split_json(const std::string& pattern) {
  return {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
}

Json pre_tokenizer_json(const std::string& name) {
  const auto byte_level = [](bool use_regex) -> Json {
    return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", use_regex}};
  };
  if (name == "smollm")
    return {{"type", "Sequence"},
            {"pretokenizers", Json::array({Json{{"type", "Digits"}, {"individual_digits", true}}, byte_level(true)})}};
  if (name == "llama-bpe")
    return {{"type", "Sequence"}, {"pretokenizers", Json::array({split_json(kLlama3Pattern), byte_level(false)})}};
  return byte_level(true);
}

Json post_processor_json(const Vocabulary& v) {
  if (!v.add_bos || v.bos < 0) return nullptr;
  const std::string& bos = v.tokens[static_cast<size_t>(v.bos)];
  const auto special = [&](int type) -> Json { return {{"SpecialToken", {{"id", bos}, {"type_id", type}}}}; };
  const auto text = [](const char* id, int type) -> Json { return {{"Sequence", {{"id", id}, {"type_id", type}}}}; };
  Json result = {{"type", "TemplateProcessing"}};
  result["single"] = Json::array({special(0), text("A", 0)});
  result["pair"] = Json::array({special(0), text("A", 0), special(1), text("B", 1)});
  result["special_tokens"][bos] = {{"id", bos}, {"ids", Json::array({v.bos})}, {"tokens", Json::array({bos})}};
  return result;
}

SideFile json_file(const Vocabulary& v, const std::string& source) {
  const std::string pre = name_of(named_pre_tokenizer(v.pre, source));
  Json added = Json::array(), vocab = Json::object(), merges = Json::array();
  auto& entries = vocab.get_ref<Json::object_t&>();  // appended to directly: [] looks through all that are there
  for (size_t id = 0; id < v.tokens.size(); ++id) {
    const int32_t type = type_of(v, id);
    entries.emplace_back(v.tokens[id], id);
    if (type != kControl && type != kUserDefined && type != kUnknown) continue;
    added.push_back({{"id", id},
                     {"content", v.tokens[id]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", type != kUserDefined}});
  }
  for (const std::string& m : v.merges) {
    if (!is_utf8(m)) throw broken(source, "merges in UTF-8", "other bytes");
    merges.push_back(m);
  }
  Json json = {{"version", "1.0"}, {"truncation", nullptr}, {"padding", nullptr}};
  json["added_tokens"] = std::move(added);
  json["normalizer"] = nullptr;
  json["pre_tokenizer"] = pre_tokenizer_json(pre);
  json["post_processor"] = post_processor_json(v);
  json["decoder"] = {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}};
  json["model"] = {{"type", "BPE"},
                   {"dropout", nullptr},
                   {"unk_token", nullptr},
                   {"continuing_subword_prefix", nullptr},
                   {"end_of_word_suffix", nullptr},
                   {"fuse_unk", false},
                   {"byte_fallback", false},
                   {"ignore_merges", pre == "llama-bpe"}};
  json["model"]["vocab"] = std::move(vocab);
  json["model"]["merges"] = std::move(merges);
  std::string content = json.dump(1) + "\n";
  parse_tokenizer_json(source, content);  // merges of tokens that are not there are found now, not at the first use
  return {"tokenizer.json", std::move(content)};
}

SideFile model_file(const Vocabulary& v, const std::string& source) {
  PieceModel m;
  m.unknown = v.unknown, m.bos = v.bos, m.eos = v.eos, m.padding = v.padding;
  m.add_dummy_prefix = v.add_space_prefix;
  int64_t bytes = 0;
  for (size_t id = 0; id < v.tokens.size(); ++id) {
    int32_t type = type_of(v, id);
    if (type < kNormal || type > kByte) throw broken(source, "token types from 1 to 6", std::to_string(type));
    if (type == kUnknown) m.unknown = static_cast<int32_t>(id);
    bytes += type == kByte;
    m.pieces.push_back({v.tokens[id], v.scores[id], type});
  }
  if (m.unknown < 0) throw broken(source, "a token of the type unknown", "none");
  for (size_t id = 0; id < m.pieces.size(); ++id) {  // SentencePiece wants exactly one, and BOS and EOS to be control
    int32_t& type = m.pieces[id].type;
    const auto i = static_cast<int32_t>(id);
    if (i == m.unknown) type = kUnknown;
    else if (type == kUnknown) throw broken(source, "one token of the type unknown", "several");
    else if (i == m.bos || i == m.eos) type = kControl;
  }
  if (bytes != 0 && bytes != 256) throw broken(source, "256 byte tokens or none", std::to_string(bytes));
  m.byte_fallback = bytes == 256;
  std::string content = write_piece_model(m);
  open_sentencepiece(source, content, {}, {});  // the library's own checks: now, not when the file is first used
  return {"tokenizer.model", std::move(content)};
}

// ---- from files ----

int32_t id_of(const Vocabulary& v, const std::string& spelled, int32_t otherwise) {
  const auto it = spelled.empty() ? v.tokens.end() : std::find(v.tokens.begin(), v.tokens.end(), spelled);
  return it == v.tokens.end() ? otherwise : static_cast<int32_t>(it - v.tokens.begin());
}

Error inexpressible(const std::string& path, const std::string& reason) {
  return Error(path + ": a tokenizer that GGUF cannot express").line("reason", reason);
}

void from_model(Vocabulary& v, const std::string& path, const std::string& content) {
  const PieceModel m = read_piece_model(path, content);
  if (m.pieces.empty()) throw Error(path + ": not a SentencePiece model").line("found", "no pieces");
  if (m.algorithm != 2) throw inexpressible(path, "a SentencePiece model that is no BPE");
  if (m.normalizes || m.remove_extra_whitespaces)
    throw inexpressible(path, "a SentencePiece model that normalizes its text");
  v.model = "llama", v.pre = "default";
  v.bos = m.bos, v.eos = m.eos, v.unknown = m.unknown, v.padding = m.padding;
  v.add_space_prefix = m.add_dummy_prefix;
  v.add_bos = v.bos >= 0;
  for (const PieceModel::Piece& p : m.pieces) {
    v.tokens.push_back(p.text);
    v.scores.push_back(p.score);
    v.types.push_back(p.type);
  }
}

// llama.cpp merges by the score of the merged token, tokenizer.json by the rank of the pair: the same where all pairs that
// give one token stand together.
void scores_from_ranks(Vocabulary& v, const TokenizerJson& json, const std::string& path) {
  v.scores.assign(v.tokens.size(), 0);
  int32_t last = -1;
  float score = 0;
  for (const Merges::Merge& m : json.merges) {
    if (m.result != last && v.scores[m.result] != 0) throw inexpressible(path, "merges that no score per token orders");
    if (m.result != last) score -= 1;
    v.scores[m.result] = score;
    last = m.result;
  }
  // Characters are never the result of a merge; behind all others, as SentencePiece orders them.
  for (size_t id = 0; id < v.tokens.size(); ++id)
    if (v.types[id] == kNormal && v.scores[id] == 0) v.scores[id] = score -= 1;
}

void from_json(Vocabulary& v, const std::string& path, const std::string& content) {
  const TokenizerJson json = parse_tokenizer_json(path, content);
  v.tokens = json.tokens;
  v.types.assign(v.tokens.size(), kNormal);
  for (size_t id = 0; id < v.tokens.size(); ++id)
    if (v.tokens[id].empty()) v.tokens[id] = strf("[PAD%zu]", id), v.types[id] = kUnused;
  for (const AddedToken& t : json.added.tokens()) v.types[t.id] = t.special ? kControl : kUserDefined;
  v.unknown = json.unknown, v.bos = json.template_bos;
  v.add_bos = json.template_bos >= 0;
  if (json.byte_level) {
    v.model = "gpt2";
    v.pre = name_of(json.pre_tokenizer);
    if (v.pre.empty()) throw inexpressible(path, "its pre-tokenizer has no name in GGUF that this engine knows");
    if (json.ignore_merges != (v.pre == "llama-bpe"))
      throw inexpressible(path, strf("ignore_merges with the pre-tokenizer %s", v.pre.c_str()));
    v.merges.reserve(json.merges.size());
    for (const Merges::Merge& m : json.merges) v.merges.push_back(v.tokens[m.left] + " " + v.tokens[m.right]);
    return;
  }
  if (json.cut_at_spaces || json.ignore_merges || !json.byte_fallback)
    throw inexpressible(path, "its way of splitting text is not SentencePiece's");
  v.model = "llama", v.pre = "default";
  v.add_space_prefix = json.prefix != SpacePrefix::none;
  if (v.unknown >= 0) v.types[v.unknown] = kUnknown;
  for (int b = 0; b < 256; ++b)
    if (const auto it = json.ids.find(strf("<0x%02X>", b)); it != json.ids.end()) v.types[it->second] = kByte;
  scores_from_ranks(v, json, path);
}

}  // namespace

std::vector<SideFile> tokenizer_files(const Vocabulary& v, const std::string& source) {
  check(v, source);
  return {v.model == "llama" ? model_file(v, source) : json_file(v, source), config_file(v)};
}

Vocabulary read_vocabulary(const std::string& path) {
  const std::string content = read_text_file(path, kMostBytes);
  Vocabulary v;
  if (is_tokenizer_json(content)) from_json(v, path, content);
  else from_model(v, path, content);
  const TokenizerConfig config = read_tokenizer_config(path);
  v.bos = id_of(v, config.bos, v.bos);
  v.eos = id_of(v, config.eos, v.eos);
  v.unknown = id_of(v, config.unknown, v.unknown);
  v.padding = id_of(v, config.padding, v.padding);
  v.add_bos = v.bos >= 0 && config.add_bos.value_or(v.add_bos);
  v.chat_template = config.chat_template;
  return v;
}

}  // namespace irq
