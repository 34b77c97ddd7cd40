// The Tokenizer of a tokenizer.json: byte-level BPE, and LLaMA's BPE where no SentencePiece model is at hand.
#include <algorithm>

#include "src/core/check.h"
#include "src/text/piece_space.h"
#include "src/text/tokenizer_json.h"
#include "src/text/tokenizer_kinds.h"

namespace irq {
namespace {

class JsonTokenizer final : public Tokenizer {
 public:
  JsonTokenizer(const std::string& path, TokenizerJson json, std::optional<bool> legacy, const TokenizerConfig& config)
      : json_(std::move(json)), merges_(json_.merges), chat_template_(config.chat_template) {
    json_.merges.clear();
    for (const AddedToken& t : json_.added.tokens())
      if (!t.special) plain_.add(t);
    plain_.prepare();
    learn_bytes();
    bos_ = token(path, config, "bos_token", config.bos, json_.template_bos);
    eos_ = token(path, config, "eos_token", config.eos, -1);
    adds_bos_ = bos_ >= 0 && config.add_bos.value_or(json_.template_bos >= 0);
    if (!json_.byte_level && legacy && json_.prefix != SpacePrefix::none)
      json_.prefix = *legacy ? SpacePrefix::always : SpacePrefix::first;
    learn_newline();
  }

  std::string bytes_of(int32_t id) const override {
    return id >= 0 && id < static_cast<int32_t>(bytes_.size()) ? bytes_[id] : std::string();
  }
  bool has_dummy_space() const override { return !json_.byte_level && json_.prefix != SpacePrefix::none; }
  int32_t bos() const override { return bos_; }
  int32_t eos() const override { return eos_; }
  int64_t vocab_size() const override { return static_cast<int64_t>(json_.tokens.size()); }
  std::string describe() const override {
    return strf("%s, %s tokens", json_.byte_level ? "byte-level BPE" : "BPE with byte fallback",
                with_commas(vocab_size()).c_str());
  }
  bool adds_bos() const override { return adds_bos_; }
  int32_t special_id(std::string_view spelled) const override {
    return plain_.find(spelled) >= 0 ? -1 : json_.added.find(spelled);
  }
  std::string chat_template() const override { return chat_template_; }

 protected:
  std::vector<int32_t> encode_text(std::string_view text, Before before) const override {
    return encode_sections(plain_.split(text), before);
  }
  std::vector<int32_t> encode_special_text(std::string_view text, Before before) const override {
    return encode_sections(json_.added.split(text), before);
  }
  bool splits_at_newline() const override { return false; }
  bool splits_before(std::string_view text, size_t at) const override {
    if (!newline_cuts_) return false;
    if (!json_.byte_level) return true;
    const char c = at > 0 ? text[at - 1] : '\0';
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  }

 private:
  std::vector<int32_t> encode_sections(const std::vector<Section>& sections, Before before) const {
    std::vector<int32_t> ids;
    for (const Section& s : sections) {
      if (s.id >= 0) ids.push_back(s.id), before = Before::special;
      else if (json_.byte_level) encode_byte_level(s.text, ids);
      else encode_llama(s.text, before, ids);
    }
    return ids;
  }

  void encode_byte_level(std::string_view text, std::vector<int32_t>& ids) const {
    std::vector<std::unique_ptr<std::string>> spare;
    std::vector<int32_t> symbols;
    for (const std::string_view piece : json_.pre_tokenizer.split(text, spare)) {
      if (cache_.find(piece, ids)) continue;
      symbols.clear();
      const auto whole = json_.ignore_merges ? json_.ids.find(byte_level_encode(piece)) : json_.ids.end();
      if (whole != json_.ids.end()) {
        symbols.push_back(whole->second);
      } else {
        for (const char c : piece) push_known(byte_id_[static_cast<uint8_t>(c)], symbols);
        merges_.apply(symbols);
      }
      cache_.insert(piece, symbols.data(), symbols.size());
      ids.insert(ids.end(), symbols.begin(), symbols.end());
    }
  }

  // A symbol that the vocabulary lacks is the unknown token; where there is none either, it vanishes.
  void push_known(int32_t id, std::vector<int32_t>& symbols) const {
    if (id >= 0) symbols.push_back(id);
    else if (json_.unknown >= 0 && !(json_.fuse_unknown && !symbols.empty() && symbols.back() == json_.unknown))
      symbols.push_back(json_.unknown);
  }

  void encode_llama(std::string_view text, Before before, std::vector<int32_t>& ids) const {
    const bool wanted = json_.prefix == SpacePrefix::always  ? before != Before::text
                        : json_.prefix == SpacePrefix::first ? before == Before::nothing
                                                             : false;
    std::string spaced = with_piece_spaces(std::string(text));
    if (wanted && !(json_.prefix_only_where_missing && spaced.rfind(kPieceSpace, 0) == 0))
      spaced.insert(0, kPieceSpace);
    std::string_view rest = spaced;
    while (!rest.empty()) {
      size_t end = json_.cut_at_spaces ? rest.find(kPieceSpace, 1) : std::string_view::npos;
      end = std::min(end, rest.size());
      encode_llama_piece(rest.substr(0, end), ids);
      rest.remove_prefix(end);
    }
  }
  void encode_llama_piece(std::string_view piece, std::vector<int32_t>& ids) const {
    const auto whole = json_.ignore_merges ? json_.ids.find(std::string(piece)) : json_.ids.end();
    if (whole != json_.ids.end()) return ids.push_back(whole->second);
    std::vector<int32_t> symbols;
    for (size_t at = 0; at < piece.size();) {
      const auto n = static_cast<size_t>(std::max(utf8_length(piece.substr(at)), 1));
      const auto it = json_.ids.find(std::string(piece.substr(at, n)));
      if (it != json_.ids.end()) symbols.push_back(it->second);
      else if (json_.byte_fallback)
        for (size_t i = 0; i < n; ++i) push_known(byte_id_[static_cast<uint8_t>(piece[at + i])], symbols);
      else push_known(-1, symbols);
      at += n;
    }
    merges_.apply(symbols);
    ids.insert(ids.end(), symbols.begin(), symbols.end());
  }

  // Which token each byte is, and which bytes each token is.
  void learn_bytes() {
    for (int b = 0; b < 256; ++b) {
      const auto it = json_.ids.find(json_.byte_level ? byte_level_char(static_cast<uint8_t>(b)) : strf("<0x%02X>", b));
      byte_id_[b] = it == json_.ids.end() ? -1 : it->second;
    }
    bytes_.resize(json_.tokens.size());
    for (size_t id = 0; id < bytes_.size(); ++id)
      bytes_[id] = json_.byte_level ? byte_level_decode(json_.tokens[id]) : without_piece_spaces(json_.tokens[id]);
    if (!json_.byte_level)
      for (int b = 0; b < 256; ++b)
        if (byte_id_[b] >= 0) bytes_[byte_id_[b]] = std::string(1, static_cast<char>(b));
    if (!json_.byte_level && json_.unknown >= 0) bytes_[json_.unknown].clear();
    for (const AddedToken& t : json_.added.tokens()) bytes_[t.id] = t.special ? "" : t.content;
  }
  // May a long text be cut at line breaks? Not if some token reaches over one.
  void learn_newline() {
    newline_cuts_ = json_.byte_level ? json_.pre_tokenizer.splits_after_letter() : true;
    for (const AddedToken& t : plain_.tokens())
      if (t.content.find('\n') != std::string::npos || t.lstrip || t.rstrip) newline_cuts_ = false;
    if (json_.byte_level) return;
    for (const auto& [token, id] : json_.ids)
      if (token.size() > 1 && token.find('\n') != std::string::npos) newline_cuts_ = false;
  }
  int32_t token(const std::string& path, const TokenizerConfig& config, const char* key, const std::string& spelled,
                int32_t otherwise) const {
    if (spelled.empty()) return otherwise;
    if (const int32_t id = json_.added.find(spelled); id >= 0) return id;
    if (const auto it = json_.ids.find(spelled); it != json_.ids.end()) return it->second;
    throw Error(config.path + ": names a token that the tokenizer does not have")
        .line("found", strf("\"%s\": \"%s\"", key, spelled.substr(0, 60).c_str()))
        .line("likely", "it is another model's than " + path);
  }

  TokenizerJson json_;
  Merges merges_;
  AddedTokens plain_;  // those that are not special: recognised in any text
  std::array<int32_t, 256> byte_id_{};
  std::vector<std::string> bytes_;
  int32_t bos_ = -1, eos_ = -1;
  bool adds_bos_ = false, newline_cuts_ = false;
  std::string chat_template_;
  PieceCache cache_;
};

}  // namespace

std::unique_ptr<Tokenizer> open_tokenizer_json(const std::string& path, const std::string& content,
                                               std::optional<bool> legacy, const TokenizerConfig& config) {
  return std::make_unique<JsonTokenizer>(path, parse_tokenizer_json(path, content), legacy, config);
}

}  // namespace irq
