#include "src/io/layout.h"

#include "src/core/check.h"

namespace irq {
namespace {

constexpr int64_t kMaxPayload = int64_t{1} << 62;

bool is_attention(const LinearShape& s) { return std::string(s.name).size() == 2; }  // wq wk wv wo

// Calls plain(name, dtype, rows, cols) and linear(name, shape) in file order.
template <class Plain, class Linear>
void walk(const ModelConfig& c, DType dtype, Plain plain, Linear linear) {
  plain("embed", dtype, c.vocab, c.dim);
  for (int64_t l = 0; l < c.layers; ++l) {
    const std::string prefix = "layers." + std::to_string(l) + ".";
    plain(prefix + "attn_norm", DType::F32, 1, c.dim);
    for (const LinearShape& s : layer_linears(c))
      if (is_attention(s)) linear(prefix + s.name, s);
    plain(prefix + "ffn_norm", DType::F32, 1, c.dim);
    for (const LinearShape& s : layer_linears(c))
      if (!is_attention(s)) linear(prefix + s.name, s);
  }
  plain("norm", DType::F32, 1, c.dim);
  if (!c.tied) plain("head", dtype, c.vocab, c.dim);
}

}  // namespace

void Layout::add(std::string name, DType dtype, int64_t rows, int64_t cols, const std::string& subject) {
  int64_t count = 0, bytes = 0, offset = 0, end = 0;
  const bool overflow =
      __builtin_mul_overflow(rows, cols, &count) || __builtin_mul_overflow(count, size_of(dtype), &bytes) ||
      __builtin_add_overflow(payload_bytes_, kTensorAlign - 1, &offset) || __builtin_add_overflow(offset, bytes, &end);
  if (rows < 0 || cols < 0 || overflow || end > kMaxPayload)
    throw Error(subject + ": a tensor of an impossible size")
        .line("found", strf("%s (%ld x %ld) %s", name.c_str(), rows, cols, name_of(dtype)));
  offset = offset / kTensorAlign * kTensorAlign;
  if (!index_.emplace(name, tensors_.size()).second) throw Error(subject + ": two tensors are called " + name);
  tensors_.push_back({std::move(name), dtype, rows, cols, offset});
  payload_bytes_ = offset + bytes;
}

const TensorSpec* Layout::find(const std::string& name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

Layout base_layout(const ModelConfig& c, DType dtype, const std::string& subject) {
  Layout layout;
  walk(
      c, dtype,
      [&](const std::string& name, DType t, int64_t rows, int64_t cols) { layout.add(name, t, rows, cols, subject); },
      [&](const std::string& name, const LinearShape& s) { layout.add(name, dtype, s.out, s.in, subject); });
  return layout;
}

Layout irq_layout(const ModelConfig& c, DType dtype, const QuantFormat& format, const std::string& subject) {
  Layout layout;
  walk(
      c, dtype,
      [&](const std::string& name, DType t, int64_t rows, int64_t cols) { layout.add(name, t, rows, cols, subject); },
      [&](const std::string& name, const LinearShape& s) {
        QuantizedMatrix q;
        q.rows = s.out, q.cols = s.in, q.format = format;
        for (const MatrixPart& part : matrix_parts(q))
          layout.add(name + part.suffix, part.dtype, 1, part.count, subject);
      });
  layout.add("entropy", DType::F32, 7 * c.layers, 2, subject);
  QuantizedMatrix any;
  any.format = format;
  if (any.uses_map()) layout.add("map", DType::F32, 1, 256, subject);
  return layout;
}

void validate(const QuantFormat& f, const std::string& subject) {
  auto bad = [&](const std::string& what) {
    return Error(subject + ": not a quantization this engine knows: " + what);
  };
  if (f.kind != QuantKind::nf && f.kind != QuantKind::integer) throw bad(strf("kind %d", static_cast<int>(f.kind)));
  if (f.bits < 2 || f.bits > 4) throw bad(strf("%d bits (allowed: 2 to 4)", f.bits));
  const bool integer = f.kind == QuantKind::integer;
  if (integer ? f.group != kPerChannel && (f.group < 8 || f.group > 1 << 20) : f.group < 1)
    throw bad(strf("groups of %d weights", f.group));
  if (f.kind == QuantKind::nf && f.group != kBlock) throw bad(strf("NF blocks of %d weights (allowed: 64)", f.group));
  if (f.scale != ScaleKind::f32 && f.scale != ScaleKind::dq8)
    throw bad(strf("scale kind %d", static_cast<int>(f.scale)));
  const bool zero = f.shift == ShiftKind::int_zero || f.shift == ShiftKind::float_zero;
  if (integer ? !zero : f.shift != ShiftKind::none && f.shift != ShiftKind::tau)
    throw bad(strf("shift kind %d", static_cast<int>(f.shift)));
  if (integer && f.scale != ScaleKind::f32) throw bad("integers with 8-bit scales");
}

int64_t linear_index(const ModelConfig& c, const std::string& name, LinearShape* shape) {
  const std::string prefix = "layers.";
  if (name.compare(0, prefix.size(), prefix) != 0) return -1;
  const size_t dot = name.find('.', prefix.size());
  if (dot == std::string::npos || dot == prefix.size() || dot - prefix.size() > 5) return -1;
  int64_t layer = 0;
  for (size_t i = prefix.size(); i < dot; ++i) {
    if (name[i] < '0' || name[i] > '9') return -1;
    layer = 10 * layer + (name[i] - '0');
  }
  if (layer >= c.layers) return -1;
  const auto linears = layer_linears(c);
  for (size_t i = 0; i < linears.size(); ++i) {
    if (name.compare(dot + 1, std::string::npos, linears[i].name) != 0) continue;
    if (shape) *shape = linears[i];
    return 7 * layer + static_cast<int64_t>(i);
  }
  return -1;
}

}  // namespace irq
