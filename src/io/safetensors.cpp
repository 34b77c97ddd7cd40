#include "src/io/safetensors.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "src/core/check.h"
#include "src/core/dtype.h"
#include "src/io/flat_file.h"

namespace irq {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMaxHeader = 100'000'000;  // the format's own limit
constexpr size_t kMaxDims = 8;
constexpr uint64_t kMaxNumber = uint64_t{1} << 60;  // sums of two such numbers and a header stay in 64 bits

struct TypeSize {
  const char* name;
  int64_t bytes;
};
constexpr TypeSize kTypes[] = {{"F32", 4}, {"F16", 2},  {"BF16", 2},    {"F64", 8},     {"U8", 1},
                               {"I8", 1},  {"BOOL", 1}, {"I16", 2},     {"U16", 2},     {"I32", 4},
                               {"U32", 4}, {"I64", 8},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"U64", 8}};

int64_t bytes_of_type(const std::string& type) {
  for (const TypeSize& t : kTypes)
    if (type == t.name) return t.bytes;
  return 0;
}

// The header's JSON, checked while it is parsed: anything but {name: {dtype, shape, data_offsets}} and the texts of
// __metadata__ ends it at once, so neither depth nor size of what a file claims costs memory.
class HeaderHandler : public nlohmann::json_sax<Json> {
 public:
  HeaderHandler(const std::string& path, std::vector<SafetensorsEntry>& entries,
                std::map<std::string, std::string>& metadata)
      : path_(path), entries_(entries), metadata_(metadata) {}

  bool null() override { unexpected("null"); }
  bool boolean(bool) override { unexpected("true or false"); }
  bool number_float(double, const std::string& text) override { unexpected("the number " + printable(text)); }
  bool binary(Json::binary_t&) override { unexpected("binary data"); }
  bool number_integer(int64_t x) override { unexpected("the number " + std::to_string(x)); }  // a negative one
  bool number_unsigned(uint64_t x) override {
    if (place_ != Place::list) unexpected("the number " + std::to_string(x));
    if (x > kMaxNumber) unexpected("the number " + std::to_string(x));
    if (list_->size() == kMaxDims) unexpected("a list of more than 8 numbers");
    list_->push_back(static_cast<int64_t>(x));
    return true;
  }
  bool string(std::string& text) override {
    if (place_ == Place::metadata) metadata_[key_] = std::move(text);
    else if (place_ == Place::tensor && key_ == "dtype") entries_.back().dtype = std::move(text), has_type_ = true;
    else unexpected("the text \"" + printable(text) + "\"");
    return true;
  }
  bool start_object(size_t) override {
    if (place_ == Place::outside) place_ = Place::top;
    else if (place_ == Place::top) open_entry();
    else unexpected("an object");
    return true;
  }
  bool end_object() override {
    if (place_ == Place::tensor) close_entry();
    place_ = place_ == Place::top ? Place::outside : Place::top;
    return true;
  }
  bool key(std::string& text) override {
    key_ = std::move(text);
    if (place_ == Place::top) name_ = key_;
    if (place_ == Place::tensor && key_ != "dtype" && key_ != "shape" && key_ != "data_offsets")
      unexpected("the key \"" + printable(key_) + "\"");
    const bool again =
        (key_ == "dtype" && has_type_) || (key_ == "shape" && has_shape_) || (key_ == "data_offsets" && has_offsets_);
    if (place_ == Place::tensor && again) unexpected("the key \"" + key_ + "\" twice");
    return true;
  }
  bool start_array(size_t) override {
    if (place_ != Place::tensor || key_ == "dtype") unexpected("a list");
    list_ = key_ == "shape" ? &entries_.back().shape : &offsets_;
    (key_ == "shape" ? has_shape_ : has_offsets_) = true;
    place_ = Place::list;
    return true;
  }
  bool end_array() override {
    place_ = Place::tensor;
    return true;
  }
  bool parse_error(size_t position, const std::string&, const Json::exception&) override {
    throw Error(path_ + ": the header is not valid JSON")
        .line("found", strf("an error at byte %zu of the header", position))
        .line("likely", "a damaged file, or no safetensors file at all")
        .line("try", "download it again");
  }

 private:
  enum class Place { outside, top, metadata, tensor, list };

  [[noreturn]] void unexpected(const std::string& found) const {
    Error e(path_ + ": the header is not what a safetensors file has");
    e.line("expected", "{name: {\"dtype\": text, \"shape\": [sizes], \"data_offsets\": [begin, end]}, ...}");
    e.line("found", found + (place_ == Place::outside ? "" : " at \"" + printable(name_) + "\""));
    throw e;
  }
  void open_entry() {
    if (name_ == "__metadata__") {
      place_ = Place::metadata;
      return;
    }
    place_ = Place::tensor;
    entries_.emplace_back();
    entries_.back().name = name_;
    offsets_.clear();
    has_type_ = has_shape_ = has_offsets_ = false;
  }
  void close_entry() {
    SafetensorsEntry& e = entries_.back();
    if (!has_type_ || !has_shape_ || offsets_.size() != 2)
      unexpected("no dtype, no shape, or data_offsets that are not two numbers");
    const int64_t width = bytes_of_type(e.dtype);
    const std::string subject = path_ + ": tensor " + printable(e.name);
    if (width == 0)
      throw Error(subject + " is of an unknown type")
          .line("expected", "F32, F16, BF16 or another of the format's whole-byte types")
          .line("found", printable(e.dtype));
    int64_t need = width;
    bool overflow = false, empty = false;
    std::string shape;
    for (const int64_t d : e.shape) {
      empty |= d == 0;
      overflow |= __builtin_mul_overflow(need, std::max<int64_t>(d, 1), &need);
      shape += (shape.empty() ? "" : ", ") + std::to_string(d);
    }
    if (empty) need = 0;
    if (overflow) throw Error(subject + " has an impossible size").line("found", "shape [" + shape + "]");
    if (offsets_[0] > offsets_[1])
      throw Error(subject + " ends before it begins")
          .line("found", strf("data_offsets [%ld, %ld]", offsets_[0], offsets_[1]));
    if (offsets_[1] - offsets_[0] != need)
      throw Error(subject + " has another size than its shape says")
          .line("expected", with_commas(need) + " bytes for " + e.dtype + " [" + shape + "]")
          .line("found", strf("data_offsets [%ld, %ld]: %s bytes", offsets_[0], offsets_[1],
                              with_commas(offsets_[1] - offsets_[0]).c_str()));
    e.begin = offsets_[0], e.bytes = need;
  }

  const std::string& path_;
  std::vector<SafetensorsEntry>& entries_;
  std::map<std::string, std::string>& metadata_;
  Place place_ = Place::outside;
  std::string key_, name_;
  std::vector<int64_t> offsets_, *list_ = nullptr;
  bool has_type_ = false, has_shape_ = false, has_offsets_ = false;
};

// The length of the header, from the first eight bytes.
int64_t header_length(const MappedFile& file) {
  const std::string& path = file.path();
  uint64_t length = 0;
  if (file.size() >= 8) std::memcpy(&length, file.data(), 8);
  const auto have = static_cast<uint64_t>(std::max<int64_t>(file.size() - 8, 0));
  if (length >= 2 && length <= have && length <= kMaxHeader && file.data()[8] == '{')
    return static_cast<int64_t>(length);
  const FileKind kind = sniff(path);
  if (kind != FileKind::safetensors && kind != FileKind::unknown) throw_wrong_kind(path, FileKind::safetensors);
  Error e(path + ": not a safetensors file, or a damaged one");
  e.line("expected", "8 bytes with the header's length (at most 100,000,000), then a JSON header that begins with {");
  e.line("found", strf("a length of %lu in a file of %s bytes", length, with_commas(file.size()).c_str()));
  if (length <= kMaxHeader && length > have && length > 2) e.line("likely", "interrupted download or copy");
  e.line("try", "download it again");
  throw e;
}

}  // namespace

std::optional<DType> plain_type(const std::string& dtype) {
  for (const DType t : {DType::F32, DType::F16, DType::BF16})
    if (dtype == safetensors_name(t)) return t;
  return std::nullopt;
}

const char* safetensors_name(DType t) {
  switch (t) {
    case DType::F32: return "F32";
    case DType::F16: return "F16";
    case DType::BF16: return "BF16";
    default: IRQ_CHECK(false, "safetensors: no plain float type %s", name_of(t));
  }
}

SafetensorsReader::SafetensorsReader(const std::string& path) : file_(path) {
  const int64_t length = header_length(file_);
  data_offset_ = 8 + length;
  HeaderHandler handler(path, entries_, metadata_);
  const char* json = reinterpret_cast<const char*>(file_.data()) + 8;
  Json::sax_parse(json, json + length, &handler);
  std::sort(entries_.begin(), entries_.end(), [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
    return std::tie(a.begin, a.bytes, a.name) < std::tie(b.begin, b.bytes, b.name);
  });
  check_offsets();
  for (size_t i = 0; i < entries_.size(); ++i)
    if (!index_.emplace(entries_[i].name, i).second)
      throw Error(path + ": two tensors are called " + printable(entries_[i].name));
}

// Every byte of the data belongs to exactly one tensor, as the format demands.
void SafetensorsReader::check_offsets() const {
  const int64_t have = file_.size() - data_offset_;
  int64_t at = 0;
  const SafetensorsEntry* before = nullptr;
  for (const SafetensorsEntry& e : entries_) {
    if (e.begin < at)
      throw Error(path() + ": two tensors share bytes")
          .line("found", printable(before->name) + " and " + printable(e.name) +
                             strf(", which begins at %ld, before the former ends at %ld", e.begin, at));
    if (e.begin > at)
      throw Error(path() + ": there are bytes that belong to no tensor")
          .line("found", strf("%ld to %ld of the data, in front of ", at, e.begin) + printable(e.name));
    if (e.begin + e.bytes > have)
      throw Error(path() + ": the file is cut short")
          .line("header", strf("%zu tensors -> the file must have ", entries_.size()) +
                              with_commas(data_offset_ + entries_.back().begin + entries_.back().bytes) + " bytes")
          .line("on disk", with_commas(file_.size()) + " bytes; first incomplete tensor: " + printable(e.name))
          .line("likely", "interrupted download or copy")
          .line("try", "download it again");
    at = e.begin + e.bytes, before = &e;
  }
  if (at < have)
    throw Error(path() + ": there are bytes behind the last tensor")
        .line("header", "the file must have " + with_commas(data_offset_ + at) + " bytes")
        .line("on disk", with_commas(file_.size()) + " bytes")
        .line("likely", "a download that was resumed wrongly")
        .line("try", "download it again");
}

const SafetensorsEntry* SafetensorsReader::find(const std::string& name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &entries_[found->second];
}

const unsigned char* SafetensorsReader::data(const SafetensorsEntry& e) const {
  return file_.data() + data_offset_ + e.begin;
}

void SafetensorsReader::dont_need(const SafetensorsEntry& e) const { dont_need(e, 0, e.bytes); }
void SafetensorsReader::dont_need(const SafetensorsEntry& e, int64_t begin, int64_t bytes) const {
  file_.dont_need(data_offset_ + e.begin + begin, bytes);
}
void SafetensorsReader::will_need(const SafetensorsEntry& e, int64_t begin, int64_t bytes) const {
  file_.will_need(data_offset_ + e.begin + begin, bytes);
}

int64_t SafetensorsEntry::count() const {
  int64_t n = 1;
  for (const int64_t d : shape) n *= d;
  return n;
}

}  // namespace irq
