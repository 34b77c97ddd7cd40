#include "src/io/npy.h"

#include <cstring>

#include "src/core/check.h"
#include "src/core/dtype.h"
#include "src/core/file.h"

namespace irq {
namespace {

struct TypeInfo {
  NpyType type;
  const char* descr;
  int64_t bytes;
};
constexpr TypeInfo kTypes[] = {{NpyType::f32, "<f4", 4}, {NpyType::u8, "|u1", 1},  {NpyType::i32, "<i4", 4},
                               {NpyType::i64, "<i8", 8}, {NpyType::f64, "<f8", 8}, {NpyType::f16, "<f2", 2}};

const TypeInfo& info_of(NpyType type) {
  for (const TypeInfo& t : kTypes)
    if (t.type == type) return t;
  return kTypes[0];
}

// What stands behind `'key':` in the header's dictionary, up to `end`.
std::string value_of(const std::string& header, const std::string& key, const char* begin, const char* end) {
  const size_t at = header.find("'" + key + "'");
  if (at == std::string::npos) return "";
  const size_t from = header.find(begin, at + key.size() + 2);
  const size_t to = from == std::string::npos ? from : header.find(end, from + 1);
  return to == std::string::npos ? "" : header.substr(from + 1, to - from - 1);
}

std::vector<int64_t> parse_shape(const std::string& text, const std::string& path) {
  std::vector<int64_t> shape;
  int64_t x = -1;
  for (const char ch : text + ",") {
    if (ch >= '0' && ch <= '9') x = (x < 0 ? 0 : x) * 10 + (ch - '0');
    if (x > int64_t{1} << 50) throw Error(path + ": an impossible shape").line("found", "(" + text + ")");
    if (ch != ',' || x < 0) continue;
    shape.push_back(x);
    x = -1;
  }
  return shape;
}

template <class T>
void widen(const std::vector<unsigned char>& bytes, std::vector<double>& out) {
  for (size_t i = 0; i < out.size(); ++i) {
    T x;
    std::memcpy(&x, bytes.data() + i * sizeof(T), sizeof(T));
    if constexpr (std::is_same_v<T, F16>) out[i] = static_cast<double>(to_float(x));
    else out[i] = static_cast<double>(x);
  }
}

}  // namespace

int64_t Npy::count() const {
  int64_t n = 1;
  for (const int64_t s : shape) n *= s;
  return n;
}

void Npy::check_type(size_t element_bytes) const {
  IRQ_CHECK(static_cast<int64_t>(element_bytes) == info_of(type).bytes, "elements of %zu bytes in a %s array",
            element_bytes, info_of(type).descr);
}

std::vector<double> Npy::as_f64() const {
  std::vector<double> out(static_cast<size_t>(count()));
  switch (type) {
    case NpyType::f32: widen<float>(bytes, out); break;
    case NpyType::u8: widen<uint8_t>(bytes, out); break;
    case NpyType::i32: widen<int32_t>(bytes, out); break;
    case NpyType::i64: widen<int64_t>(bytes, out); break;
    case NpyType::f64: widen<double>(bytes, out); break;
    case NpyType::f16: widen<F16>(bytes, out); break;
  }
  return out;
}

Npy read_npy(const std::string& path) {
  const MappedFile file(path);
  const unsigned char* p = file.data();
  if (file.size() < 12 || std::memcmp(p, "\x93NUMPY", 6) != 0) throw Error(path + ": is not a .npy file");
  // The header's length: 2 bytes in format 1, 4 in formats 2 and 3.
  const int64_t head = p[6] == 1 ? 10 : 12;
  const int64_t length = p[6] == 1 ? p[8] + 256 * p[9] : p[8] + 256 * (p[9] + 256 * (p[10] + int64_t{256} * p[11]));
  if (head + length > file.size()) throw Error(path + ": .npy file is cut short");
  const std::string header(reinterpret_cast<const char*>(p) + head, static_cast<size_t>(length));
  const std::string descr = value_of(header, "descr", "'", "'");
  if (header.find("'fortran_order': False") == std::string::npos)
    throw Error(path + ": .npy file in Fortran order").line("expected", "C order (numpy.ascontiguousarray)");
  for (const TypeInfo& t : kTypes) {
    if (descr != t.descr) continue;
    Npy a;
    a.type = t.type;
    a.shape = parse_shape(value_of(header, "shape", "(", ")"), path);
    int64_t bytes = t.bytes;
    for (const int64_t s : a.shape)
      if (__builtin_mul_overflow(bytes, s, &bytes)) throw Error(path + ": an impossible shape");
    if (file.size() - head - length != bytes)
      throw Error(path + ": .npy file of the wrong size")
          .line("expected", with_commas(head + length + bytes) + " bytes")
          .line("found", with_commas(file.size()) + " bytes");
    a.bytes.assign(p + head + length, p + file.size());
    return a;
  }
  throw Error(path + ": .npy file of an unsupported type")
      .line("found", descr)
      .line("expected", "f2 f4 f8 u1 i4 i8, little-endian");
}

void write_npy(const std::string& path, NpyType type, const std::vector<int64_t>& shape, const void* data) {
  const TypeInfo& t = info_of(type);
  std::string dims;
  int64_t bytes = t.bytes;
  for (size_t i = 0; i < shape.size(); ++i) {
    dims += (i ? ", " : "") + std::to_string(shape[i]);
    bytes *= shape[i];
  }
  if (shape.size() == 1) dims += ",";
  std::string header = strf("{'descr': '%s', 'fortran_order': False, 'shape': (%s), }", t.descr, dims.c_str());
  header.resize((10 + header.size() + 1 + 63) / 64 * 64 - 10 - 1, ' ');  // the data starts at a multiple of 64
  header += '\n';
  std::string head("\x93NUMPY\x01\x00", 8);
  head += static_cast<char>(header.size() & 255);
  head += static_cast<char>(header.size() >> 8);
  AtomicFile file(path, static_cast<int64_t>(head.size() + header.size()) + bytes);
  file.write(head + header);
  file.write(data, bytes);
  file.commit();
}

}  // namespace irq
