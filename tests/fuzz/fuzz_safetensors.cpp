// safetensors files: every tensor that the header names lies inside the map.
#include "src/io/safetensors.h"
#include "tests/fuzz/fuzz_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const irq::FuzzFile file(data, size);
  return irq::fuzz([&] {
    const irq::SafetensorsReader reader(file.path());
    volatile unsigned char last = 0;
    for (const irq::SafetensorsEntry& e : reader.entries())
      if (e.bytes > 0) last = reader.data(e)[e.bytes - 1];
    (void)last;
  });
}
