// SentencePiece writes a space as U+2581 in its pieces, and so do the vocabularies made from them.
#pragma once
#include <string>

namespace irq {

inline constexpr const char* kPieceSpace = "\xE2\x96\x81";  // U+2581, 3 bytes

inline std::string with_piece_spaces(const std::string& text) {
  std::string piece;
  for (const char c : text) c == ' ' ? piece += kPieceSpace : piece += c;
  return piece;
}

inline std::string without_piece_spaces(const std::string& piece) {
  std::string text;
  for (size_t at = 0; at < piece.size();) {
    const bool space = piece.compare(at, 3, kPieceSpace) == 0;
    text += space ? ' ' : piece[at];
    at += space ? 3 : 1;
  }
  return text;
}

}  // namespace irq
