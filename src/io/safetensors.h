// The safetensors container: 8 bytes length of the header, a JSON header {name: {dtype, shape, data_offsets}}, the data.
#pragma once
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "src/core/file.h"
#include "src/core/tensor.h"
#include "src/io/printable.h"

namespace irq {

struct SafetensorsEntry {
  std::string name;
  std::string dtype;  // "F32" "F16" "BF16" "U8" ..., as the file spells it
  std::vector<int64_t> shape;
  int64_t begin = 0, bytes = 0;  // in the data part
  int64_t count() const;         // elements
};

// The plain float types by their names here: F32, F16, BF16; none for any other.
std::optional<DType> plain_type(const std::string& dtype);
const char* safetensors_name(DType type);

// Opening checks everything the header says: JSON, types, shapes against byte counts, that every byte of the data belongs to
// exactly one tensor, and that there are as many bytes as it says. A header above 100 MB is refused, as the format has it.
class SafetensorsReader {
 public:
  explicit SafetensorsReader(const std::string& path);
  const std::string& path() const { return file_.path(); }
  const std::vector<SafetensorsEntry>& entries() const { return entries_; }  // by offset
  const SafetensorsEntry* find(const std::string& name) const;               // null if there is none
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const unsigned char* data(const SafetensorsEntry& entry) const;  // mapped bytes; not aligned to the element
  void dont_need(const SafetensorsEntry& entry) const;
  // Hints about [begin, begin + bytes) of an entry: not read any more | read soon.
  void dont_need(const SafetensorsEntry& entry, int64_t begin, int64_t bytes) const;
  void will_need(const SafetensorsEntry& entry, int64_t begin, int64_t bytes) const;

 private:
  void check_offsets() const;

  MappedFile file_;
  int64_t data_offset_ = 0;
  std::vector<SafetensorsEntry> entries_;
  std::map<std::string, size_t> index_;
  std::map<std::string, std::string> metadata_;
};

// Streams: entries are announced at once (begin and bytes are filled in here, in the given order), their bytes follow in that
// order, whole or in pieces. The file has its name only after finish(). The data begin at a multiple of 8; put the wider
// types first where types mix, so that every element is aligned in the file (some readers map it).
class SafetensorsWriter {
 public:
  SafetensorsWriter(const std::string& path, std::vector<SafetensorsEntry> entries,
                    const std::map<std::string, std::string>& metadata);
  void write(const std::string& name, const void* data, int64_t bytes);
  void finish();

 private:
  std::vector<SafetensorsEntry> entries_;
  std::string header_;
  AtomicFile file_;
  size_t entry_ = 0;
  int64_t entry_written_ = 0;
};

}  // namespace irq
