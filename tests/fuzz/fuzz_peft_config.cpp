// adapter_config.json of a PEFT folder.
#include "src/io/initial_adapter.h"
#include "tests/fuzz/fuzz_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return irq::fuzz([&] { irq::parse_peft_config({reinterpret_cast<const char*>(data), size}, "adapter_config.json"); });
}
