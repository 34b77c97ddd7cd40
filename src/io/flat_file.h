// The container of every file this engine writes (.bin, .irq, .lora, .state). Little-endian:
//   header    256 int32. [0] magic, [1] version, [2-3] payload bytes, [4-5] hash of the table, [16..239] the kind's own
//             fields, [254-255] hash of the slots before it. 64-bit values take two slots, low first; floats are bit-cast.
//   table     one 64-bit hash per 16 MiB of payload (the last one may be short); zeros up to a multiple of 256 bytes
//   payload   the tensors of the layout in order, each at a multiple of 256 bytes, zeros between them
// Every bit of the file is under one of the hashes. The header's and the table's are checked on opening, the payload's
// when a tensor is first asked for: never in a pass of their own. Bytes behind the payload are an error.
#pragma once
#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "src/core/file.h"
#include "src/core/hash.h"
#include "src/core/tensor.h"
#include "src/io/layout.h"

namespace irq {

constexpr int64_t kHeaderBytes = 256 * 4;
constexpr int64_t kChunkBytes = int64_t{16} << 20;
constexpr int32_t kFileVersion = 1;

// What a file is, by its first bytes. The first four are this engine's own.
enum class FileKind {
  // What the tools take.
  base,
  quantized,
  adapter,
  state,
  config_json,
  // What irq_convert takes (of PyTorch's files it says how to get safetensors).
  safetensors,
  gguf,
  pytorch,
  llama2c,
  llmc,
  folder,
  // What is usually a mistake.
  lfs_pointer,
  web_page,
  empty,
  unknown
};
FileKind sniff(const std::string& path);
const char* describe(FileKind kind);  // "a base model (.bin)"
// Throws the Error that says what `path` is instead of `expected` (unknown: any of these tools' files), and what helps.
[[noreturn]] void throw_wrong_kind(const std::string& path, FileKind expected);

// Throws a usage Error if `out` exists and is neither of the kind that is to be written there nor empty: a mistyped name
// must not cost somebody's file.
void refuse_replacing(const std::string& out, FileKind kind);

// Reads or writes a kind's own header fields in order, each in its own slots. Doubles and 64-bit take two.
class HeaderFields {
 public:
  void put(int32_t x);
  void put(int64_t x);
  void put(uint64_t x) { put(static_cast<int64_t>(x)); }
  void put(double x);
  void put(const std::string& text, int slots);  // zero-padded; an internal error if it does not fit
  int32_t get_i32();
  int64_t get_i64();
  uint64_t get_u64() { return static_cast<uint64_t>(get_i64()); }
  double get_f64();
  std::string get_text(int slots);

  std::array<int32_t, 256> slot{};

 private:
  int32_t& next();
  int at_ = 16;
};

class FlatReader {
 public:
  // Opens the file and checks magic, version and the header's hash.
  FlatReader(const std::string& path, FileKind kind);
  HeaderFields& fields() { return fields_; }
  const std::string& path() const { return file_.path(); }
  int64_t payload_bytes() const { return payload_bytes_; }  // as the header says
  int64_t file_bytes() const { return file_.size(); }
  uint64_t hash() const {
    return hash_;
  }  // identifies the content: covers the fields and, through the table, every byte

  // Compares the header with the file's size and checks the table. `what` describes the header ("LLaMA, ..., bf16").
  // With a layout, its size is compared first, and a file cut short names its first incomplete tensor.
  void check_size(const std::string& what, const Layout* layout);
  void set_layout(Layout layout);
  const Layout& layout() const { return layout_; }

  // A view of the mapped bytes, their chunks verified. Throws if there is no such tensor or a byte is wrong.
  Tensor tensor(const std::string& name);
  Tensor view(const TensorSpec& spec);
  void dont_need(const TensorSpec& spec) const { file_.dont_need(payload_offset_ + spec.offset, spec.bytes()); }
  // Verifies the chunks not verified yet; progress(done_bytes, all_bytes) between them.
  void verify_all(const std::function<void(int64_t, int64_t)>& progress = {});
  int64_t chunks() const { return (payload_bytes_ + kChunkBytes - 1) / kChunkBytes; }

  // Copies a chunk to `to` (kChunkBytes; the last one may be shorter) without mapping it. False if it is not what its hash
  // says: then reject_chunk throws the Error that tensor() would. For any thread, unlike the rest.
  bool read_chunk(int64_t chunk, void* to) const;
  [[noreturn]] void reject_chunk(int64_t chunk, const std::string& tensor_name) { throw_damaged(chunk, tensor_name); }

 private:
  void verify(int64_t begin, int64_t bytes, const std::string& tensor_name);
  bool chunk_is_good(int64_t chunk);
  [[noreturn]] void throw_damaged(int64_t chunk, const std::string& tensor_name);

  MappedFile file_;
  FileKind kind_;
  HeaderFields fields_;
  Layout layout_;
  int64_t payload_bytes_ = 0, payload_offset_ = 0;
  uint64_t hash_ = 0;
  std::unique_ptr<std::atomic<uint8_t>[]> verified_;  // one per chunk
};

class FlatWriter {
 public:
  FlatWriter(const std::string& path, FileKind kind, HeaderFields fields, Layout layout);
  // The bytes of the layout's next tensor, whole or in pieces that follow each other under the same name.
  void write(const std::string& name, const void* data, int64_t bytes);
  const TensorSpec* next() const;  // the tensor whose bytes are due; null when all are there
  uint64_t finish();               // header and table, then the file gets its name; returns its hash
  const Layout& layout() const { return layout_; }
  void set_fields(const HeaderFields& fields);  // the kind's own fields, where one becomes known while writing

 private:
  void put(const void* data, int64_t bytes);
  void add_to_table(const char* p, int64_t bytes);

  HeaderFields fields_;
  Layout layout_;
  int64_t payload_offset_ = 0;
  AtomicFile file_;
  size_t tensor_ = 0;           // index of the tensor being written
  int64_t tensor_written_ = 0;  // its bytes so far
  int64_t payload_written_ = 0, payload_hashed_ = 0;
  Hasher chunk_hash_;
  std::vector<uint64_t> table_;
};

}  // namespace irq
