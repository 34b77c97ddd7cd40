// .bin, .irq, .lora and .state. Their checksums would stop every mutation at the door, so they are made right first: what is
// tested is a file that was written wrongly, or forged.
#include <cstring>
#include <vector>

#include "src/core/hash.h"
#include "src/io/inspect.h"
#include "tests/fuzz/fuzz_file.h"

namespace {

using namespace irq;

void store64(std::vector<unsigned char>& file, size_t slot, uint64_t value) { std::memcpy(&file[4 * slot], &value, 8); }

void make_checksums_right(std::vector<unsigned char>& file) {
  const size_t size = file.size(), header = static_cast<size_t>(kHeaderBytes);
  if (size < header) return;
  uint64_t payload = 0;
  std::memcpy(&payload, &file[8], 8);
  if (payload <= size) {
    const size_t chunks = (payload + kChunkBytes - 1) / kChunkBytes;
    const size_t begin = (header + 8 * chunks + 255) / 256 * 256;
    for (size_t i = 0; i < chunks && begin + payload <= size; ++i) {
      const size_t at = i * kChunkBytes, bytes = std::min<size_t>(kChunkBytes, payload - at);
      const uint64_t hash = hash_bytes(&file[begin + at], bytes);
      std::memcpy(&file[header + 8 * i], &hash, 8);
    }
    if (begin <= size) store64(file, 4, hash_bytes(&file[header], begin - header));
  }
  store64(file, 254, hash_bytes(file.data(), 254 * 4));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::vector<unsigned char> bytes(data, data + size);
  make_checksums_right(bytes);
  const FuzzFile file(bytes.data(), bytes.size());
  fuzz([&] { inspect_summary(file.path()); });
  fuzz([&] { inspect_tensors(file.path()); });
  fuzz([&] { inspect_entropy(file.path()); });
  fuzz([&] { read_adapter(file.path()); });
  fuzz([&] {
    IrqReader quantized(file.path());
    for (const TensorSpec& t : quantized.layout().tensors()) {
      const std::string matrix = t.name.substr(0, t.name.rfind('.'));
      if (t.name == matrix + ".codes") dequantize_on_host(quantized.matrix(matrix));
    }
  });
  return 0;
}
