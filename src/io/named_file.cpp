// .lora and .state: files whose tensors are not given by a model configuration. The payload opens with two texts:
// `directory`, one line "NAME f32 ROWS COLS" per tensor, and `text` (JSON for .state, empty for .lora); then the tensors.
#include <charconv>
#include <cmath>
#include <cstring>

#include "src/core/check.h"
#include "src/io/checkpoint.h"

namespace irq {
namespace {

constexpr int64_t kMaxTextBytes = int64_t{64} << 20;
constexpr const char* kDirectory = "(directory)";
constexpr const char* kText = "(text)";

Error bad_directory(const std::string& path, const std::string& line) {
  return Error(path + ": its list of tensors cannot be read")
      .line("expected", "NAME f32 ROWS COLS")
      .line("found", line.substr(0, 100));
}

bool parse_int(const std::string& word, int64_t* value) {
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), *value);
  return error == std::errc() && end == word.data() + word.size() && *value >= 0;
}

void add_directory(Layout& layout, const std::string& path, const std::string& directory) {
  size_t at = 0;
  while (at < directory.size()) {
    size_t end = directory.find('\n', at);
    if (end == std::string::npos) throw bad_directory(path, directory.substr(at));
    const std::string line = directory.substr(at, end - at);
    std::string word[4];
    int words = 0;
    for (size_t i = 0; i <= line.size() && words < 4; ++words) {
      const size_t space = std::min(line.find(' ', i), line.size());
      word[words] = line.substr(i, space - i);
      i = space + 1;
    }
    int64_t rows, cols;
    const bool good = words == 4 && !word[0].empty() && word[1] == "f32" && parse_int(word[2], &rows) &&
                      parse_int(word[3], &cols) && line == word[0] + " f32 " + word[2] + " " + word[3];
    if (!good) throw bad_directory(path, line);
    layout.add(word[0], DType::F32, rows, cols, path);
    at = end + 1;
  }
}

Layout named_layout(const std::string& path, int64_t directory_bytes, int64_t text_bytes) {
  Layout layout;
  layout.add(kDirectory, DType::U8, 1, directory_bytes, path);
  layout.add(kText, DType::U8, 1, text_bytes, path);
  return layout;
}

// `fields` already holds what is the kind's own; the lengths of the two texts follow them, then `later` (a newer version's).
void write_named(const std::string& path, FileKind kind, HeaderFields fields, const std::string& text,
                 const std::vector<Tensor>& arrays, const std::vector<int32_t>& later = {}) {
  std::string directory;
  for (const Tensor& t : arrays) {
    IRQ_CHECK(t.dtype == DType::F32 && t.contiguous() && t.device == Device::CPU, "%s must be a plain f32 array",
              t.name);
    IRQ_CHECK(*t.name && !std::strpbrk(t.name, " \n"), "a tensor without a usable name: '%s'", t.name);
    directory += strf("%s f32 %ld %ld\n", t.name, t.rows, t.cols);
  }
  const int64_t directory_bytes = static_cast<int64_t>(directory.size()),
                text_bytes = static_cast<int64_t>(text.size());
  IRQ_CHECK(directory_bytes <= kMaxTextBytes && text_bytes <= kMaxTextBytes, "too much text for %s", path.c_str());
  fields.put(directory_bytes);
  fields.put(text_bytes);
  for (const int32_t x : later) fields.put(x);
  Layout layout = named_layout(path, directory_bytes, text_bytes);
  add_directory(layout, path, directory);
  FlatWriter file(path, kind, fields, std::move(layout));
  file.write(kDirectory, directory.data(), directory_bytes);
  file.write(kText, text.data(), text_bytes);
  for (const Tensor& t : arrays) file.write(t.name, t.data, t.bytes());
  file.finish();
}

// After the kind's own fields have been read from the header. Returns the text.
std::string open_named(FlatReader& file, const std::string& what) {
  const std::string& path = file.path();
  const int64_t directory_bytes = file.fields().get_i64(), text_bytes = file.fields().get_i64();
  if (directory_bytes < 0 || directory_bytes > kMaxTextBytes || text_bytes < 0 || text_bytes > kMaxTextBytes)
    throw Error(path + ": the header claims an impossible size")
        .line("found", strf("a list of tensors of %ld bytes, a text of %ld bytes", directory_bytes, text_bytes));
  file.check_size(what, nullptr);
  Layout layout = named_layout(path, directory_bytes, text_bytes);
  if (layout.payload_bytes() > file.payload_bytes())
    throw Error(path + ": the header contradicts itself")
        .line("expected", with_commas(layout.payload_bytes()) + " payload bytes for its texts alone")
        .line("found", with_commas(file.payload_bytes()) + " payload bytes");
  const auto read = [&](size_t i) {
    const Tensor t = file.view(layout.tensors()[i]);
    return std::string(static_cast<const char*>(t.data), static_cast<size_t>(t.cols));
  };
  const std::string directory = read(0), text = read(1);
  add_directory(layout, path, directory);
  file.set_layout(std::move(layout));
  if (file.layout().payload_bytes() != file.payload_bytes())
    throw Error(path + ": the header contradicts itself")
        .line("expected", with_commas(file.layout().payload_bytes()) + " payload bytes for the tensors it lists")
        .line("found", with_commas(file.payload_bytes()) + " payload bytes");
  return text;
}

}  // namespace

const NamedArray* AdapterFile::find(const std::string& name) const {
  for (const NamedArray& t : tensors)
    if (t.name == name) return &t;
  return nullptr;
}

// Header slots 16 on: method (8 slots of text), rank, targets, tile (one each), alpha, dropout, base_hash (two each), the lengths
// of the two texts (two each); how the input is pooled: kind, group, aligned (one each; 0 in files before QA-LoRA).
void write_adapter(const std::string& path, const AdapterFile& a) {
  HeaderFields f;
  IRQ_CHECK(a.method.size() < 32, "method name too long: %s", a.method.c_str());
  f.put(a.method, 8);
  f.put(static_cast<int32_t>(a.rank));
  f.put(static_cast<int32_t>(a.targets));
  f.put(static_cast<int32_t>(a.tile));
  f.put(a.alpha);
  f.put(a.dropout);
  f.put(a.base_hash);
  std::vector<Tensor> views;
  for (const NamedArray& t : a.tensors) {
    IRQ_CHECK(static_cast<int64_t>(t.data.size()) == t.rows * t.cols, "%s: %zu values for (%ld, %ld)", t.name.c_str(),
              t.data.size(), t.rows, t.cols);
    views.push_back(make_view(const_cast<float*>(t.data.data()), DType::F32, t.rows, t.cols, t.name.c_str()));
  }
  write_named(path, FileKind::adapter, f, "", views,
              {static_cast<int32_t>(a.pool.kind), static_cast<int32_t>(a.pool.group), a.pool.aligned ? 1 : 0});
}

AdapterReader::AdapterReader(const std::string& path) : file_(path, FileKind::adapter) {
  HeaderFields& f = file_.fields();
  AdapterFile& a = info_;
  a.method = f.get_text(8);
  a.rank = f.get_i32();
  a.targets = static_cast<uint32_t>(f.get_i32());
  a.tile = f.get_i32() != 0;
  a.alpha = f.get_f64();
  a.dropout = f.get_f64();
  a.base_hash = f.get_u64();
  if (a.rank < 0 || a.rank > 1 << 16 || !std::isfinite(a.alpha) || !(a.dropout >= 0 && a.dropout < 1) || a.targets >> 7)
    throw Error(path + ": not an adapter this engine can use")
        .line("found", strf("rank %ld, alpha %g, dropout %g, targets 0x%x", a.rank, a.alpha, a.dropout, a.targets));
  open_named(file_, strf("adapter, method %s, rank %ld", a.method.c_str(), a.rank));
  const int32_t kind = f.get_i32(), group = f.get_i32(), aligned = f.get_i32();
  if (kind < 0 || kind > static_cast<int32_t>(PoolKind::peft) || group < 0 || aligned < 0 || aligned > 1)
    throw Error(path + ": not an adapter this engine can use")
        .line("found", strf("pooling of kind %d over groups of %d, alignment %d", kind, group, aligned));
  a.pool = {static_cast<PoolKind>(kind), group, aligned == 1};
}

AdapterFile read_adapter(const std::string& path) {
  AdapterReader reader(path);
  AdapterFile a = reader.info();
  const auto& specs = reader.layout().tensors();
  for (size_t i = 2; i < specs.size(); ++i) {  // behind the two texts
    const Tensor t = reader.tensor(specs[i].name);
    const float* p = t.as<float>();
    a.tensors.push_back({t.name, t.rows, t.cols, std::vector<float>(p, p + t.numel())});
  }
  return a;
}

std::string describe(const InputPool& pool) {
  constexpr const char* kNames[] = {"none", "mean", "sum", "peft (mean times the number of groups)"};
  const std::string groups = pool.group > 0 ? strf("groups of %ld features", pool.group) : "all features";
  return strf("%s over %s, beta1 over %s", kNames[static_cast<int>(pool.kind)], groups.c_str(),
              pool.aligned ? "groups" : "raw features");
}

StateReader::StateReader(const std::string& path) : file_(path, FileKind::state) {
  text_ = open_named(file_, "training state");
}

void write_state(const std::string& path, const std::string& text, const std::vector<Tensor>& arrays) {
  write_named(path, FileKind::state, {}, text, arrays);
}

}  // namespace irq
