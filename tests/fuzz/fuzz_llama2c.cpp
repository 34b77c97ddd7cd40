// llama2.c checkpoints, and the tokenizer.bin beside one (a first byte that is a multiple of 4).
#include <filesystem>
#include <fstream>

#include "src/core/file.h"
#include "tests/fuzz/fuzz_util.h"

namespace irq {
namespace {

std::string valid_file() {
  const ModelConfig c = fuzz_config();
  const int32_t sizes[] = {32, 32, 1, 2, 1, -8, 4};
  return std::string(reinterpret_cast<const char*>(sizes), 28) +
         std::string(static_cast<size_t>(4 * (total_parameters(c) + c.max_seq * c.head_dim)), '\1');
}

// A valid model and the input as its tokenizer.bin, in a folder in memory.
void read_tokenizer(const std::string& valid, const std::string& tokenizer) {
  static const std::string folder = "/dev/shm/irq_fuzz_" + std::to_string(getpid());
  std::filesystem::create_directory(folder);
  std::ofstream(folder + "/model.bin", std::ios::binary) << valid;
  std::ofstream(folder + "/tokenizer.bin", std::ios::binary) << tokenizer;
  open_and_read(import_llama2c, folder + "/model.bin");
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace irq

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string valid = irq::valid_file();
  if (size > 0 && data[0] % 4 == 0) {
    irq::read_tokenizer(valid, std::string(reinterpret_cast<const char*>(data) + 1, size - 1));
    return 0;
  }
  return irq::fuzz_import(irq::import_llama2c, valid, data, size);
}
