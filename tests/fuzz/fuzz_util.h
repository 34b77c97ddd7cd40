// What the fuzz targets of the importers share. An input's first byte chooses: even: the rest is the file; odd: the rest is a
// list of changes (u16 offset, u8 value) to a small valid file, so that no corpus is needed to get behind the header's checks.
#pragma once
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "src/io/import.h"
#include "src/io/layout.h"
#include "tests/fuzz/fuzz_file.h"

namespace irq {

inline std::string changed(std::string file, const uint8_t* data, size_t size) {
  for (size_t i = 0; i + 3 <= size; i += 3) {
    uint16_t offset;
    std::memcpy(&offset, data + i, 2);
    if (offset == 0xffff) file.resize(file.size() * data[i + 2] / 256);  // cut
    else if (!file.empty()) file[offset % file.size()] = static_cast<char>(data[i + 2]);
  }
  return file;
}

inline std::string fuzz_file(const std::string& valid, const uint8_t* data, size_t size) {
  if (size == 0) return "";
  if (data[0] % 2 == 0) return {reinterpret_cast<const char*>(data) + 1, size - 1};
  return changed(valid, data + 1, size - 1);
}

// Only an Error is a good way to fail. Every tensor is read to its last byte.
inline void open_and_read(const std::function<std::unique_ptr<ImportedModel>(const std::string&)>& import,
                          const std::string& path) {
  static std::vector<uint8_t> copy;  // one memcpy: the sanitizer checks its whole range at once
  fuzz([&] {
    const auto model = import(path);
    const Layout layout = base_layout(model->config(), model->dtype(), path);
    for (const TensorSpec& spec : layout.tensors()) {
      const Tensor t = model->tensor(spec.name);
      if (t.rows != spec.rows || t.cols != spec.cols) std::abort();
      copy.resize(static_cast<size_t>(t.bytes()));
      std::memcpy(copy.data(), t.data, copy.size());
    }
    for (const SideFile& f : model->side_files()) copy.assign(f.content.begin(), f.content.end());
  });
}

// One input of a fuzzer that has a valid file to change.
inline int fuzz_import(const std::function<std::unique_ptr<ImportedModel>(const std::string&)>& import,
                       const std::string& valid, const uint8_t* data, size_t size) {
  const std::string bytes = fuzz_file(valid, data, size);
  const FuzzFile file(bytes.data(), bytes.size());
  open_and_read(import, file.path());
  return 0;
}

inline ModelConfig fuzz_config() {
  ModelConfig c;
  c.dim = 32, c.ffn = 32, c.layers = 1, c.heads = 2, c.kv_heads = 1, c.head_dim = 16, c.vocab = 8, c.max_seq = 4;
  return c;
}

}  // namespace irq
