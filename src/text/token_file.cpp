#include "src/text/token_file.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>

#include "src/core/check.h"

namespace irq {
namespace {

constexpr int64_t kHeaderBytes = 256 * 4;
constexpr int32_t kMagic16 = 20240520, kVersion16 = 1;
constexpr int32_t kMagic32 = 20240801, kVersion32 = 7;

int32_t header_field(const std::string& content, int index) {
  int32_t value;
  std::memcpy(&value, content.data() + index * 4, 4);
  return value;
}

template <class T>
std::vector<int32_t> widen(const std::string& content, int64_t count) {
  std::vector<int32_t> ids(count);
  for (int64_t i = 0; i < count; ++i) {
    T id;
    std::memcpy(&id, content.data() + kHeaderBytes + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
    ids[i] = static_cast<int32_t>(id);  // a uint32 past 2^31 turns negative: no vocabulary has it, load_data refuses it
  }
  return ids;
}

template <class T>
void write_ids(std::ofstream& file, const std::vector<int32_t>& ids) {
  const std::vector<T> narrow(ids.begin(), ids.end());
  file.write(reinterpret_cast<const char*>(narrow.data()), static_cast<std::streamsize>(narrow.size() * sizeof(T)));
}

}  // namespace

bool is_token_file(const std::string& content) {
  if (content.size() < 4) return false;
  const int32_t magic = header_field(content, 0);
  return magic == kMagic16 || magic == kMagic32;
}

std::vector<int32_t> parse_token_file(const std::string& path, const std::string& content) {
  const auto on_disk = static_cast<int64_t>(content.size());
  if (on_disk < kHeaderBytes)
    throw Error(path + ": token file is cut short")
        .line("expected", "a header of 1,024 bytes")
        .line("on disk", with_commas(on_disk) + " bytes");
  const bool wide = header_field(content, 0) == kMagic32;
  const int32_t version = header_field(content, 1), expected = wide ? kVersion32 : kVersion16;
  if (version != expected)
    throw Error(path + ": token file of an unknown version")
        .line("expected", strf("version %d", expected))
        .line("found", strf("version %d", version));
  const int64_t count = header_field(content, 2), bytes = kHeaderBytes + count * (wide ? 4 : 2);
  if (count < 0 || bytes != on_disk)
    throw Error(path + (count >= 0 && on_disk > bytes ? ": token file is longer than its header says"
                                                      : ": token file is cut short"))
        .line("header", strf("%s ids of %d bytes -> %s bytes", with_commas(count).c_str(), wide ? 4 : 2,
                             with_commas(bytes).c_str()))
        .line("on disk", with_commas(on_disk) + " bytes");
  return wide ? widen<uint32_t>(content, count) : widen<uint16_t>(content, count);
}

void write_token_file(const std::string& path, const std::vector<int32_t>& ids) {
  IRQ_CHECK(ids.size() <= static_cast<size_t>(INT32_MAX), "%zu ids do not fit the header's int32", ids.size());
  const bool wide = std::any_of(ids.begin(), ids.end(), [](int32_t id) { return id > UINT16_MAX; });
  const std::array<int32_t, 256> header{wide ? kMagic32 : kMagic16, wide ? kVersion32 : kVersion16,
                                        static_cast<int32_t>(ids.size())};
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(header.data()), kHeaderBytes);
  if (wide) write_ids<uint32_t>(file, ids);
  else write_ids<uint16_t>(file, ids);
  file.close();
  if (!file) throw Error(path + ": cannot be written").line("likely", "the disk is full or the folder is not writable");
}

}  // namespace irq
