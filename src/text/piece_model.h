// SentencePiece's model file (a protocol buffer) as a list of pieces, for conversion from and to GGUF. Encoding and decoding
// text is the library's business; it offers no way to build a model from pieces, or to ask for a piece's kind in full.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace irq {

struct PieceModel {
  struct Piece {
    std::string text;
    float score = 0;
    int32_t type = 1;  // 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
  };
  std::vector<Piece> pieces;
  int32_t unknown = 0, bos = 1, eos = 2, padding = -1;  // ids, -1: none
  int32_t algorithm = 2;                                // 1 unigram, 2 BPE
  bool byte_fallback = false, add_dummy_prefix = true, remove_extra_whitespaces = false;
  bool normalizes = false;  // read only: it has a table of characters to replace
};

std::string write_piece_model(const PieceModel& model);
// content: the whole file. Throws an Error where its structure is broken.
PieceModel read_piece_model(const std::string& path, const std::string& content);

}  // namespace irq
