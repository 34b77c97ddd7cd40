#include "src/io/checkpoint.h"

#include <cstring>

#include "src/core/check.h"

namespace irq {
namespace {

// Header slots 16 on, of .bin and .irq: dim, ffn, layers, heads, kv_heads, head_dim, vocab, max_seq, tied, bos, eos,
// dtype (one each), rope_theta, norm_eps (two each).
void put_config(HeaderFields& f, const ModelConfig& c, DType dtype) {
  for (const int64_t x : {c.dim, c.ffn, c.layers, c.heads, c.kv_heads, c.head_dim, c.vocab, c.max_seq})
    f.put(static_cast<int32_t>(x));
  f.put(static_cast<int32_t>(c.tied));
  f.put(c.bos);
  f.put(c.eos);
  f.put(static_cast<int32_t>(dtype));
  f.put(c.rope_theta);
  f.put(c.norm_eps);
}

void validate_config(const ModelConfig& c, const std::string& path) {
  validate(c, path);
  if (c.bos < 0 || c.bos >= c.vocab || c.eos < 0 || c.eos >= c.vocab)  // they become indices into embed
    throw Error(path + ": special tokens outside the vocabulary")
        .line("expected", strf("0 to %ld", c.vocab - 1))
        .line("found", strf("bos %d, eos %d", c.bos, c.eos));
}

ModelConfig get_config(FlatReader& file, DType* dtype) {
  HeaderFields& f = file.fields();
  ModelConfig c;
  for (int64_t* x : {&c.dim, &c.ffn, &c.layers, &c.heads, &c.kv_heads, &c.head_dim, &c.vocab, &c.max_seq})
    *x = f.get_i32();
  const int32_t tied = f.get_i32();
  if (tied != 0 && tied != 1)
    throw Error(file.path() + ": the header's flag for a tied head is neither 0 nor 1")
        .line("found", std::to_string(tied));
  c.tied = tied == 1;
  c.bos = f.get_i32();
  c.eos = f.get_i32();
  *dtype = static_cast<DType>(f.get_i32());
  c.rope_theta = f.get_f64();
  c.norm_eps = f.get_f64();
  validate_config(c, file.path());  // before any arithmetic with these numbers
  if (*dtype != DType::F32 && *dtype != DType::F16 && *dtype != DType::BF16)
    throw Error(file.path() + ": weights of an unknown type")
        .line("expected", "0 (f32), 1 (f16) or 2 (bf16)")
        .line("found", std::to_string(static_cast<int32_t>(*dtype)));
  return c;
}

std::string summary(const ModelConfig& c, DType dtype) {
  return strf("LLaMA, %ld layers, dim %ld, %s", c.layers, c.dim, name_of(dtype));
}

HeaderFields base_fields(const ModelConfig& c, DType dtype) {
  HeaderFields f;
  put_config(f, c, dtype);
  return f;
}

// What an older file has there is zeros: integers rounded to nearest, without a search.
void put_integers(HeaderFields& f, const IntInfo& i) {
  f.put(static_cast<int32_t>(i.search));
  for (const bool b : {i.symmetric, i.gptq, i.act_order, i.fresh}) f.put(static_cast<int32_t>(b));
  f.put(i.tokens);
  f.put(i.calibration);
}
IntInfo get_integers(HeaderFields& f) {
  IntInfo i;
  i.search = static_cast<IntSearch>(f.get_i32());
  for (bool* b : {&i.symmetric, &i.gptq, &i.act_order, &i.fresh}) *b = f.get_i32() != 0;
  i.tokens = f.get_i64();
  i.calibration = f.get_u64();
  return i;
}

// Behind the configuration: kind, bits, group, scale, shift, n, fp32_entropy (one slot each), lambda, source_hash (two),
// ICQ's ties, search, width, even, consistent (one each; 0, as in older files, is the paper's search); then how integers were
// made.
HeaderFields irq_fields(const IrqInfo& i) {
  HeaderFields f = base_fields(i.config, i.dtype);
  f.put(static_cast<int32_t>(i.format.kind));
  f.put(static_cast<int32_t>(i.format.bits));
  f.put(static_cast<int32_t>(i.format.group));
  f.put(static_cast<int32_t>(i.format.scale));
  f.put(static_cast<int32_t>(i.format.shift));
  f.put(static_cast<int32_t>(i.icq.n));
  f.put(static_cast<int32_t>(i.icq.fp32_entropy));
  f.put(i.icq.lambda);
  f.put(i.source_hash);
  f.put(static_cast<int32_t>(i.icq.ties));
  f.put(static_cast<int32_t>(i.icq.search));
  f.put(static_cast<int32_t>(i.icq.width));
  f.put(static_cast<int32_t>(i.icq.even));
  f.put(static_cast<int32_t>(i.icq.consistent));
  put_integers(f, i.integers);
  return f;
}

// What irq_fields() wrote last; a value unknown here comes from a later version.
void get_icq_choices(HeaderFields& f, IcqSpec& spec, const std::string& path) {
  int32_t value[5];
  constexpr int32_t kLargest[] = {1, 1, 3, 1, 1};
  for (size_t i = 0; i < 5; ++i) {
    value[i] = f.get_i32();
    if (value[i] < 0 || value[i] > kLargest[i])
      throw Error(path + ": its ICQ was searched in a way unknown here")
          .line("expected", strf("0 to %d in the header's field %zu of ICQ", kLargest[i], i))
          .line("found", std::to_string(value[i]))
          .line("likely", "a file of a later version");
  }
  spec.ties = static_cast<IcqTies>(value[0]);
  spec.search = static_cast<IcqSearch>(value[1]);
  spec.width = static_cast<IcqWidth>(value[2]);
  spec.even = value[3] == 1;
  spec.consistent = value[4] == 1;
}

Layout checked_base_layout(const std::string& path, const ModelConfig& c, DType dtype) {
  validate_config(c, path);
  IRQ_CHECK(dtype == DType::F32 || dtype == DType::F16 || dtype == DType::BF16, "a base in %s", name_of(dtype));
  return base_layout(c, dtype, path);
}

Layout checked_irq_layout(const std::string& path, const IrqInfo& info) {
  validate_config(info.config, path);
  validate(info.format, path);
  return irq_layout(info.config, info.dtype, info.format, path);
}

const std::string& tied_name(const ModelConfig& c, const std::string& name) {
  static const std::string embed = "embed";
  return c.tied && name == "head" ? embed : name;
}

}  // namespace

// ---- base model ------------------------------------------------------------------------------------------------------

namespace {
// Of a source that makes its tensors when asked: each is one piece, and goes with the last holder.
class WholeTensors final : public TensorStream {
 public:
  explicit WholeTensors(BaseSource& source) : source_(source) {}
  void read(const TensorSpec& tensor, const TakePiece& take) override {
    const Tensor t = source_.tensor(tensor.name);
    take({std::shared_ptr<const void>(t.data, [this, name = tensor.name](const void*) { source_.dont_need(name); }), 0,
          t.bytes(), t.dtype});
  }

 private:
  BaseSource& source_;
};
}  // namespace

std::unique_ptr<TensorStream> BaseSource::stream(Device) { return std::make_unique<WholeTensors>(*this); }

BaseReader::BaseReader(const std::string& path) : file_(path, FileKind::base) {
  config_ = get_config(file_, &dtype_);
  Layout layout = base_layout(config_, dtype_, path);
  file_.check_size(summary(config_, dtype_), &layout);
  file_.set_layout(std::move(layout));
}

Tensor BaseReader::tensor(const std::string& name) { return file_.tensor(tied_name(config_, name)); }

std::unique_ptr<TensorStream> BaseReader::stream(Device device) { return std::make_unique<ChunkStream>(file_, device); }

void BaseReader::dont_need(const std::string& name) {
  if (const TensorSpec* spec = layout().find(name)) file_.dont_need(*spec);
}

BaseWriter::BaseWriter(const std::string& path, const ModelConfig& config, DType dtype)
    : file_(path, FileKind::base, base_fields(config, dtype), checked_base_layout(path, config, dtype)) {}

// ---- quantized base --------------------------------------------------------------------------------------------------

IrqReader::IrqReader(const std::string& path) : file_(path, FileKind::quantized) {
  info_.config = get_config(file_, &info_.dtype);
  HeaderFields& f = file_.fields();
  info_.format.kind = static_cast<QuantKind>(f.get_i32());
  info_.format.bits = f.get_i32();
  info_.format.group = f.get_i32();
  info_.format.scale = static_cast<ScaleKind>(f.get_i32());
  info_.format.shift = static_cast<ShiftKind>(f.get_i32());
  info_.icq.n = f.get_i32();
  info_.icq.fp32_entropy = f.get_i32() != 0;
  info_.icq.lambda = f.get_f64();
  info_.source_hash = f.get_u64();
  get_icq_choices(f, info_.icq, path);
  info_.integers = get_integers(f);
  validate(info_.format, path);
  Layout layout = irq_layout(info_.config, info_.dtype, info_.format, path);
  file_.check_size(strf("%s, quantized to %d bits", summary(info_.config, info_.dtype).c_str(), info_.format.bits),
                   &layout);
  file_.set_layout(std::move(layout));
}

Tensor IrqReader::tensor(const std::string& name) { return file_.tensor(tied_name(info_.config, name)); }

QuantizedMatrix IrqReader::matrix(const std::string& name) {
  LinearShape shape{};
  if (linear_index(info_.config, name, &shape) < 0)
    throw Error(path() + ": has no quantized matrix " + name)
        .line("expected", strf("layers.N.{wq,wk,wv,wo,w_gate,w_up,w_down}, N from 0 to %ld", info_.config.layers - 1))
        .line("try", "./irq_inspect " + path() + " --tensors");
  QuantizedMatrix q;
  q.rows = shape.out, q.cols = shape.in, q.format = info_.format;
  for (const MatrixPart& part : matrix_parts(q)) *part.tensor = file_.tensor(name + part.suffix);
  if (layout().find("map")) q.map = file_.tensor("map");
  return q;
}

std::array<double, 2> IrqReader::entropy(const std::string& name) {
  const int64_t i = linear_index(info_.config, name);
  IRQ_CHECK(i >= 0, "%s is not a quantized matrix", name.c_str());
  const float* row = file_.tensor("entropy").row<float>(i);
  return {row[0], row[1]};
}

std::array<double, 2> IrqReader::mean_entropy() {
  const Tensor table = file_.tensor("entropy");  // (7 * layers, 2)
  const auto linears = layer_linears(info_.config);
  double sum[2] = {0, 0}, weights = 0;
  for (int64_t i = 0; i < table.rows; ++i) {
    const LinearShape& s = linears[static_cast<size_t>(i % 7)];
    const double n = static_cast<double>(s.out) * static_cast<double>(s.in);
    for (int k = 0; k < 2; ++k) sum[k] += n * table.row<float>(i)[k];
    weights += n;
  }
  return {sum[0] / weights, sum[1] / weights};
}

void IrqReader::dont_need(const std::string& name) {
  LinearShape shape{};
  if (linear_index(info_.config, name, &shape) < 0) {
    if (const TensorSpec* spec = layout().find(name)) file_.dont_need(*spec);
    return;
  }
  QuantizedMatrix q;
  q.rows = shape.out, q.cols = shape.in, q.format = info_.format;
  for (const MatrixPart& part : matrix_parts(q)) file_.dont_need(*layout().find(name + part.suffix));
}

IrqWriter::IrqWriter(const std::string& path, const IrqInfo& info)
    : info_(info),
      file_(path, FileKind::quantized, irq_fields(info), checked_irq_layout(path, info)),
      entropy_(static_cast<size_t>(14 * info.config.layers)) {}

void IrqWriter::write_matrix(const std::string& name, const QuantizedMatrix& q, double entropy_plain,
                             double entropy_stored) {
  LinearShape shape{};
  const int64_t index = linear_index(info_.config, name, &shape);
  IRQ_CHECK(index >= 0 && q.rows == shape.out && q.cols == shape.in, "%s (%ld x %ld) is no linear of this model",
            name.c_str(), q.rows, q.cols);
  IRQ_CHECK(q.format == info_.format, "%s is in another format than its file", name.c_str());
  QuantizedMatrix parts = q;
  for (const MatrixPart& part : matrix_parts(parts)) {
    const Tensor& t = *part.tensor;
    IRQ_CHECK(t && t.dtype == part.dtype && t.numel() == part.count && t.contiguous() && t.device == Device::CPU,
              "%s%s: %ld of %ld elements", name.c_str(), part.suffix, t.numel(), part.count);
    file_.write(name + part.suffix, t.data, t.bytes());
  }
  entropy_[static_cast<size_t>(2 * index)] = static_cast<float>(entropy_plain);
  entropy_[static_cast<size_t>(2 * index + 1)] = static_cast<float>(entropy_stored);
  if (!file_.layout().find("map")) return;
  IRQ_CHECK(q.map && q.map.dtype == DType::F32 && q.map.numel() == 256, "%s has no 8-bit map", name.c_str());
  const float* map = q.map.as<float>();
  if (map_.empty()) map_.assign(map, map + 256);
  IRQ_CHECK(std::memcmp(map_.data(), map, 256 * sizeof(float)) == 0, "%s has another 8-bit map than the rest",
            name.c_str());
}

void IrqWriter::set_source_hash(uint64_t hash) {
  info_.source_hash = hash;
  file_.set_fields(irq_fields(info_));
}

uint64_t IrqWriter::finish() {
  file_.write("entropy", entropy_.data(), static_cast<int64_t>(entropy_.size() * sizeof(float)));
  if (file_.layout().find("map")) file_.write("map", map_.data(), 256 * sizeof(float));
  return file_.finish();
}

}  // namespace irq
