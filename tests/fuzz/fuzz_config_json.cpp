// config.json, as the converter and the tools read it.
#include "src/io/config_json.h"
#include "tests/fuzz/fuzz_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const irq::FuzzFile file(data, size);
  for (const bool nf4 : {false, true}) irq::fuzz([&] { irq::model_config_from_json(file.path(), nf4); });
  return irq::fuzz([&] { irq::says_bitsandbytes(file.path()); });
}
