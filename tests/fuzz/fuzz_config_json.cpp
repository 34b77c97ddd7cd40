// libFuzzer: any bytes as a config.json, as the converter and the tools read it.
#include <cstdint>

#include "src/core/check.h"
#include "src/io/config_json.h"
#include "tests/fuzz/fuzz_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static irq::FuzzFile file;
  file.set(data, size);
  for (const bool nf4 : {false, true}) {
    try {
      irq::model_config_from_json(file.path(), nf4);
    } catch (const irq::Error&) {}
  }
  try {
    irq::says_bitsandbytes(file.path());
  } catch (const irq::Error&) {}
  return 0;
}
