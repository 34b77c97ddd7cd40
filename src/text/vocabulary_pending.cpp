// Minimal reader of SentencePiece vocabularies, only until the real one arrives.
#include <sentencepiece_processor.h>

#include "src/core/check.h"
#include "src/text/vocabulary.h"

namespace irq {

Vocabulary read_vocabulary(const std::string& tokenizer_path) {
  sentencepiece::SentencePieceProcessor sp;
  if (!sp.Load(tokenizer_path).ok()) throw Error(tokenizer_path + ": not a SentencePiece model");
  Vocabulary v;
  v.model = "llama";
  for (int i = 0; i < sp.GetPieceSize(); ++i) {
    v.tokens.push_back(sp.IdToPiece(i));
    v.scores.push_back(sp.GetScore(i));
    v.types.push_back(sp.IsUnknown(i) ? 2 : sp.IsControl(i) ? 3 : sp.IsByte(i) ? 6 : sp.IsUnused(i) ? 5 : 1);
  }
  v.bos = sp.bos_id(), v.eos = sp.eos_id(), v.unknown = sp.unk_id(), v.padding = sp.pad_id();
  v.add_bos = true;
  return v;
}

}  // namespace irq
