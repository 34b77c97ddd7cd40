// Stands in for the real tokenizer_files() until it is merged: says that it is missing.
#include "src/core/check.h"
#include "src/text/vocabulary.h"

namespace irq {

std::vector<SideFile> tokenizer_files(const Vocabulary&, const std::string& source) {
  throw Error(source + ": its vocabulary cannot be written as tokenizer files yet");
}

}  // namespace irq
