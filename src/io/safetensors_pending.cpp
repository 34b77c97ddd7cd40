// Minimal reader, only until the real one (safetensors.cpp) arrives.
#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "src/core/check.h"
#include "src/io/safetensors.h"

namespace irq {

std::string printable(const std::string& text) {
  std::string shown = text.substr(0, 120);
  std::replace_if(
      shown.begin(), shown.end(), [](unsigned char c) { return c < 32 || c == 127; }, '?');
  return shown;
}

int64_t SafetensorsEntry::count() const {
  int64_t n = 1;
  for (const int64_t x : shape) n *= x;
  return n;
}

SafetensorsReader::SafetensorsReader(const std::string& path) : file_(path) {
  uint64_t length = 0;
  if (file_.size() < 8) throw Error(path + ": not a safetensors file");
  std::memcpy(&length, file_.data(), 8);
  if (length > static_cast<uint64_t>(file_.size() - 8)) throw Error(path + ": not a safetensors file");
  data_offset_ = 8 + static_cast<int64_t>(length);
  const auto json = nlohmann::json::parse(file_.data() + 8, file_.data() + data_offset_, nullptr, false);
  if (!json.is_object()) throw Error(path + ": not a safetensors file");
  try {
    for (const auto& [name, value] : json.items()) {
      if (name == "__metadata__") {
        metadata_ = value.get<std::map<std::string, std::string>>();
        continue;
      }
      const int64_t begin = value.at("data_offsets").at(0), end = value.at("data_offsets").at(1);
      if (begin < 0 || end < begin || end > file_.size() - data_offset_) throw Error(path + ": cut short");
      entries_.push_back({name, value.at("dtype"), value.at("shape"), begin, end - begin});
    }
  } catch (const nlohmann::json::exception& e) { throw Error(path + ": not a safetensors file: " + e.what()); }
  std::sort(entries_.begin(), entries_.end(), [](const auto& a, const auto& b) { return a.begin < b.begin; });
  for (size_t i = 0; i < entries_.size(); ++i) index_[entries_[i].name] = i;
}

const SafetensorsEntry* SafetensorsReader::find(const std::string& name) const {
  const auto at = index_.find(name);
  return at == index_.end() ? nullptr : &entries_[at->second];
}
const unsigned char* SafetensorsReader::data(const SafetensorsEntry& entry) const {
  return file_.data() + data_offset_ + entry.begin;
}
void SafetensorsReader::dont_need(const SafetensorsEntry& entry) const {
  file_.dont_need(data_offset_ + entry.begin, entry.bytes);
}

}  // namespace irq
