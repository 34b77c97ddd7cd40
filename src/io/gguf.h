// The GGUF container, versions 2 and 3 (little-endian): typed key-value pairs, tensor table, aligned data.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "src/core/file.h"

namespace irq {

enum class GgufType : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };
// Tensor types by their number in the file; others are known by number only.
enum class GgmlType : uint32_t { f32 = 0, f16 = 1, q4_0 = 2, q4_1 = 3, q8_0 = 8, q6_k = 14, bf16 = 30 };

struct GgufValue {
  GgufType type = GgufType::u32;  // of a scalar
  bool is_array = false;          // then `type` is the elements'
  int64_t integer = 0;            // any integer or boolean
  double number = 0;              // f32, f64
  std::string text;
  std::vector<int64_t> integers;  // arrays
  std::vector<double> numbers;
  std::vector<std::string> texts;
};

struct GgufTensor {
  std::string name;
  uint32_t type = 0;              // GgmlType where it is a known one
  std::vector<int64_t> shape;     // as in the file: the fastest dimension first, (cols, rows) of a matrix
  int64_t offset = 0, bytes = 0;  // in the data part; bytes is 0 where the type's number is unknown
};

// Opening checks every length, count, type and offset against the file's size before anything is allocated for it.
class GgufReader {
 public:
  explicit GgufReader(const std::string& path);
  const std::string& path() const { return file_.path(); }
  const GgufValue* find(const std::string& key) const;  // null if there is none
  const std::map<std::string, GgufValue>& values() const { return values_; }
  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  const GgufTensor* tensor(const std::string& name) const;
  // Mapped bytes, perhaps not aligned to the element. An Error naming the type unless it is one of GgmlType's.
  const unsigned char* data(const GgufTensor& tensor) const;
  void dont_need(const GgufTensor& tensor) const;

 private:
  void check_offsets(int64_t alignment) const;

  MappedFile file_;
  int64_t data_offset_ = 0;
  std::map<std::string, GgufValue> values_;
  std::vector<GgufTensor> tensors_;
  std::map<std::string, size_t> index_;
};

// Streams a version 3 file, data aligned to 32 bytes: pairs and tensors are announced at once (offset and bytes are filled in
// here), the data follow in that order, whole or in pieces. Only f32, f16 and bf16 tensors.
class GgufWriter {
 public:
  GgufWriter(const std::string& path, const std::vector<std::pair<std::string, GgufValue>>& values,
             std::vector<GgufTensor> tensors);
  void write(const std::string& name, const void* data, int64_t bytes);
  void finish();

 private:
  void pad();

  std::vector<GgufTensor> tensors_;
  std::string header_;
  AtomicFile file_;
  size_t tensor_ = 0;
  int64_t tensor_written_ = 0;
};

}  // namespace irq
