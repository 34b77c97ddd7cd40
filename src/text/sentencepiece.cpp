// The SentencePiece implementation of Tokenizer (LLaMA-1 and 2), through libsentencepiece.
#include <sentencepiece_processor.h>

#include "src/core/check.h"
#include "src/text/added_tokens.h"
#include "src/text/piece_space.h"
#include "src/text/tokenizer_kinds.h"

namespace irq {
namespace {

constexpr const char* kBarrier =
    "\xEE\x80\x80";  // U+E000, in nobody's vocabulary: spelled in bytes, merges with nothing
constexpr const char* kUnknown = " \xE2\x81\x87 ";  // U+2047 between spaces, as SentencePiece itself writes <unk>

class SentencePieceTokenizer final : public Tokenizer {
 public:
  SentencePieceTokenizer(const std::string& path, const std::string& model, bool legacy, const TokenizerConfig& config)
      : legacy_(legacy), adds_bos_(config.add_bos.value_or(true)), chat_template_(config.chat_template) {
    if (const auto status = processor_.LoadFromSerializedProto(model); !status.ok() || processor_.GetPieceSize() == 0)
      throw Error(path + ": not a SentencePiece model")
          .line("found", strf("%s bytes; %s", with_commas(static_cast<long long>(model.size())).c_str(),
                              status.ok() ? "no pieces" : status.ToString().c_str()))
          .line("likely", "an interrupted download, a Git LFS pointer, or another kind of tokenizer");
    const int pieces = processor_.GetPieceSize();
    bytes_.resize(pieces);
    for (int id = 0; id < pieces; ++id) {
      const std::string& piece = processor_.IdToPiece(id);
      if (processor_.IsControl(id) || processor_.IsUnknown(id)) specials_.add({piece, id});
      if (processor_.IsControl(id)) continue;
      if (processor_.IsUnknown(id)) bytes_[id] = kUnknown;
      else if (processor_.IsByte(id)) bytes_[id] = static_cast<char>(std::stoi(piece.substr(3, 2), nullptr, 16));
      else bytes_[id] = without_piece_spaces(piece);
      if (!processor_.IsByte(id) && piece.find('\n') != std::string::npos) newline_alone_ = false;
    }
    specials_.prepare();
    bos_ = token(config.bos, processor_.bos_id());
    eos_ = token(config.eos, processor_.eos_id());
    learn_barrier();
    const std::vector<int32_t> newline = raw("\n");  // a vocabulary that normalizes it away fails this as well
    newline_alone_ = newline_alone_ && !newline.empty() && processor_.IsByte(newline.back());
    if (!legacy_ && barrier_ids_.empty())
      throw Error(path + ": this vocabulary has no byte fallback")
          .line("likely",
                "it is no LLaMA-2 tokenizer; its texts "
                "always begin with the dummy space (legacy)");
  }

  std::string bytes_of(int32_t id) const override {
    // Ids past the vocabulary exist in models whose embedding has rows added ([PAD], padding to a multiple): no text.
    return id >= 0 && id < static_cast<int32_t>(bytes_.size()) ? bytes_[id] : std::string();
  }
  bool has_dummy_space() const override { return dummy_space_; }
  int32_t bos() const override { return bos_; }
  int32_t eos() const override { return eos_; }
  bool adds_bos() const override { return adds_bos_ && bos_ >= 0; }
  int32_t special_id(std::string_view spelled) const override { return specials_.find(spelled); }
  std::string chat_template() const override { return chat_template_; }
  int64_t vocab_size() const override { return static_cast<int64_t>(bytes_.size()); }
  std::string describe() const override {
    return strf("SentencePiece, %s pieces%s", with_commas(vocab_size()).c_str(), legacy_ ? "" : ", not legacy");
  }

 protected:
  std::vector<int32_t> encode_text(std::string_view text, Before before) const override {
    const bool bare = before == Before::text || (before == Before::special && !legacy_);
    // The library has no switch for its dummy space. Behind a character that merges with nothing the text's ids are what
    // they are without one; that character's own ids are known and cut off.
    if (!bare || !dummy_space_ || barrier_ids_.empty()) return raw(text);
    const std::vector<int32_t> all = raw(kBarrier + std::string(text));
    IRQ_CHECK(all.size() >= barrier_ids_.size() && std::equal(barrier_ids_.begin(), barrier_ids_.end(), all.begin()),
              "the barrier merged with the text behind it");
    return {all.begin() + static_cast<int64_t>(barrier_ids_.size()), all.end()};
  }
  std::vector<int32_t> encode_special_text(std::string_view text, Before before) const override {
    std::vector<int32_t> ids;
    for (const Section& s : specials_.split(text)) {
      if (s.id >= 0) {
        ids.push_back(s.id);
        before = Before::special;
      } else {
        const std::vector<int32_t> part = encode_text(s.text, before);
        ids.insert(ids.end(), part.begin(), part.end());
      }
    }
    return ids;
  }
  bool splits_at_newline() const override { return newline_alone_ && (!dummy_space_ || !barrier_ids_.empty()); }

 private:
  // What tokenizer_config.json names, if this vocabulary has it as a special token.
  int32_t token(const std::string& spelled, int32_t otherwise) const {
    const int32_t id = spelled.empty() ? -1 : specials_.find(spelled);
    return id >= 0 ? id : otherwise;
  }
  std::vector<int32_t> raw(std::string_view text) const {
    std::vector<int> ids;
    const auto status = processor_.Encode({text.data(), text.size()}, &ids);
    IRQ_CHECK(status.ok(), "SentencePiece: %s", status.ToString().c_str());
    return {ids.begin(), ids.end()};
  }
  // Does a text get a dummy space, and with which ids does a text that begins with the barrier begin?
  void learn_barrier() {
    const std::vector<int32_t> ids = raw(kBarrier);
    dummy_space_ = !ids.empty() && bytes_of(ids[0])[0] == ' ' && !processor_.IsUnknown(ids[0]);
    if (ids.size() < 3) return;
    for (size_t i = ids.size() - 3; i < ids.size(); ++i)
      if (!processor_.IsByte(ids[i])) return;
    barrier_ids_ = ids;
  }

  sentencepiece::SentencePieceProcessor processor_;
  bool legacy_, adds_bos_, dummy_space_ = false, newline_alone_ = true;
  int32_t bos_ = -1, eos_ = -1;
  std::string chat_template_;
  AddedTokens specials_;
  std::vector<std::string> bytes_;    // what each id stands for
  std::vector<int32_t> barrier_ids_;  // the dummy space and U+E000 in bytes; empty: the vocabulary has no byte fallback
};

}  // namespace

std::unique_ptr<Tokenizer> open_sentencepiece(const std::string& path, const std::string& content,
                                              std::optional<bool> legacy, const TokenizerConfig& config) {
  return std::make_unique<SentencePieceTokenizer>(path, content, legacy.value_or(config.legacy.value_or(true)), config);
}

}  // namespace irq
