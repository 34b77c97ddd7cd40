#include "src/io/flat_file.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <future>

#include "src/core/check.h"

namespace irq {
namespace {

constexpr int kTableHashSlot = 4, kHeaderHashSlot = 254;

int32_t magic_of(FileKind kind) {  // the ASCII letters IRQB, IRQQ, IRQA, IRQS in the file's first four bytes
  const char letter = kind == FileKind::base        ? 'B'
                      : kind == FileKind::quantized ? 'Q'
                      : kind == FileKind::adapter   ? 'A'
                                                    : 'S';
  const char text[4] = {'I', 'R', 'Q', letter};
  int32_t magic;
  std::memcpy(&magic, text, 4);
  return magic;
}

int64_t table_offset_end(int64_t payload_bytes) {  // where the payload starts
  const int64_t chunks = (payload_bytes + kChunkBytes - 1) / kChunkBytes;
  return (kHeaderBytes + 8 * chunks + kTensorAlign - 1) / kTensorAlign * kTensorAlign;
}

int64_t get64(const HeaderFields& f, int slot) {
  int64_t x;
  std::memcpy(&x, &f.slot[static_cast<size_t>(slot)], 8);
  return x;
}

void put64(HeaderFields& f, int slot, uint64_t x) { std::memcpy(&f.slot[static_cast<size_t>(slot)], &x, 8); }

uint64_t header_hash(const HeaderFields& f) { return hash_bytes(f.slot.data(), 4 * kHeaderHashSlot); }

std::string hex(uint64_t x) { return strf("%016lx", x); }

// The command that makes such a file again.
std::string remedy(FileKind kind, const std::string& path) {
  const std::string inspect = "    then    ./irq_inspect " + path;
  if (kind == FileKind::base) return "./irq_convert <hf_dir> " + path + inspect;
  if (kind == FileKind::quantized) return "./irq_quantize <base.bin> " + path + inspect;
  return "copy it again from where it was made    then    ./irq_inspect " + path;
}

const char* noun(FileKind kind) {
  return kind == FileKind::adapter ? "adapter" : kind == FileKind::state ? "training state" : "checkpoint";
}

}  // namespace

// ---- header fields ---------------------------------------------------------------------------------------------------

int32_t& HeaderFields::next() {
  IRQ_CHECK(at_ < 240, "too many header fields");
  return slot[static_cast<size_t>(at_++)];
}
void HeaderFields::put(int32_t x) { next() = x; }
void HeaderFields::put(int64_t x) {
  put(static_cast<int32_t>(x & 0xffffffff));
  put(static_cast<int32_t>(x >> 32));
}
void HeaderFields::put(double x) { put(std::bit_cast<int64_t>(x)); }
void HeaderFields::put(const std::string& text, int slots) {
  IRQ_CHECK(text.size() <= static_cast<size_t>(4 * slots), "header text too long: %s", text.c_str());
  for (int i = 0; i < slots; ++i) {
    int32_t x = 0;
    const size_t from = static_cast<size_t>(4 * i);
    if (from < text.size()) std::memcpy(&x, text.data() + from, std::min<size_t>(4, text.size() - from));
    put(x);
  }
}
int32_t HeaderFields::get_i32() { return next(); }
int64_t HeaderFields::get_i64() {
  const uint64_t low = static_cast<uint32_t>(next());
  return static_cast<int64_t>(low | static_cast<uint64_t>(static_cast<uint32_t>(next())) << 32);
}
double HeaderFields::get_f64() { return std::bit_cast<double>(get_i64()); }
std::string HeaderFields::get_text(int slots) {
  std::string text;
  for (int i = 0; i < slots; ++i) {
    const int32_t x = get_i32();
    text.append(reinterpret_cast<const char*>(&x), 4);
  }
  text.resize(std::min(text.size(), text.find('\0')));
  return text;
}

// ---- reader ----------------------------------------------------------------------------------------------------------

FlatReader::FlatReader(const std::string& path, FileKind kind) : file_(path), kind_(kind) {
  const int32_t magic = magic_of(kind);
  if (file_.size() < 4 || std::memcmp(file_.data(), &magic, 4) != 0) throw_wrong_kind(path, kind);
  if (file_.size() < kHeaderBytes)
    throw Error(path + ": " + noun(kind) + " is cut short")
        .line("header", with_commas(kHeaderBytes) + " bytes")
        .line("on disk", with_commas(file_.size()) + " bytes")
        .line("likely", "interrupted download or copy")
        .line("try", remedy(kind, path));
  std::memcpy(fields_.slot.data(), file_.data(), kHeaderBytes);
  const int32_t version = fields_.slot[1];
  const uint64_t expected = static_cast<uint64_t>(get64(fields_, kHeaderHashSlot));
  hash_ = header_hash(fields_);
  if (hash_ != expected)
    throw Error(path + ": the header is damaged")
        .line("expected", "checksum " + hex(expected))
        .line("found", "checksum " + hex(hash_) + (version == kFileVersion ? "" : strf(", and version %d", version)))
        .line("likely", "a disk or transfer error after the file was written")
        .line("try", remedy(kind, path));
  if (version != kFileVersion)
    throw Error(path +
                (version > kFileVersion ? ": made by a newer version of these tools" : ": of an unknown version"))
        .line("expected", strf("file version %d", kFileVersion))
        .line("found", strf("file version %d", version))
        .line("try", version > kFileVersion ? "update these tools (git pull && make)" : remedy(kind, path));
  payload_bytes_ = get64(fields_, 2);
  if (payload_bytes_ < 0 || payload_bytes_ > int64_t{1} << 60)
    throw Error(path + ": the header claims an impossible size")
        .line("found", with_commas(payload_bytes_) + " payload bytes");
  payload_offset_ = table_offset_end(payload_bytes_);
}

void FlatReader::check_size(const std::string& what, const Layout* layout) {
  if (layout && layout->payload_bytes() != payload_bytes_)
    throw Error(path() + ": the header contradicts itself")
        .line("expected", with_commas(layout->payload_bytes()) + " payload bytes for " + what)
        .line("found", with_commas(payload_bytes_) + " payload bytes")
        .line("try", remedy(kind_, path()));
  const int64_t must = payload_offset_ + payload_bytes_, have = file_.size();
  const std::string header = what + " -> the file must have " + with_commas(must) + " bytes";
  if (have > must)
    throw Error(path() + ": there are bytes behind the end")
        .line("header", header)
        .line("on disk", with_commas(have) + " bytes: " + with_commas(have - must) + " too many")
        .line("likely", "two files joined into one, or a download that was resumed wrongly")
        .line("try", remedy(kind_, path()));
  if (have < must) {
    const double percent = 100.0 * static_cast<double>(have) / static_cast<double>(must);
    std::string found = with_commas(have) + strf(" bytes (%.1f %%)", percent);
    if (layout) {
      for (const TensorSpec& t : layout->tensors()) {
        if (payload_offset_ + t.offset + t.bytes() <= have) continue;
        found += strf("; first incomplete tensor: %s (%ld x %ld)", t.name.c_str(), t.rows, t.cols);
        break;
      }
    }
    throw Error(path() + ": " + noun(kind_) + " is cut short")
        .line("header", header)
        .line("on disk", found)
        .line("likely", kind_ == FileKind::base ? "interrupted download or conversion" : "interrupted download or copy")
        .line("try", remedy(kind_, path()));
  }
  const uint64_t table = hash_bytes(file_.data() + kHeaderBytes, static_cast<size_t>(payload_offset_ - kHeaderBytes));
  if (table != static_cast<uint64_t>(get64(fields_, kTableHashSlot)))
    throw Error(path() + ": the table of checksums is damaged")
        .line("expected", "checksum " + hex(static_cast<uint64_t>(get64(fields_, kTableHashSlot))))
        .line("found", "checksum " + hex(table))
        .line("likely", "a disk or transfer error after the file was written")
        .line("try", remedy(kind_, path()));
  verified_ = std::make_unique<std::atomic<uint8_t>[]>(static_cast<size_t>(chunks()));
}

void FlatReader::set_layout(Layout layout) {
  IRQ_CHECK(verified_ != nullptr, "check_size() comes first");
  layout_ = std::move(layout);
}

Tensor FlatReader::tensor(const std::string& name) {
  const TensorSpec* spec = layout_.find(name);
  if (!spec) {
    std::string some;
    for (size_t i = 0; i < layout_.tensors().size() && i < 4; ++i) some += layout_.tensors()[i].name + " ";
    throw Error(path() + ": has no tensor " + name)
        .line("found", strf("%zu tensors: %s...", layout_.tensors().size(), some.c_str()))
        .line("try", "./irq_inspect " + path() + " --tensors");
  }
  return view(*spec);
}

Tensor FlatReader::view(const TensorSpec& spec) {
  IRQ_CHECK(spec.offset >= 0 && spec.offset + spec.bytes() <= payload_bytes_, "%s is outside the payload",
            spec.name.c_str());
  verify(spec.offset, spec.bytes(), spec.name);
  void* data = const_cast<unsigned char*>(file_.data()) + payload_offset_ + spec.offset;
  return make_view(data, spec.dtype, spec.rows, spec.cols, spec.name.c_str());
}

bool FlatReader::chunk_is_good(int64_t chunk) {
  auto& verified = verified_[static_cast<size_t>(chunk)];
  if (verified.load(std::memory_order_acquire)) return true;
  const int64_t begin = chunk * kChunkBytes, bytes = std::min(kChunkBytes, payload_bytes_ - begin);
  uint64_t expected;
  std::memcpy(&expected, file_.data() + kHeaderBytes + 8 * chunk, 8);
  file_.will_need(payload_offset_ + begin, bytes);
  if (hash_bytes(file_.data() + payload_offset_ + begin, static_cast<size_t>(bytes)) != expected) return false;
  verified.store(1, std::memory_order_release);
  return true;
}

bool FlatReader::read_chunk(int64_t chunk, void* to) const {
  constexpr int64_t kStep = int64_t{1} << 20;  // hashed while it is still in the core's cache
  const int64_t begin = chunk * kChunkBytes, bytes = std::min(kChunkBytes, payload_bytes_ - begin);
  uint64_t expected;
  std::memcpy(&expected, file_.data() + kHeaderBytes + 8 * chunk, 8);
  Hasher hasher;
  for (int64_t at = 0; at < bytes; at += kStep) {
    const int64_t n = std::min(kStep, bytes - at);
    char* p = static_cast<char*>(to) + at;
    file_.read_at(payload_offset_ + begin + at, p, n);
    hasher.update(p, static_cast<size_t>(n));
  }
  return hasher.digest() == expected;
}

void FlatReader::verify(int64_t begin, int64_t bytes, const std::string& tensor_name) {
  if (bytes <= 0) return;
  const int64_t first = begin / kChunkBytes, last = (begin + bytes - 1) / kChunkBytes;
  int64_t bad = last + 1;
#pragma omp parallel for reduction(min : bad) schedule(dynamic) if (last > first)
  for (int64_t c = first; c <= last; ++c)
    if (!chunk_is_good(c)) bad = std::min(bad, c);
  if (bad <= last) throw_damaged(bad, tensor_name);
}

void FlatReader::verify_all(const std::function<void(int64_t, int64_t)>& progress) {
  constexpr int64_t kStep = 8 * kChunkBytes;
  for (int64_t begin = 0; begin < payload_bytes_; begin += kStep) {
    const int64_t bytes = std::min(kStep, payload_bytes_ - begin);
    verify(begin, bytes, "");
    if (progress) progress(begin + bytes, payload_bytes_);
  }
}

void FlatReader::throw_damaged(int64_t chunk, const std::string& tensor_name) {
  const int64_t begin = chunk * kChunkBytes, end = std::min(begin + kChunkBytes, payload_bytes_);
  const TensorSpec *first = nullptr, *last = nullptr;
  for (const TensorSpec& t : layout_.tensors()) {
    if (t.offset >= end || t.offset + t.bytes() <= begin) continue;
    if (!first) first = &t;
    last = &t;
  }
  std::string where = !first          ? tensor_name
                      : first == last ? strf("%s (%ld x %ld)", first->name.c_str(), first->rows, first->cols)
                                      : "one of " + first->name + " to " + last->name;
  if (first != last && !tensor_name.empty()) where += ", when reading " + tensor_name;
  uint64_t expected;
  std::memcpy(&expected, file_.data() + kHeaderBytes + 8 * chunk, 8);
  const uint64_t found = hash_bytes(file_.data() + payload_offset_ + begin, static_cast<size_t>(end - begin));
  throw Error(path() + ": the data is damaged")
      .line("tensor", where)
      .line("bytes",
            with_commas(payload_offset_ + begin) + " to " + with_commas(payload_offset_ + end) + " of the file")
      .line("expected", "checksum " + hex(expected))
      .line("found", "checksum " + hex(found))
      .line("likely", "a disk or transfer error after the file was written")
      .line("try", remedy(kind_, path()));
}

// ---- writer ----------------------------------------------------------------------------------------------------------

FlatWriter::FlatWriter(const std::string& path, FileKind kind, HeaderFields fields, Layout layout)
    : fields_(std::move(fields)),
      layout_(std::move(layout)),
      payload_offset_(table_offset_end(layout_.payload_bytes())),
      file_(path, payload_offset_ + layout_.payload_bytes()) {
  fields_.slot[0] = magic_of(kind);
  fields_.slot[1] = kFileVersion;
  put64(fields_, 2, static_cast<uint64_t>(layout_.payload_bytes()));
  const std::vector<char> room(static_cast<size_t>(payload_offset_));  // header and table are known at the end
  file_.write(room.data(), payload_offset_);
}

// Hashing takes about as long as writing: where that is worth a thread, it goes beside it.
void FlatWriter::put(const void* data, int64_t bytes) {
  constexpr int64_t kWorthAThread = int64_t{1} << 20;
  const char* p = static_cast<const char*>(data);
  std::future<void> hashing;  // waits in its destructor, should the writing fail
  if (bytes >= kWorthAThread) hashing = std::async(std::launch::async, [this, p, bytes] { add_to_table(p, bytes); });
  else add_to_table(p, bytes);
  file_.write(p, bytes);
  payload_written_ += bytes;
  if (hashing.valid()) hashing.get();
}

void FlatWriter::add_to_table(const char* p, int64_t bytes) {
  while (bytes > 0) {
    const int64_t n = std::min(bytes, kChunkBytes - payload_hashed_ % kChunkBytes);
    chunk_hash_.update(p, static_cast<size_t>(n));
    p += n, bytes -= n, payload_hashed_ += n;
    if (payload_hashed_ % kChunkBytes && payload_hashed_ < layout_.payload_bytes()) continue;
    table_.push_back(chunk_hash_.digest());
    chunk_hash_ = Hasher();
  }
}

void FlatWriter::set_fields(const HeaderFields& fields) {
  std::copy(fields.slot.begin() + 16, fields.slot.begin() + 240, fields_.slot.begin() + 16);
}

const TensorSpec* FlatWriter::next() const {
  return tensor_ < layout_.tensors().size() ? &layout_.tensors()[tensor_] : nullptr;
}

void FlatWriter::write(const std::string& name, const void* data, int64_t bytes) {
  const TensorSpec* t = next();
  IRQ_CHECK(t && t->name == name, "%s written where %s is due", name.c_str(), t ? t->name.c_str() : "the end");
  IRQ_CHECK(bytes >= 0 && tensor_written_ + bytes <= t->bytes(), "%s: %ld bytes written, it has %ld", name.c_str(),
            tensor_written_ + bytes, t->bytes());
  static constexpr char kZeros[kTensorAlign] = {};
  if (tensor_written_ == 0) put(kZeros, t->offset - payload_written_);
  put(data, bytes);
  tensor_written_ += bytes;
  if (tensor_written_ < t->bytes()) return;
  ++tensor_;
  tensor_written_ = 0;
}

uint64_t FlatWriter::finish() {
  IRQ_CHECK(!next(), "finish() before %s is written", next()->name.c_str());
  IRQ_CHECK(payload_written_ == layout_.payload_bytes(), "payload: %ld bytes of %ld", payload_written_,
            layout_.payload_bytes());
  std::vector<unsigned char> table(static_cast<size_t>(payload_offset_ - kHeaderBytes));
  if (!table_.empty()) std::memcpy(table.data(), table_.data(), 8 * table_.size());
  put64(fields_, kTableHashSlot, hash_bytes(table.data(), table.size()));
  const uint64_t hash = header_hash(fields_);
  put64(fields_, kHeaderHashSlot, hash);
  file_.write_at(0, fields_.slot.data(), kHeaderBytes);
  file_.write_at(kHeaderBytes, table.data(), static_cast<int64_t>(table.size()));
  file_.commit();
  return hash;
}

}  // namespace irq
