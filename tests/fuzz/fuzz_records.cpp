// Instruction data as hostile bytes.
#include "src/text/records.h"
#include "tests/fuzz/fuzz_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // parse_records() is called for files that begin with a bracket, and are UTF-8: load_data() looks at both first.
  std::string content = size > 0 && data[0] % 2 == 0 ? "[" : "{";
  content.append(reinterpret_cast<const char*>(data), size);
  return irq::fuzz([&] { irq::parse_records("fuzz.json", content); });
}
