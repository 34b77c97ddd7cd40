#include <cstring>
#include <nlohmann/json.hpp>

#include "src/core/check.h"
#include "src/io/safetensors.h"

namespace irq {
namespace {

int64_t element_bytes(const std::string& dtype) {
  if (const std::optional<DType> type = plain_type(dtype)) return size_of(*type);
  if (dtype == "U8") return 1;
  IRQ_CHECK(false, "safetensors: no writer for %s", dtype.c_str());
}

// Fills in where each entry lies.
void place(std::vector<SafetensorsEntry>& entries) {
  int64_t end = 0;
  for (SafetensorsEntry& e : entries) {
    e.begin = end;
    e.bytes = e.count() * element_bytes(e.dtype);
    end += e.bytes;
  }
}

// The 8 bytes of its length and the JSON, filled up with spaces to a multiple of 8.
std::string header_of(const std::vector<SafetensorsEntry>& entries,
                      const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json json;
  if (!metadata.empty()) json["__metadata__"] = metadata;
  for (const SafetensorsEntry& e : entries)
    json[e.name] = {{"dtype", e.dtype}, {"shape", e.shape}, {"data_offsets", {e.begin, e.begin + e.bytes}}};
  std::string text = json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string length(8, '\0');
  const uint64_t size = text.size();
  std::memcpy(length.data(), &size, 8);
  return length + text;
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(const std::string& path, std::vector<SafetensorsEntry> entries,
                                     const std::map<std::string, std::string>& metadata)
    : entries_((place(entries), std::move(entries))),
      header_(header_of(entries_, metadata)),
      file_(path, static_cast<int64_t>(header_.size()) +
                      (entries_.empty() ? 0 : entries_.back().begin + entries_.back().bytes)) {
  file_.write(header_);
}

void SafetensorsWriter::write(const std::string& name, const void* data, int64_t bytes) {
  while (entry_ < entries_.size() && entry_written_ == entries_[entry_].bytes && name != entries_[entry_].name)
    ++entry_, entry_written_ = 0;
  IRQ_CHECK(
      entry_ < entries_.size() && name == entries_[entry_].name && entry_written_ + bytes <= entries_[entry_].bytes,
      "safetensors: %ld bytes of %s are not due", bytes, name.c_str());
  file_.write(data, bytes);
  entry_written_ += bytes;
}

void SafetensorsWriter::finish() {
  const int64_t whole =
      static_cast<int64_t>(header_.size()) + (entries_.empty() ? 0 : entries_.back().begin + entries_.back().bytes);
  IRQ_CHECK(file_.size() == whole, "safetensors: %ld of %ld bytes were written", file_.size(), whole);
  file_.commit();
}

}  // namespace irq
