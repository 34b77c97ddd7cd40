#include "src/io/export_source.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "src/io/float_pieces.h"
#include "src/io/inspect.h"
#include "src/io/synthetic.h"

namespace irq {
namespace {

constexpr int64_t kPieceBytes = int64_t{8} << 20;

// Users merge a LoRA of a quantized model into the 16-bit original and wonder where the accuracy went.
constexpr const char* kWhyMerge =
    "an adapter of a quantized base has learned to correct its rounding: merged into the 16-bit original it loses "
    "accuracy";
constexpr const char* kWhyPeft =
    "an adapter of a quantized base has learned to correct its rounding: on another base it loses accuracy";

// Rounds once and writes; returns the value that is written.
float store(float x, DType type, unsigned char* to) {
  if (type == DType::F32) {
    std::memcpy(to, &x, 4);
    return x;
  }
  const uint16_t bits = type == DType::F16 ? to_f16(x).bits : to_bf16(x).bits;
  std::memcpy(to, &bits, 2);
  return type == DType::F16 ? to_float(F16{bits}) : to_float(Bf16{bits});
}

struct Sums {
  double weight = 0, change = 0, rounding = 0;  // of squares
};

}  // namespace

// A tensor whose rows are about to be asked for.
struct ExportSource::Opened {
  int64_t rows = 0, cols = 0;
  Tensor plain;               // either a view of the file ...
  std::vector<float> values;  // ... or a dequantized matrix
  bool merged = false;
  FoldedAdapter lora;
  float scale = 0;
  std::vector<float> rescaled;  // PEQA: the matrix with the trained scales

  const float* fetch(int64_t r, float* space) const {
    if (!values.empty()) return values.data() + r * cols;
    const unsigned char* row = static_cast<const unsigned char*>(plain.data) + r * cols * size_of(plain.dtype);
    for (int64_t i = 0; i < cols; ++i) space[i] = value_at(row, plain.dtype, i);
    return space;
  }
  // Row r of what is exported, and by how much it differs from w.
  void merge(int64_t r, const float* w, float* out, float* change) const {
    if (rescaled.empty()) {
      product_row(lora, r, cols, scale, change);
      for (int64_t i = 0; i < cols; ++i) out[i] = w[i] + change[i];
    } else {
      std::copy_n(rescaled.data() + r * cols, cols, out);
      for (int64_t i = 0; i < cols; ++i) change[i] = out[i] - w[i];
    }
  }
};

ExportSource::ExportSource(const std::string& model, const std::string& adapter, bool merge)
    : path_(model), merge_(merge) {
  if (sniff(model) == FileKind::quantized) quantized_ = std::make_unique<IrqReader>(model);
  else base_ = open_base(model, kSyntheticSeed);
  if (adapter.empty()) return;
  adapter_ = std::make_unique<AdapterReader>(adapter);
  const BaseIdentity base{path_, hash(), quantized(), quantized_ ? quantized_->source_hash() : 0};
  require_adapter_base(base, adapter_->info().base_hash, adapter, merge ? kWhyMerge : kWhyPeft);
  require_integer_base(adapter_->info(), quantized_.get(), adapter);
}

ExportSource::Opened ExportSource::open(const std::string& name) {
  Opened o;
  if (quantized_ && quantized_->is_matrix(name)) {
    QuantizedMatrix q = quantized_->matrix(name);
    o.values = dequantize_on_host(q);
    o.rows = q.rows, o.cols = q.cols;
    if (merge_ && adapter_ && adapter_->info().trains_scales()) {
      q.scales = trained_scales(*adapter_, name, q).flat();
      o.rescaled = dequantize_on_host(q), o.merged = true;
      return o;
    }
  } else {
    o.plain = quantized_ ? quantized_->tensor(name) : base_->tensor(name);
    o.rows = o.plain.rows, o.cols = o.plain.cols;
  }
  LinearShape shape{};
  const int64_t index = linear_index(config(), name, &shape);
  if (merge_ && adapter_ && index >= 0 && !adapter_->info().trains_scales() &&
      adapter_->info().targets >> (index % 7) & 1u) {
    o.merged = true;
    o.lora = fold_adapter(*adapter_, name, shape);
    o.scale = static_cast<float>(adapter_->info().alpha / static_cast<double>(o.lora.rank));
  }
  return o;
}

void ExportSource::close(const std::string& name) {
  if (quantized_) quantized_->dont_need(name);
  else base_->dont_need(name);
}

void ExportSource::stream(const std::string& name, DType to, const RowOrder& order, const Sink& sink) {
  const Opened source = open(name);
  const int64_t cols = source.cols, row_bytes = cols * size_of(to);
  const bool copies = source.plain && source.plain.dtype == to && !source.merged;
  const int64_t piece = std::clamp<int64_t>(kPieceBytes / row_bytes, 1, source.rows);
  std::vector<unsigned char> bytes(static_cast<size_t>(piece * row_bytes));
  std::vector<Sums> sums(
      static_cast<size_t>(source.merged ? source.rows : 0));  // per row, so that threads do not matter
  std::atomic<bool> overflow{false};
  for (int64_t begin = 0; begin < source.rows; begin += piece) {
    const int64_t count = std::min(piece, source.rows - begin);
#pragma omp parallel
    {
      const size_t wide = static_cast<size_t>(source.merged ? cols : 0);
      std::vector<float> space(static_cast<size_t>(cols)), change(wide), merged(wide);
#pragma omp for schedule(static)
      for (int64_t r = 0; r < count; ++r) {
        const int64_t from = order ? order(begin + r) : begin + r;
        unsigned char* out = bytes.data() + r * row_bytes;
        if (copies) {
          std::memcpy(out, static_cast<const unsigned char*>(source.plain.data) + from * row_bytes,
                      static_cast<size_t>(row_bytes));
          continue;
        }
        const float* w = source.fetch(from, space.data());
        if (source.merged) source.merge(from, w, merged.data(), change.data());
        Sums sum;
        for (int64_t i = 0; i < cols; ++i) {
          const float x = source.merged ? merged[static_cast<size_t>(i)] : w[i];
          const float stored = store(x, to, out + i * size_of(to));
          if (std::isinf(stored) && std::isfinite(x)) overflow = true;
          if (!source.merged) continue;
          const double d = change[static_cast<size_t>(i)], e = static_cast<double>(stored) - static_cast<double>(x);
          sum.weight += static_cast<double>(w[i]) * static_cast<double>(w[i]), sum.change += d * d,
              sum.rounding += e * e;
        }
        if (source.merged) sums[static_cast<size_t>(begin + r)] = sum;
      }
    }
    if (overflow)
      throw Error(path_ + ": a weight of " + name + " does not fit " + name_of(to))
          .line("expected", "at most 65504 in f16")
          .line("try", "--dtype bf16");
    sink(bytes.data(), count * row_bytes);
  }
  if (source.merged) {
    Sums all;
    for (const Sums& s : sums) all.weight += s.weight, all.change += s.change, all.rounding += s.rounding;
    const double norm = all.weight > 0 ? std::sqrt(all.weight) : 1;
    changes_.push_back({name, std::sqrt(all.change) / norm, std::sqrt(all.rounding) / norm});
  }
  close(name);
}

bool ExportSource::norms_fit(DType to) {
  const Layout layout = base_layout(config(), to, path_);
  for (const TensorSpec& t : layout.tensors()) {
    if (t.rows != 1 || !t.name.ends_with("norm")) continue;
    const Opened norm = open(t.name);
    std::vector<float> space(static_cast<size_t>(norm.cols));
    const float* w = norm.fetch(0, space.data());
    unsigned char stored[4];
    for (int64_t i = 0; i < norm.cols; ++i)
      if (!(store(w[i], to, stored) == w[i])) return false;
  }
  return true;
}

}  // namespace irq
