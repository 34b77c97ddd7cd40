// The SentencePiece implementation of Tokenizer (LLaMA-1 and 2), through libsentencepiece.
#include <sentencepiece_processor.h>

#include <fstream>
#include <iterator>

#include "src/core/check.h"
#include "src/text/tokenizer.h"

namespace irq {
namespace {

constexpr const char* kSpace = "\xE2\x96\x81";  // U+2581, SentencePiece's space
constexpr const char* kBarrier =
    "\xEE\x80\x80";  // U+E000, in nobody's vocabulary: spelled in bytes, merges with nothing
constexpr const char* kUnknown = " \xE2\x81\x87 ";  // U+2047 between spaces, as SentencePiece itself writes <unk>

std::string spaces_restored(const std::string& piece) {
  std::string text;
  for (size_t at = 0; at < piece.size();) {
    const bool space = piece.compare(at, 3, kSpace) == 0;
    text += space ? ' ' : piece[at];
    at += space ? 3 : 1;
  }
  return text;
}

class SentencePieceTokenizer final : public Tokenizer {
 public:
  SentencePieceTokenizer(const std::string& path, bool legacy) : legacy_(legacy) {
    const std::string model = read(path);
    if (const auto status = processor_.LoadFromSerializedProto(model); !status.ok() || processor_.GetPieceSize() == 0)
      throw Error(path + ": not a SentencePiece model")
          .line("found", strf("%s bytes; %s", with_commas(static_cast<long long>(model.size())).c_str(),
                              status.ok() ? "no pieces" : status.ToString().c_str()))
          .line("likely", "an interrupted download, a Git LFS pointer, or another kind of tokenizer");
    const int pieces = processor_.GetPieceSize();
    bytes_.resize(pieces);
    for (int id = 0; id < pieces; ++id) {
      if (processor_.IsControl(id)) continue;
      const std::string& piece = processor_.IdToPiece(id);
      if (processor_.IsUnknown(id)) bytes_[id] = kUnknown;
      else if (processor_.IsByte(id)) bytes_[id] = static_cast<char>(std::stoi(piece.substr(3, 2), nullptr, 16));
      else bytes_[id] = spaces_restored(piece);
      if (!processor_.IsByte(id) && piece.find('\n') != std::string::npos) newline_alone_ = false;
    }
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
  int32_t bos() const override { return processor_.bos_id(); }
  int32_t eos() const override { return processor_.eos_id(); }
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
  bool splits_at_newline() const override { return newline_alone_ && (!dummy_space_ || !barrier_ids_.empty()); }

 private:
  static std::string read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw Error(path + ": cannot be read").line("expected", "a SentencePiece model (tokenizer.model)");
    std::string content(std::istreambuf_iterator<char>(file), {});
    if (!content.empty() && content[0] == '{')
      throw Error(path + ": a JSON tokenizer (byte-level BPE), which this version does not read")
          .line("expected", "a SentencePiece model, as LLaMA-1 and LLaMA-2 bring (tokenizer.model)");
    return content;
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
  bool legacy_, dummy_space_ = false, newline_alone_ = true;
  std::vector<std::string> bytes_;    // what each id stands for
  std::vector<int32_t> barrier_ids_;  // the dummy space and U+E000 in bytes; empty: the vocabulary has no byte fallback
};

}  // namespace

std::unique_ptr<Tokenizer> open_tokenizer(const std::string& path, bool legacy) {
  return std::make_unique<SentencePieceTokenizer>(path, legacy);
}

}  // namespace irq
