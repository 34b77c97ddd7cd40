#include "src/text/piece_model.h"

#include <cstring>
#include <string_view>

#include "src/core/check.h"

namespace irq {
namespace {

// Numbers of the fields in sentencepiece_model.proto.
constexpr uint32_t kPieces = 1, kTrainer = 2, kNormalizer = 3;
constexpr uint32_t kPieceText = 1, kPieceScore = 2, kPieceType = 3;
constexpr uint32_t kModelType = 3, kVocabSize = 4, kByteFallback = 35;
constexpr uint32_t kIds[] = {40, 41, 42, 43};    // of unknown, BOS, EOS, padding
constexpr uint32_t kNames[] = {45, 46, 47, 48};  // and their pieces
constexpr uint32_t kName = 1, kCharsMap = 2, kDummyPrefix = 3, kExtraSpaces = 4, kEscapeSpaces = 5;

class Writer {
 public:
  void integer(uint32_t field, int64_t value) { key(field, 0), varint(static_cast<uint64_t>(value)); }
  void number(uint32_t field, float value) {
    key(field, 5);
    bytes_.append(reinterpret_cast<const char*>(&value), 4);
  }
  void text(uint32_t field, std::string_view value) {
    key(field, 2);
    varint(value.size());
    bytes_ += value;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  void key(uint32_t field, uint32_t kind) { varint(uint64_t{field} << 3 | kind); }
  void varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_ += static_cast<char>(value | 0x80);
    bytes_ += static_cast<char>(value);
  }
  std::string bytes_;
};

struct Field {
  uint32_t number = 0;
  uint64_t integer = 0;   // kinds 0, 1 and 5
  std::string_view text;  // kind 2
  float number_f() const {
    const auto bits = static_cast<uint32_t>(integer);
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  }
};

// Field after field of one message; nothing is allocated.
class Walker {
 public:
  Walker(const std::string& path, std::string_view bytes) : path_(path), bytes_(bytes) {}
  bool next(Field& f) {
    if (bytes_.empty()) return false;
    const uint64_t key = varint();
    f = {static_cast<uint32_t>(key >> 3), 0, {}};
    switch (key & 7) {
      case 0: f.integer = varint(); break;
      case 1: std::memcpy(&f.integer, take(8).data(), 8); break;
      case 2: f.text = take(varint()); break;
      case 5: std::memcpy(&f.integer, take(4).data(), 4); break;
      default: throw broken();
    }
    return true;
  }

 private:
  Error broken() const {
    return Error(path_ + ": not a SentencePiece model")
        .line("likely", "an interrupted download, or another kind of file");
  }
  std::string_view take(uint64_t count) {
    if (count > bytes_.size()) throw broken();
    const std::string_view part = bytes_.substr(0, count);
    bytes_.remove_prefix(count);
    return part;
  }
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<uint8_t>(take(1)[0]);
      value |= uint64_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) return value;
    }
    throw broken();
  }
  const std::string& path_;
  std::string_view bytes_;
};

}  // namespace

std::string write_piece_model(const PieceModel& m) {
  Writer model;
  for (const PieceModel::Piece& p : m.pieces) {
    Writer piece;
    piece.text(kPieceText, p.text);
    piece.number(kPieceScore, p.score);
    if (p.type != 1) piece.integer(kPieceType, p.type);
    model.text(kPieces, piece.bytes());
  }
  Writer trainer;
  trainer.integer(kModelType, m.algorithm);
  trainer.integer(kVocabSize, static_cast<int64_t>(m.pieces.size()));
  trainer.integer(kByteFallback, m.byte_fallback);
  const int32_t ids[] = {m.unknown, m.bos, m.eos, m.padding};
  for (int i = 0; i < 4; ++i) {
    trainer.integer(kIds[i], ids[i]);
    if (ids[i] >= 0) trainer.text(kNames[i], m.pieces[static_cast<size_t>(ids[i])].text);
  }
  model.text(kTrainer, trainer.bytes());
  Writer normalizer;
  normalizer.text(kName, "identity");
  normalizer.text(kCharsMap, "");
  normalizer.integer(kDummyPrefix, m.add_dummy_prefix);
  normalizer.integer(kExtraSpaces, m.remove_extra_whitespaces);
  normalizer.integer(kEscapeSpaces, 1);
  model.text(kNormalizer, normalizer.bytes());
  return model.bytes();
}

PieceModel read_piece_model(const std::string& path, const std::string& content) {
  PieceModel m;
  m.algorithm = 1, m.remove_extra_whitespaces = true;  // the format's own defaults
  int32_t* const ids[] = {&m.unknown, &m.bos, &m.eos, &m.padding};
  Walker model(path, content);
  for (Field f; model.next(f);) {
    Walker inner(path, f.text);
    if (f.number == kPieces) {
      PieceModel::Piece piece;
      for (Field g; inner.next(g);) {
        if (g.number == kPieceText) piece.text = g.text;
        if (g.number == kPieceScore) piece.score = g.number_f();
        if (g.number == kPieceType) piece.type = static_cast<int32_t>(g.integer);
      }
      m.pieces.push_back(std::move(piece));
    } else if (f.number == kTrainer) {
      for (Field g; inner.next(g);) {
        if (g.number == kModelType) m.algorithm = static_cast<int32_t>(g.integer);
        if (g.number == kByteFallback) m.byte_fallback = g.integer != 0;
        for (int i = 0; i < 4; ++i)
          if (g.number == kIds[i]) *ids[i] = static_cast<int32_t>(g.integer);
      }
    } else if (f.number == kNormalizer) {
      for (Field g; inner.next(g);) {
        if (g.number == kCharsMap) m.normalizes = !g.text.empty();
        if (g.number == kDummyPrefix) m.add_dummy_prefix = g.integer != 0;
        if (g.number == kExtraSpaces) m.remove_extra_whitespaces = g.integer != 0;
      }
    }
  }
  for (int32_t* id : ids)
    if (*id < 0 || *id >= static_cast<int64_t>(m.pieces.size())) *id = -1;
  return m;
}

}  // namespace irq
