// Golden inputs: fidelity 9's generator, CRC32, and the files that the released code wrote.
#pragma once
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "src/core/check.h"

namespace irq {

// zlib's CRC32, bit by bit.
inline uint32_t crc32(const void* data, size_t bytes) {
  uint32_t crc = ~0u;
  for (size_t i = 0; i < bytes; ++i) {
    crc ^= static_cast<const uint8_t*>(data)[i];
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1u) ? 0xedb88320u : 0u);
  }
  return ~crc;
}
template <class T>
uint32_t crc32(const std::vector<T>& v) {
  return crc32(v.data(), v.size() * sizeof(T));
}

inline std::string hex_of(float x) { return strf("%08x", std::bit_cast<uint32_t>(x)); }
inline std::string hex_of(const uint8_t* bytes, size_t n) {
  std::string s;
  for (size_t i = 0; i < n; ++i) s += strf("%02x", bytes[i]);
  return s;
}

// 300 blocks of 64 weights, exact in fp32 (fidelity 9).
inline std::vector<float> golden_weights() {
  std::vector<float> w(19200);
  uint32_t state = 1;
  for (float& x : w) {
    int32_t sum = 0;
    for (int i = 0; i < 4; ++i) {
      state = 1664525u * state + 1013904223u;
      sum += static_cast<int32_t>(state >> 16);
    }
    x = static_cast<float>(sum - 131070) / 2097152.0f;
  }
  return w;
}

inline std::vector<char> file_bytes(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}
// The folder of the released code's full outputs, or "".
inline std::filesystem::path shared_golden_folder() {
  const char* set = std::getenv("IRQ_SHARED_DATA");
  for (const std::filesystem::path& base :
       {std::filesystem::path(set ? set : ""), std::filesystem::path("../shared/data")})
    if (!base.empty() && std::filesystem::exists(base / "golden/gauss.w.npy")) return base / "golden";
  return {};
}
// The payload of a version-1 .npy file.
template <class T>
std::vector<T> read_npy(const std::filesystem::path& path) {
  const std::vector<char> bytes = file_bytes(path);
  IRQ_CHECK(bytes.size() >= 10, "%s is missing or too short", path.c_str());
  const size_t header = 10 + static_cast<uint8_t>(bytes[8]) + 256u * static_cast<uint8_t>(bytes[9]);
  std::vector<T> values((bytes.size() - header) / sizeof(T));
  std::copy(bytes.begin() + static_cast<std::ptrdiff_t>(header), bytes.end(), reinterpret_cast<char*>(values.data()));
  return values;
}

}  // namespace irq
