#include "src/quant/quantize.h"

#include <cmath>

namespace irq {
namespace {

constexpr int64_t kAlign = 256;
int64_t aligned(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

QuantizedMatrix describe(int64_t rows, int64_t cols, const QuantFormat& format) {
  QuantizedMatrix q;
  q.rows = rows;
  q.cols = cols;
  q.format = format;
  return q;
}

}  // namespace

int64_t quantized_bytes(int64_t rows, int64_t cols, const QuantFormat& format) {
  QuantizedMatrix q = describe(rows, cols, format);
  int64_t total = 0;
  for (const MatrixPart& p : matrix_parts(q)) total += p.bytes();
  return total;
}

int64_t placed_bytes(int64_t rows, int64_t cols, const QuantFormat& format) {
  QuantizedMatrix q = describe(rows, cols, format);
  int64_t total = 0;
  for (const MatrixPart& p : matrix_parts(q)) total += aligned(p.bytes());
  return total;
}

QuantizedMatrix place_quantized(void* memory, int64_t rows, int64_t cols, const QuantFormat& format, Tensor map,
                                Device device) {
  QuantizedMatrix q = describe(rows, cols, format);
  q.map = map;
  char* next = static_cast<char*>(memory);
  for (const MatrixPart& p : matrix_parts(q)) {
    *p.tensor = make_view(next, p.dtype, 1, p.count, p.suffix + 1, device);
    next += aligned(p.bytes());
  }
  return q;
}

void dequantize(Backend& backend, const Tensor& w, const QuantizedMatrix& q) {
  if (q.is_integer()) backend.int_dequant(w, q);
  else backend.nfk_dequant(w, q);
}

Quantizer::~Quantizer() {
  if (scratch_) backend_.release(scratch_);
  if (error_scratch_) backend_.release(error_scratch_);
}

void Quantizer::reserve(int64_t blocks) {
  const int64_t part = aligned(blocks * size_of(DType::F32));
  if (blocks > scratch_blocks_) {
    if (scratch_) backend_.release(scratch_);
    scratch_ = nullptr;
    scratch_blocks_ = 0;
    scratch_ = backend_.allocate(5 * part);
    scratch_blocks_ = blocks;
  }
  char* next = static_cast<char*>(scratch_);
  const auto take = [&](const char* name) {
    Tensor t = make_view(next, DType::F32, 1, blocks, name, backend_.device());
    next += part;
    return t;
  };
  tau_ = take("tau");
  absmax_ = take("absmax");
  entropy_plain_ = take("entropy_plain");
  entropy_ = take("entropy");
  spare_ = take("spare");
}

double Quantizer::mean(Tensor x) {
  std::vector<float> host(static_cast<size_t>(x.numel()));
  backend_.download(host.data(), x);
  double sum = 0;
  for (const float v : host) sum += static_cast<double>(v);
  return sum / static_cast<double>(host.size());
}

void reject_weight(const std::string& name, int64_t cols, int64_t index, float x) {
  throw Error(name + ": a weight is " + (std::isnan(x) ? "not a number" : "infinite"))
      .line("expected", "finite weights")
      .line("found",
            strf("%g at row %ld, column %ld (counted from 0)", static_cast<double>(x), index / cols, index % cols))
      .line("likely", "a damaged download, or a model whose training diverged")
      .line("try", "an intact source    then, unless it is a .bin,    ./irq_convert <source> <model>.bin");
}

QuantFormat integer_format(const IntSpec& spec) {
  return {QuantKind::integer, spec.bits, spec.group, ScaleKind::f32,
          spec.search == IntSearch::zero_shift ? ShiftKind::float_zero : ShiftKind::int_zero};
}

namespace {

[[noreturn]] void reject_spread(const Tensor& w, int64_t weights, int64_t row, int64_t col) {
  throw Error(strf("%s: weights are too large to quantize", w.name))
      .line("expected", "weights whose differences fit in fp32")
      .line("found", strf("a spread beyond 3.4e38 among the %ld weights from row %ld, column %ld",
                          static_cast<long>(weights), static_cast<long>(row), static_cast<long>(col)))
      .line("likely", "a damaged file, or a wrong element type")
      .line("try", "./irq_inspect <model> --tensors");
}

}  // namespace

void reject_groups(Backend& backend, const Tensor& w, const std::vector<float>& scales, int64_t group) {
  const int64_t groups = (w.cols + group - 1) / group;
  std::vector<float> weights(static_cast<size_t>(std::min(group, w.cols)));
  for (size_t i = 0; i < scales.size(); ++i) {
    if (std::isfinite(scales[i])) continue;
    const int64_t row = static_cast<int64_t>(i) / groups, col = static_cast<int64_t>(i) % groups * group;
    const int64_t n = std::min(group, w.cols - col);
    backend.download(weights.data(), w.slice_rows(row, 1).slice_cols(col, n));
    for (int64_t j = 0; j < n; ++j) {
      const float x = weights[static_cast<size_t>(j)];
      if (!std::isfinite(x)) reject_weight(w.name, w.cols, row * w.cols + col + j, x);
    }
    reject_spread(w, n, row, col);
  }
  IRQ_CHECK(false, "%s: all scales are finite", w.name);
}

// Called when some block's absmax is not finite: says which element, or that a block's spread is beyond fp32.
void Quantizer::reject_unusable_weights(Tensor w) {
  std::vector<float> absmax(static_cast<size_t>(absmax_.numel())), block(kBlock);
  int64_t too_wide = -1;  // `consistent`: a NaN in one block spoils tau_hat, and with it absmax, of all its group
  backend_.download(absmax.data(), absmax_);
  for (int64_t b = 0; b < absmax_.numel(); ++b) {
    if (std::isfinite(absmax[static_cast<size_t>(b)])) continue;
    const int64_t begin = b * kBlock, n = std::min<int64_t>(kBlock, w.numel() - begin);
    backend_.download(block.data(), w.flat().slice_cols(begin, n));
    for (int64_t i = 0; i < n; ++i) {
      const float x = block[static_cast<size_t>(i)];
      if (!std::isfinite(x)) reject_weight(w.name, w.cols, begin + i, x);
    }
    if (too_wide < 0) too_wide = begin;
  }
  if (too_wide >= 0) reject_spread(w, kBlock, too_wide / w.cols, too_wide % w.cols);
}

// tau, its codes, and the codes of w - tau; `consistent`: those of w - tau_hat.
void Quantizer::search(const QuantizedMatrix& out, Tensor flat, const IcqSpec& icq) {
  const int bits = out.format.bits;
  backend_.icq_search(tau_, entropy_plain_, entropy_, flat, bits, icq);
  backend_.double_quantize_tau(out.tau_codes, out.tau_groups, tau_, out.map);
  if (!icq.consistent) return backend_.nfk_quantize(out.codes, absmax_, Tensor{}, flat, tau_, bits);
  backend_.dequantize_tau(spare_, out.tau_codes, out.tau_groups, out.map);
  backend_.nfk_quantize(out.codes, absmax_, entropy_, flat, spare_, bits);
}

void Quantizer::quantize_scales(const QuantizedMatrix& out, Tensor absmax) {
  if (out.format.scale == ScaleKind::dq8)
    backend_.double_quantize_scales(out.scale_codes, out.scale_groups, out.scale_offset, absmax, out.map);
  else backend_.copy(out.scales, absmax);
}

void Quantizer::measure_errors(QuantizeStats& stats, const QuantizedMatrix& out, Tensor w,
                               const std::function<void(const QuantizedMatrix&)>& without_search) {
  QuantFormat format = out.format;
  format.shift = out.is_integer() ? ShiftKind::int_zero : ShiftKind::none;
  const int64_t blocks = (w.numel() + kBlock - 1) / kBlock;
  const int64_t wide = aligned(w.numel() * size_of(DType::F32)), sums = aligned(blocks * size_of(DType::F64));
  const int64_t bytes = wide + sums + placed_bytes(w.rows, w.cols, format);
  if (bytes > error_scratch_bytes_) {
    if (error_scratch_) backend_.release(error_scratch_);
    error_scratch_ = nullptr, error_scratch_bytes_ = 0;
    error_scratch_ = backend_.allocate(bytes);
    error_scratch_bytes_ = bytes;
  }
  char* next = static_cast<char*>(error_scratch_);
  const Tensor w_hat = make_view(next, DType::F32, w.rows, w.cols, "w_hat", backend_.device());
  const Tensor squares = make_view(next + wide, DType::F64, 1, blocks, "errors", backend_.device());
  std::vector<double> host(static_cast<size_t>(blocks));
  const auto error_of = [&](const QuantizedMatrix& q) {
    dequantize(backend_, w_hat, q);
    backend_.squared_errors(squares, w.flat(), w_hat.flat());
    backend_.download(host.data(), squares);
    double sum = 0;
    for (const double x : host) sum += x;
    return sum / static_cast<double>(w.numel());
  };
  stats.error = stats.error_plain = error_of(out);
  if (!without_search) return;
  const QuantizedMatrix plain = place_quantized(next + wide + sums, w.rows, w.cols, format, out.map, backend_.device());
  without_search(plain);
  stats.error_plain = error_of(plain);
}

QuantizeStats Quantizer::run(const QuantizedMatrix& out, Tensor w, const IcqSpec* icq, bool errors) {
  IRQ_CHECK(out.format.kind == QuantKind::nf && out.format.group == kBlock, "only NF codes in blocks of 64");
  IRQ_CHECK(w.rows == out.rows && w.cols == out.cols && w.contiguous() && w.dtype == DType::F32,
            "%s (%ld, %ld) %s does not fill a quantized (%ld, %ld)", w.name, w.rows, w.cols, name_of(w.dtype), out.rows,
            out.cols);
  IRQ_CHECK((icq != nullptr) == out.has_tau(), "%s: a shift is stored if and only if ICQ searches one", w.name);
  QuantizeStats stats;
  stats.blocks = out.blocks();
  if (w.numel() == 0) return stats;
  reserve(stats.blocks);
  if (icq) {
    search(out, w.flat(), *icq);
  } else {
    tau_ = Tensor{};
    backend_.nfk_quantize(out.codes, absmax_, entropy_, w.flat(), tau_, out.format.bits);
    entropy_plain_ = entropy_;
  }
  quantize_scales(out, absmax_);
  // A NaN or infinite weight makes its block's absmax so, and with it the offset, their mean.
  float offset = 0;
  if (out.format.scale == ScaleKind::dq8) backend_.download(&offset, out.scale_offset);
  else offset = static_cast<float>(mean(absmax_));
  if (!backend_.dry() && !std::isfinite(offset)) reject_unusable_weights(w);
  stats.entropy = mean(entropy_);
  stats.entropy_plain = icq ? mean(entropy_plain_) : stats.entropy;
  if (!errors) return stats;
  if (!icq) return measure_errors(stats, out, w, {}), stats;
  measure_errors(stats, out, w, [&](const QuantizedMatrix& plain) {
    backend_.nfk_quantize(plain.codes, spare_, Tensor{}, w.flat(), Tensor{}, plain.format.bits);
    quantize_scales(plain, spare_);
  });
  return stats;
}

QuantizeStats Quantizer::run_integer(const QuantizedMatrix& out, Tensor w, const IntSpec& spec, bool errors) {
  IRQ_CHECK(out.format == integer_format(spec), "%s: another format than its parameters ask for", w.name);
  IRQ_CHECK(w.rows == out.rows && w.cols == out.cols && w.dtype == DType::F32,
            "%s (%ld, %ld) %s does not fill a quantized (%ld, %ld)", w.name, w.rows, w.cols, name_of(w.dtype), out.rows,
            out.cols);
  QuantizeStats stats;
  stats.blocks = out.blocks();
  if (w.numel() == 0) return stats;
  reserve(stats.blocks);
  tau_ = absmax_ = Tensor{};
  const auto by_group = [&](const Tensor& t) { return t.reshape(out.rows, out.groups_per_row()); };
  const bool searches = spec.search != IntSearch::none;
  backend_.int_params(by_group(out.scales), by_group(out.zeros), searches ? by_group(entropy_plain_) : Tensor{},
                      by_group(entropy_), w, spec);
  if (!searches) entropy_plain_ = entropy_;
  stats.entropy = mean(entropy_);
  if (!backend_.dry() && !std::isfinite(stats.entropy)) {
    std::vector<float> scales(static_cast<size_t>(stats.blocks));
    backend_.download(scales.data(), out.scales);
    reject_groups(backend_, w, scales, out.group_size());
  }
  stats.entropy_plain = searches ? mean(entropy_plain_) : stats.entropy;
  const auto encode = [&](const QuantizedMatrix& q) {
    backend_.int_encode(q.codes, w, by_group(q.scales), by_group(q.zeros), spec.bits, spec.group);
  };
  encode(out);
  if (!errors) return stats;
  if (!searches) return measure_errors(stats, out, w, {}), stats;
  measure_errors(stats, out, w, [&](const QuantizedMatrix& plain) {
    IntSpec nearest = spec;
    nearest.search = IntSearch::none;
    backend_.int_params(by_group(plain.scales), by_group(plain.zeros), Tensor{}, by_group(spare_), w, nearest);
    encode(plain);
  });
  return stats;
}

}  // namespace irq
