// llm.c LLaMA checkpoints.
#include "tests/fuzz/fuzz_util.h"

namespace irq {
namespace {

std::string valid_file() {
  int32_t header[256] = {20240803, 5, 4, 8, 1, 2, 1, 32, 0, 32, 0, 10000, 0, 4, 3, 1};  // a multiplier below 1
  return std::string(reinterpret_cast<const char*>(header), 1024) +
         std::string(static_cast<size_t>(2 * total_parameters(fuzz_config())), '\1');
}

}  // namespace
}  // namespace irq

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string valid = irq::valid_file();
  return irq::fuzz_import(irq::import_llmc, valid, data, size);
}
