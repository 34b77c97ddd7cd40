#include "src/io/gguf.h"

#include <algorithm>
#include <cstring>

#include "src/core/check.h"
#include "src/io/ggml_blocks.h"
#include "src/io/printable.h"

namespace irq {
namespace {

// Real files have some dozens of pairs, some thousands of tensors, 128,256 tokens with 280,147 merges. These bounds keep what
// a hostile file can make us allocate to a small multiple of its own size.
constexpr uint64_t kMaxPairs = 1 << 16, kMaxTensors = 1 << 16, kMaxElements = 1 << 24;
constexpr uint64_t kMaxKeyBytes = 65535;  // as the format's specification says
constexpr uint64_t kMaxNameBytes = 1024, kMaxStringBytes = 64 << 20;
constexpr uint64_t kMaxAlignment = 1 << 24;
constexpr uint32_t kMaxDims = 4;

int64_t bytes_of(GgufType type) {
  switch (type) {
    case GgufType::u8:
    case GgufType::i8:
    case GgufType::boolean: return 1;
    case GgufType::u16:
    case GgufType::i16: return 2;
    case GgufType::u32:
    case GgufType::i32:
    case GgufType::f32: return 4;
    case GgufType::u64:
    case GgufType::i64:
    case GgufType::f64:
    case GgufType::string: return 8;  // a string: at least its length
    case GgufType::array: break;
  }
  return 0;
}

// Reads front to back; every length is compared with what is left before it is used.
class Cursor {
 public:
  explicit Cursor(const MappedFile& file) : file_(file) {}
  int64_t at() const { return at_; }
  uint64_t left() const { return static_cast<uint64_t>(file_.size() - at_); }

  Error damaged(const std::string& expected, const std::string& found) const {
    return Error(file_.path() + ": a damaged GGUF file")
        .line("expected", expected)
        .line("found", found)
        .line("likely", "an interrupted download or copy, or a program that writes the format wrongly");
  }
  void need(uint64_t bytes, const std::string& what) const {
    if (bytes <= left()) return;
    throw Error(file_.path() + ": GGUF file is cut short, or claims more than it holds")
        .line("expected", strf("%lu more bytes for %s", bytes, what.c_str()))
        .line("found", strf("%lu bytes from byte %ld to the end of the file", left(), at_))
        .line("likely", "an interrupted download or copy");
  }
  template <class T>
  T get(const std::string& what) {
    need(sizeof(T), what);
    T x;
    std::memcpy(&x, file_.data() + at_, sizeof(T));
    at_ += static_cast<int64_t>(sizeof(T));
    return x;
  }
  std::string text(uint64_t limit, const std::string& what) {
    const uint64_t length = get<uint64_t>(what);
    need(length, what);
    if (length > limit) throw damaged(strf("%s of at most %lu bytes", what.c_str(), limit), strf("%lu bytes", length));
    std::string s(reinterpret_cast<const char*>(file_.data()) + at_, static_cast<size_t>(length));
    at_ += static_cast<int64_t>(length);
    return s;
  }
  // A whole number or boolean, or a number with a fraction.
  int64_t integer(GgufType type, const std::string& what) {
    switch (type) {
      case GgufType::u8: return get<uint8_t>(what);
      case GgufType::i8: return get<int8_t>(what);
      case GgufType::u16: return get<uint16_t>(what);
      case GgufType::i16: return get<int16_t>(what);
      case GgufType::u32: return get<uint32_t>(what);
      case GgufType::i32: return get<int32_t>(what);
      case GgufType::boolean: return get<uint8_t>(what) != 0;
      default: return get<int64_t>(what);
    }
  }
  double number(GgufType type, const std::string& what) {
    return type == GgufType::f32 ? get<float>(what) : get<double>(what);
  }

 private:
  const MappedFile& file_;
  int64_t at_ = 0;
};

GgufType read_type(Cursor& in, const std::string& key) {
  const uint32_t type = in.get<uint32_t>("the type of " + key);
  if (type > static_cast<uint32_t>(GgufType::f64))
    throw in.damaged("a value type of 0 to 12 for " + key, strf("type %u", type));
  return static_cast<GgufType>(type);
}

void read_array(Cursor& in, const std::string& key, GgufValue& value, uint64_t& elements_left) {
  value.is_array = true;
  value.type = read_type(in, key);
  if (value.type == GgufType::array) throw in.damaged("no array of arrays", key + " is one");
  const uint64_t count = in.get<uint64_t>("the count of " + key);
  const uint64_t element = static_cast<uint64_t>(bytes_of(value.type));
  if (count > in.left() / element)  // before anything is multiplied or allocated
    throw in.damaged(
        strf("at most %lu elements in %s, by the bytes left in the file", in.left() / element, key.c_str()),
        strf("%lu elements", count));
  if (count > elements_left)
    throw in.damaged(strf("at most %lu array elements in all", kMaxElements),
                     strf("%lu more in %s", count, key.c_str()));
  elements_left -= count;
  const size_t n = static_cast<size_t>(count);
  if (value.type == GgufType::string) {
    value.texts.reserve(n);
    for (size_t i = 0; i < n; ++i) value.texts.push_back(in.text(kMaxStringBytes, key));
  } else if (value.type == GgufType::f32 || value.type == GgufType::f64) {
    value.numbers.reserve(n);
    for (size_t i = 0; i < n; ++i) value.numbers.push_back(in.number(value.type, key));
  } else {
    value.integers.reserve(n);
    for (size_t i = 0; i < n; ++i) value.integers.push_back(in.integer(value.type, key));
  }
}

GgufValue read_value(Cursor& in, const std::string& key, uint64_t& elements_left) {
  GgufValue value;
  value.type = read_type(in, key);
  if (value.type == GgufType::array) read_array(in, key, value, elements_left);
  else if (value.type == GgufType::string) value.text = in.text(kMaxStringBytes, key);
  else if (value.type == GgufType::f32 || value.type == GgufType::f64) value.number = in.number(value.type, key);
  else value.integer = in.integer(value.type, key);
  return value;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t n : shape) text += (text.empty() ? "" : " x ") + std::to_string(n);
  return text;
}

GgufTensor read_tensor(Cursor& in) {
  GgufTensor t;
  t.name = in.text(kMaxNameBytes, "the name of a tensor");
  const std::string name = printable(t.name);
  const uint32_t dims = in.get<uint32_t>("the dimensions of " + name);
  if (dims < 1 || dims > kMaxDims) throw in.damaged("1 to 4 dimensions of " + name, strf("%u", dims));
  int64_t count = 1;
  bool fits = true;
  for (uint32_t d = 0; d < dims; ++d) {
    const int64_t n = in.get<int64_t>("the shape of " + name);
    t.shape.push_back(n);
    fits = fits && n >= 1 && !__builtin_mul_overflow(count, n, &count);
  }
  t.type = in.get<uint32_t>("the type of " + name);
  t.offset = in.get<int64_t>("the offset of " + name);
  const GgmlBlock* block = ggml_block(t.type);
  if (fits && block)
    fits = t.shape[0] % block->weights == 0 && !__builtin_mul_overflow(count / block->weights, block->bytes, &t.bytes);
  if (!fits || t.offset < 0)
    throw in.damaged("a possible shape and offset of " + name,
                     strf("%s of %s at offset %lu", shape_text(t.shape).c_str(), ggml_type_name(t.type).c_str(),
                          static_cast<uint64_t>(t.offset)));
  return t;
}

// Magic and version. Throws unless it is version 2 or 3, little-endian.
void check_opening(const MappedFile& file, Cursor& in) {
  if (file.size() < 4 || std::memcmp(file.data(), "GGUF", 4) != 0)
    throw Error(file.path() + ": not a GGUF file").line("expected", "the letters GGUF at its beginning");
  in.get<uint32_t>("the magic");
  const uint32_t version = in.get<uint32_t>("the version");
  if (version == 2 || version == 3) return;
  Error e(file.path() + ": a GGUF file of a kind that is not supported");
  e.line("expected", "version 2 or 3, little-endian");
  if (version == 0 || (version & 0xffff) != 0) {
    e.line("found", strf("version %u", version));
    if (version == 1) e.line("try", "convert the model again with a llama.cpp of September 2023 or later");
  } else {
    e.line("found", strf("version %u, big-endian", __builtin_bswap32(version)));
    e.line("try", "take the little-endian file of the same model");
  }
  throw e;
}

int64_t read_alignment(const Cursor& in, const GgufValue* value) {
  if (!value) return 32;
  const bool good = !value->is_array && value->type == GgufType::u32 && value->integer >= 1 &&
                    static_cast<uint64_t>(value->integer) <= kMaxAlignment &&
                    (value->integer & (value->integer - 1)) == 0;
  if (!good)
    throw in.damaged(
        "general.alignment to be a u32, a power of two, at most 16,777,216",
        strf("%s%ld", value->is_array || value->type != GgufType::u32 ? "another type, " : "", value->integer));
  return value->integer;
}

}  // namespace

GgufReader::GgufReader(const std::string& path) : file_(path) {
  Cursor in(file_);
  check_opening(file_, in);
  const uint64_t tensors = in.get<uint64_t>("the number of tensors"), pairs = in.get<uint64_t>("the number of pairs");
  // A pair takes at least 8 + 4 + 1 bytes, a tensor's entry at least 8 + 4 + 8 + 4 + 8.
  if (pairs > kMaxPairs || pairs > in.left() / 13 || tensors > kMaxTensors || tensors > in.left() / 32)
    throw in.damaged(strf("at most %lu pairs and %lu tensors in %s bytes", std::min(kMaxPairs, in.left() / 13),
                          std::min(kMaxTensors, in.left() / 32), with_commas(file_.size()).c_str()),
                     strf("%lu pairs and %lu tensors", pairs, tensors));
  uint64_t elements_left = kMaxElements;
  for (uint64_t i = 0; i < pairs; ++i) {
    const std::string key = in.text(kMaxKeyBytes, strf("key %lu", i));
    if (!values_.emplace(key, read_value(in, printable(key), elements_left)).second)
      throw in.damaged("every key once", printable(key) + " twice");
  }
  for (uint64_t i = 0; i < tensors; ++i) {
    tensors_.push_back(read_tensor(in));
    if (!index_.emplace(tensors_.back().name, tensors_.size() - 1).second)
      throw in.damaged("every tensor once", printable(tensors_.back().name) + " twice");
  }
  const int64_t alignment = read_alignment(in, find("general.alignment"));
  data_offset_ = (in.at() + alignment - 1) / alignment * alignment;
  check_offsets(alignment);
}

void GgufReader::check_offsets(int64_t alignment) const {
  const int64_t data_bytes = std::max<int64_t>(0, file_.size() - data_offset_);
  std::vector<const GgufTensor*> order;
  for (const GgufTensor& t : tensors_) order.push_back(&t);
  std::sort(order.begin(), order.end(), [](const GgufTensor* a, const GgufTensor* b) {
    return a->offset != b->offset ? a->offset < b->offset : a->bytes < b->bytes;
  });
  const GgufTensor* before = nullptr;
  for (const GgufTensor* t : order) {
    const std::string name =
        strf("%s (%s, %s)", printable(t->name).c_str(), shape_text(t->shape).c_str(), ggml_type_name(t->type).c_str());
    if (t->offset > data_bytes || t->bytes > data_bytes - t->offset)
      throw Error(path() + ": GGUF file is cut short")
          .line("expected",
                strf("%s bytes of %s behind byte %s", with_commas(t->bytes).c_str(), name.c_str(),
                     strf("%lu", static_cast<uint64_t>(data_offset_) + static_cast<uint64_t>(t->offset)).c_str()))
          .line("found", with_commas(file_.size()) + " bytes in all")
          .line("likely", "an interrupted download or copy, or a damaged file");
    const bool overlaps = before && before->bytes > t->offset - before->offset;
    if (overlaps || t->offset % alignment)
      throw Error(path() + ": a damaged GGUF file")
          .line("expected",
                overlaps ? "tensors that do not overlap" : strf("every tensor at a multiple of %ld bytes", alignment))
          .line("found", strf("%s at offset %ld", name.c_str(), t->offset) +
                             (overlaps ? ", inside " + printable(before->name) : ""));
    before = t;
  }
}

const GgufValue* GgufReader::find(const std::string& key) const {
  const auto found = values_.find(key);
  return found == values_.end() ? nullptr : &found->second;
}

const GgufTensor* GgufReader::tensor(const std::string& name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

const unsigned char* GgufReader::data(const GgufTensor& tensor) const {
  if (!ggml_decodable(tensor.type))
    throw Error(path() + ": " + printable(tensor.name) + " is of a type that cannot be read")
        .line("expected", "F32, F16, BF16, Q8_0, Q6_K, Q4_0 or Q4_1")
        .line("found", ggml_type_name(tensor.type))
        .line("try", "take an F16, BF16 or Q8_0 file of the same model");
  return file_.data() + data_offset_ + tensor.offset;
}

void GgufReader::dont_need(const GgufTensor& tensor) const {
  file_.dont_need(data_offset_ + tensor.offset, tensor.bytes);
}

}  // namespace irq
