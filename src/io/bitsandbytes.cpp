#include "src/io/bitsandbytes.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "kernels/nf_codebook.h"
#include "src/core/check.h"
#include "src/core/clock.h"
#include "src/core/hash.h"
#include "src/core/interrupt.h"
#include "src/io/config_json.h"
#include "src/io/float_pieces.h"
#include "src/io/hugging_face.h"
#include "src/io/inspect.h"
#include "src/text/json_file.h"

namespace irq {
namespace {

constexpr const char* kState = ".quant_state.bitsandbytes__nf4";

// The tensors of one quantized linear.
struct NfMatrix {
  int64_t rows = 0, cols = 0;
  const FolderTensor *codes = nullptr, *absmax = nullptr, *quant_map = nullptr, *state = nullptr;
  const FolderTensor *nested_absmax = nullptr, *nested_map = nullptr;  // null where scales are f32
  float offset = 0;
};

void require_type(const FolderTensor& t, const char* type, int64_t count) {
  if (t.entry->dtype == type && t.entry->count() == count) return;
  throw Error(t.where() + " is not what bitsandbytes writes")
      .line("expected", strf("%s, %ld elements", type, count))
      .line("found", t.shape());
}

std::vector<float> read_floats(const FolderTensor& t) {
  std::vector<float> values(static_cast<size_t>(t.entry->count()));
  std::memcpy(values.data(), t.data(), values.size() * sizeof(float));  // the mapped bytes may not be aligned
  if (const int64_t bad = first_not_finite(values.data(), DType::F32, t.entry->count()); bad >= 0)
    throw Error(t.where() + ": a scale is not a finite number").line("found", strf("NaN or infinity at %ld", bad));
  return values;
}

// quant_state: a JSON object as bytes.
class QuantState {
 public:
  explicit QuantState(const FolderTensor& t) : where_(t.where()) {
    if (t.entry->dtype != "U8" || t.entry->count() > 1 << 16)
      throw Error(where_ + " is not what bitsandbytes writes").line("found", t.shape());
    json_ =
        parse_json(std::string(reinterpret_cast<const char*>(t.data()), static_cast<size_t>(t.entry->bytes)), where_);
    if (!json_.is_object()) refuse("an object", json_);
  }
  bool has(const char* key) const { return json_.contains(key); }
  void expect(const char* key, const nlohmann::json& value) const {
    if (!json_.contains(key)) refuse(strf("%s %s", key, value.dump().c_str()), "none");
    if (json_.at(key) != value) refuse(strf("%s %s", key, value.dump().c_str()), json_.at(key));
  }
  float number(const char* key) const {
    if (!json_.at(key).is_number()) refuse(std::string(key) + " to be a number", json_.at(key));
    const double x = json_.at(key).get<double>();
    if (!(std::abs(x) < 3e38)) refuse(std::string(key) + " to be a finite float", json_.at(key));
    return static_cast<float>(x);
  }

 private:
  [[noreturn]] void refuse(const std::string& expected, const nlohmann::json& found) const {
    throw Error(where_ + ": a quantization that cannot be taken over")
        .line("expected", expected)
        .line("found", printable(found.dump()));
  }
  std::string where_;
  nlohmann::json json_;
};

}  // namespace

struct BitsandbytesFolder::Impl {
  explicit Impl(const std::string& path);
  void add_matrix(const LinearShape& shape, const std::string& name);
  void check_tables(const NfMatrix& m);
  void check_plain(const TensorSpec& spec);
  [[noreturn]] void refuse_unquantized(const FolderTensor& t) const;
  const FolderTensor& take(const std::string& name);
  void write_plain(IrqWriter& writer, const TensorSpec& spec, ConvertSummary& summary);
  void write_matrix(IrqWriter& writer, const std::string& name, ConvertSummary& summary);
  void hash_identity(const FolderTensor& t);
  void hash_tensor(const FolderTensor& t);

  FolderTensors folder;
  ModelConfig config;
  DType dtype = DType::F32;
  bool nested = false;
  std::vector<std::string> notes;
  std::set<std::string> known;
  std::map<std::string, NfMatrix> matrices;  // by this engine's name
  const FolderTensor* first_map = nullptr;
  std::vector<float> map;  // (256), nested only
  Hasher hash;
};

const FolderTensor& BitsandbytesFolder::Impl::take(const std::string& name) {
  known.insert(name);
  return folder.require(name);
}

BitsandbytesFolder::Impl::Impl(const std::string& path) : folder(path) {
  config = model_config_from_json(folder.config_path(), true);
  notes = folder.notes();
  resolve_head(folder, config, notes);
  const Layout layout = base_layout(config, DType::F32, folder.config_path());
  for (const TensorSpec& spec : layout.tensors()) {
    LinearShape shape{};
    if (linear_index(config, spec.name, &shape) >= 0) add_matrix(shape, spec.name);
    else check_plain(spec);
  }
  if (config.tied) known.insert("lm_head.weight");
  const DType embed = float_type(folder.require(hugging_face_name("embed")));
  const DType head = config.tied ? embed : float_type(folder.require(hugging_face_name("head")));
  dtype = embed == head ? embed : DType::F32;
  folder.refuse_unknown(known);
  if (const std::string note = eos_note(folder.folder(), config); !note.empty()) notes.push_back(note);
}

void BitsandbytesFolder::Impl::check_plain(const TensorSpec& spec) {
  const FolderTensor& t = take(hugging_face_name(spec.name));
  if (folder.find(t.entry->name + kState))
    throw Error(t.where() + " is quantized, which a .irq has for the layers' linears only")
        .line("try", "quantize again without it (llm_int8_skip_modules: [\"lm_head\"], the default)");
  check_shape(t, spec.rows, spec.cols);
  float_type(t);
}

void BitsandbytesFolder::Impl::refuse_unquantized(const FolderTensor& t) const {
  for (const auto& [name, other] : folder.tensors())
    if (name.rfind(t.entry->name + ".quant_state.", 0) == 0)
      throw Error(other.where() + ": of bitsandbytes' 4-bit types only NF4 can be taken over")
          .line("expected", t.entry->name + kState)
          .line("try", "take the 16-bit original instead");
  throw Error(t.where() + " is not quantized")
      .line("expected", "all seven linears of each layer in NF4: " + t.entry->name + kState)
      .line("found", t.shape())
      .line("likely", "llm_int8_skip_modules leaves it out")
      .line("try", "quantize again without skipping it, or convert the 16-bit original");
}

void BitsandbytesFolder::Impl::add_matrix(const LinearShape& shape, const std::string& name) {
  const std::string weight = hugging_face_name(name);
  NfMatrix m;
  m.rows = shape.out, m.cols = shape.in;
  m.codes = &take(weight);
  if (!folder.find(weight + kState)) refuse_unquantized(*m.codes);
  m.state = &take(weight + kState);
  m.absmax = &take(weight + ".absmax");
  m.quant_map = &take(weight + ".quant_map");
  const QuantState state(*m.state);
  state.expect("quant_type", "nf4");
  state.expect("blocksize", kBlock);
  state.expect("shape", nlohmann::json::array({m.rows, m.cols}));
  const int64_t weights = m.rows * m.cols, blocks = (weights + kBlock - 1) / kBlock;
  if (m.codes->entry->bytes != (weights + 1) / 2)  // under any type: bnb_4bit_quant_storage only renames the bytes
    throw Error(m.codes->where() + " is not what bitsandbytes writes")
        .line("expected", strf("%ld bytes for [%ld, %ld]", (weights + 1) / 2, m.rows, m.cols))
        .line("found", m.codes->shape());
  require_type(*m.quant_map, "F32", 16);
  const bool is_nested = state.has("nested_offset");
  if (matrices.empty()) nested = is_nested;
  if (is_nested != nested)
    throw Error(m.state->where() + (is_nested ? " has" : " has no") +
                " double quantization, unlike the linears before it")
        .line("likely", "files of two models in one folder");
  require_type(*m.absmax, nested ? "U8" : "F32", blocks);
  if (nested) {
    m.nested_absmax = &take(weight + ".nested_absmax");
    m.nested_map = &take(weight + ".nested_quant_map");
    state.expect("nested_blocksize", kScaleGroup);
    m.offset = state.number("nested_offset");
    require_type(*m.nested_absmax, "F32", (blocks + kScaleGroup - 1) / kScaleGroup);
    require_type(*m.nested_map, "F32", 256);
  }
  check_tables(m);
  matrices[name] = m;
}

void BitsandbytesFolder::Impl::check_tables(const NfMatrix& m) {
  if (std::memcmp(m.quant_map->data(), nf_codebook(4).level, 16 * sizeof(float)) != 0)
    throw Error(m.quant_map->where() + ": these are not NF4's 16 levels")
        .line("likely", "FP4 or a code table of its own, which a .irq cannot say")
        .line("try", "take the 16-bit original instead");
  if (!nested) return;
  if (!first_map) {
    first_map = m.nested_map;
    map = read_floats(*m.nested_map);
  }
  if (std::memcmp(m.nested_map->data(), map.data(), 256 * sizeof(float)) != 0)
    throw Error(m.nested_map->where() + " differs from " + first_map->entry->name)
        .line("expected", "one table of 8-bit scales for all matrices: a .irq has room for one")
        .line("likely", "layers quantized on machines with different PyTorch builds")
        .line("try", "quantize again in one run, or convert the 16-bit original");
}

// name, type and shape, then the bytes: two folders of one content have one hash, however they are sharded.
void BitsandbytesFolder::Impl::hash_identity(const FolderTensor& t) {
  const std::string identity = t.entry->name + " " + t.shape() + "\n";
  hash.update(identity.data(), identity.size());
}
void BitsandbytesFolder::Impl::hash_tensor(const FolderTensor& t) {
  hash_identity(t);
  hash.update(t.data(), static_cast<size_t>(t.entry->bytes));
}

void BitsandbytesFolder::Impl::write_plain(IrqWriter& writer, const TensorSpec& spec, ConvertSummary& summary) {
  constexpr int64_t kPiece = int64_t{4} << 20;  // values
  const FolderTensor& t = folder.require(hugging_face_name(spec.name));
  const DType from = float_type(t);
  hash_identity(t);
  std::vector<char> raw, values;
  for (int64_t begin = 0; begin < t.entry->count(); begin += kPiece) {
    throw_if_interrupted();
    const int64_t count = std::min(kPiece, t.entry->count() - begin), bytes = count * size_of(from);
    const unsigned char* at = t.data() + begin * size_of(from);
    raw.assign(at, at + bytes);  // aligned
    t.file->dont_need(*t.entry, begin * size_of(from), bytes);
    hash.update(raw.data(), raw.size());
    if (const int64_t bad = first_not_finite(raw.data(), from, count); bad >= 0)
      throw Error(t.where() + ": a weight is not a finite number")
          .line("found", strf("NaN or infinity at element %ld", begin + bad));
    values.resize(static_cast<size_t>(count * size_of(spec.dtype)));
    convert_values(values.data(), spec.dtype, raw.data(), from, count);
    writer.write(spec.name, values.data(), static_cast<int64_t>(values.size()));
  }
  ++summary.tensors;
  summary.source_bytes += t.entry->bytes;
}

void BitsandbytesFolder::Impl::write_matrix(IrqWriter& writer, const std::string& name, ConvertSummary& summary) {
  throw_if_interrupted();
  const NfMatrix& m = matrices.at(name);
  QuantizedMatrix q;
  q.rows = m.rows, q.cols = m.cols;
  q.format.shift = ShiftKind::none;
  q.format.scale = nested ? ScaleKind::dq8 : ScaleKind::f32;
  const auto view = [](const void* data, DType type, int64_t count, const char* what) {
    return make_view(const_cast<void*>(data), type, 1, count, what);
  };
  std::vector<float> scales;
  float offset = m.offset;
  q.codes = view(m.codes->data(), DType::U8, q.code_bytes(), "codes");
  if (nested) {
    scales = read_floats(*m.nested_absmax);
    q.scale_codes = view(m.absmax->data(), DType::U8, q.blocks(), "scale_codes");
    q.scale_groups = view(scales.data(), DType::F32, q.groups(), "scale_groups");
    q.scale_offset = view(&offset, DType::F32, 1, "scale_offset");
    q.map = view(map.data(), DType::F32, 256, "map");
  } else {
    scales = read_floats(*m.absmax);
    q.scales = view(scales.data(), DType::F32, q.blocks(), "scales");
  }
  double entropy = 0;
  for (const float h : block_entropies(q)) entropy += static_cast<double>(h);
  entropy /= static_cast<double>(q.blocks());
  writer.write_matrix(name, q, entropy, entropy);
  for (const FolderTensor* t : {m.codes, m.absmax, m.quant_map, m.nested_absmax, m.nested_map, m.state}) {
    if (!t) continue;
    hash_tensor(*t);
    t->file->dont_need(*t->entry);
    summary.source_bytes += t->entry->bytes;
  }
  ++summary.tensors;
  summary.code_entropy += entropy * static_cast<double>(q.numel());
}

bool is_bitsandbytes(const std::string& path) {
  std::error_code ignored;
  const bool is_folder = std::filesystem::is_directory(path, ignored);
  if (!is_folder && base_name(path) != "config.json" && !path.ends_with(".safetensors")) return false;
  const std::string config = (is_folder ? path : parent_path(path)) + "/config.json";
  return file_exists(config) && says_bitsandbytes(config);
}

BitsandbytesFolder::BitsandbytesFolder(const std::string& path) : impl_(std::make_unique<Impl>(path)) {}
BitsandbytesFolder::~BitsandbytesFolder() = default;
const ModelConfig& BitsandbytesFolder::config() const { return impl_->config; }
DType BitsandbytesFolder::dtype() const { return impl_->dtype; }
bool BitsandbytesFolder::nested() const { return impl_->nested; }
const std::vector<std::string>& BitsandbytesFolder::notes() const { return impl_->notes; }
std::vector<SideFile> BitsandbytesFolder::side_files() { return folder_side_files(impl_->folder.folder()); }

ConvertSummary BitsandbytesFolder::write(const std::string& out_path, const ByteProgress& progress) {
  const double start = now_seconds();
  const std::vector<SideFile> files = side_files();
  IrqInfo info;
  info.config = impl_->config, info.dtype = impl_->dtype;
  info.format.scale = impl_->nested ? ScaleKind::dq8 : ScaleKind::f32;
  info.format.shift = ShiftKind::none;
  IrqWriter writer(out_path, info);
  impl_->hash = Hasher();
  ConvertSummary summary;
  summary.dtype = info.dtype;
  while (writer.next()->name != "entropy") {
    const TensorSpec due = *writer.next();
    if (due.name.ends_with(".codes"))
      impl_->write_matrix(writer, due.name.substr(0, due.name.size() - std::strlen(".codes")), summary);
    else impl_->write_plain(writer, due, summary);
    const TensorSpec* next = writer.next();
    if (progress) progress(next->offset, writer.layout().payload_bytes());
  }
  writer.set_source_hash(impl_->hash.digest());
  summary.hash = writer.finish();
  summary.code_entropy /= static_cast<double>(linear_weights(info.config));
  summary.file_bytes = static_cast<int64_t>(std::filesystem::file_size(out_path));
  summary.seconds = now_seconds() - start;
  summary.notes = write_side_files(files, out_path);
  return summary;
}

}  // namespace irq
