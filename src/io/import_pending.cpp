// Readers that are not in this tree yet.
#include "src/core/check.h"
#include "src/io/import.h"

namespace irq {

std::unique_ptr<ImportedModel> import_gguf(const std::string& path) {
  throw Error(path + ": GGUF files cannot be read yet");
}
std::unique_ptr<ImportedModel> import_llama2c(const std::string& path) {
  throw Error(path + ": llama2.c checkpoints cannot be read yet");
}
std::unique_ptr<ImportedModel> import_llmc(const std::string& path) {
  throw Error(path + ": llm.c checkpoints cannot be read yet");
}

}  // namespace irq
