// NumPy files.
#include "src/io/npy.h"
#include "tests/fuzz/fuzz_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const irq::FuzzFile file(data, size);
  return irq::fuzz([&] { irq::read_npy(file.path()).as_f64(); });
}
