// libFuzzer: any bytes as a .safetensors file. Opening and touching every tensor may throw irq::Error and nothing else.
#include <cstdint>

#include "src/core/check.h"
#include "src/io/safetensors.h"
#include "tests/fuzz/fuzz_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static irq::FuzzFile file;
  file.set(data, size);
  try {
    const irq::SafetensorsReader reader(file.path());
    volatile unsigned char last = 0;
    for (const irq::SafetensorsEntry& e : reader.entries())
      if (e.bytes > 0) last = reader.data(e)[e.bytes - 1];  // the last byte is inside the map
    (void)last;
  } catch (const irq::Error&) {}
  return 0;
}
