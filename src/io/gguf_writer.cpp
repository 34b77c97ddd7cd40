#include <cstring>

#include "src/core/check.h"
#include "src/io/gguf.h"

namespace irq {
namespace {

constexpr int64_t kAlign = 32;

int64_t aligned(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

template <class T>
void put(std::string& out, T x) {
  out.append(reinterpret_cast<const char*>(&x), sizeof x);
}

void put_text(std::string& out, const std::string& text) {
  put<uint64_t>(out, text.size());
  out += text;
}

void put_integer(std::string& out, GgufType type, int64_t x) {
  switch (type) {
    case GgufType::u8:
    case GgufType::i8:
    case GgufType::boolean: return put(out, static_cast<uint8_t>(x));
    case GgufType::u16:
    case GgufType::i16: return put(out, static_cast<uint16_t>(x));
    case GgufType::u32:
    case GgufType::i32: return put(out, static_cast<uint32_t>(x));
    default: return put(out, x);
  }
}

void put_number(std::string& out, GgufType type, double x) {
  if (type == GgufType::f32) put(out, static_cast<float>(x));
  else put(out, x);
}

void put_value(std::string& out, const GgufValue& v) {
  const bool text = v.type == GgufType::string, number = v.type == GgufType::f32 || v.type == GgufType::f64;
  put(out, static_cast<uint32_t>(v.is_array ? GgufType::array : v.type));
  if (!v.is_array) {
    if (text) put_text(out, v.text);
    else if (number) put_number(out, v.type, v.number);
    else put_integer(out, v.type, v.integer);
    return;
  }
  put(out, static_cast<uint32_t>(v.type));
  put<uint64_t>(out, text ? v.texts.size() : number ? v.numbers.size() : v.integers.size());
  for (const std::string& x : v.texts) put_text(out, x);
  for (const double x : v.numbers) put_number(out, v.type, x);
  for (const int64_t x : v.integers) put_integer(out, v.type, x);
}

int64_t element_bytes(const GgufTensor& t) {
  if (t.type == static_cast<uint32_t>(GgmlType::f32)) return 4;
  if (t.type == static_cast<uint32_t>(GgmlType::f16) || t.type == static_cast<uint32_t>(GgmlType::bf16)) return 2;
  IRQ_CHECK(false, "gguf: no writer for tensor type %u", t.type);
}

// Fills in where each tensor lies in the data part.
void place(std::vector<GgufTensor>& tensors) {
  int64_t end = 0;
  for (GgufTensor& t : tensors) {
    int64_t count = 1;
    for (const int64_t n : t.shape) count *= n;
    t.offset = aligned(end);
    t.bytes = count * element_bytes(t);
    end = t.offset + t.bytes;
  }
}

std::string header_of(const std::vector<std::pair<std::string, GgufValue>>& values,
                      const std::vector<GgufTensor>& tensors) {
  std::string out = "GGUF";
  put<uint32_t>(out, 3);
  put<uint64_t>(out, tensors.size());
  put<uint64_t>(out, values.size());
  for (const auto& [key, value] : values) put_text(out, key), put_value(out, value);
  for (const GgufTensor& t : tensors) {
    put_text(out, t.name);
    put<uint32_t>(out, static_cast<uint32_t>(t.shape.size()));
    for (const int64_t n : t.shape) put<uint64_t>(out, static_cast<uint64_t>(n));
    put<uint32_t>(out, t.type);
    put<uint64_t>(out, static_cast<uint64_t>(t.offset));
  }
  out.resize(static_cast<size_t>(aligned(static_cast<int64_t>(out.size()))), '\0');
  return out;
}

// The data part ends with padding like every tensor in it.
int64_t data_bytes(const std::vector<GgufTensor>& tensors) {
  return tensors.empty() ? 0 : aligned(tensors.back().offset + tensors.back().bytes);
}

}  // namespace

GgufWriter::GgufWriter(const std::string& path, const std::vector<std::pair<std::string, GgufValue>>& values,
                       std::vector<GgufTensor> tensors)
    : tensors_((place(tensors), std::move(tensors))),
      header_(header_of(values, tensors_)),
      file_(path, static_cast<int64_t>(header_.size()) + data_bytes(tensors_)) {
  file_.write(header_);
}

void GgufWriter::pad() {
  const char zeros[kAlign] = {};
  file_.write(zeros, aligned(file_.size()) - file_.size());
}

void GgufWriter::write(const std::string& name, const void* data, int64_t bytes) {
  while (tensor_ < tensors_.size() && tensor_written_ == tensors_[tensor_].bytes && name != tensors_[tensor_].name)
    ++tensor_, tensor_written_ = 0, pad();
  IRQ_CHECK(
      tensor_ < tensors_.size() && name == tensors_[tensor_].name && tensor_written_ + bytes <= tensors_[tensor_].bytes,
      "gguf: %ld bytes of %s are not due", bytes, name.c_str());
  file_.write(data, bytes);
  tensor_written_ += bytes;
}

void GgufWriter::finish() {
  pad();
  const int64_t whole = static_cast<int64_t>(header_.size()) + data_bytes(tensors_);
  IRQ_CHECK(file_.size() == whole, "gguf: %ld of %ld bytes were written", file_.size(), whole);
  file_.commit();
}

}  // namespace irq
