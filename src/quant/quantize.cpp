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
}

void Quantizer::reserve(int64_t blocks) {
  const int64_t part = aligned(blocks * size_of(DType::F32));
  if (blocks > scratch_blocks_) {
    if (scratch_) backend_.release(scratch_);
    scratch_ = nullptr;
    scratch_blocks_ = 0;
    scratch_ = backend_.allocate(4 * part);
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
  backend_.download(absmax.data(), absmax_);
  for (int64_t b = 0; b < absmax_.numel(); ++b) {
    if (std::isfinite(absmax[static_cast<size_t>(b)])) continue;
    const int64_t begin = b * kBlock, n = std::min<int64_t>(kBlock, w.numel() - begin);
    backend_.download(block.data(), w.flat().slice_cols(begin, n));
    for (int64_t i = 0; i < n; ++i) {
      const float x = block[static_cast<size_t>(i)];
      if (!std::isfinite(x)) reject_weight(w.name, w.cols, begin + i, x);
    }
    reject_spread(w, n, begin / w.cols, begin % w.cols);
  }
}

QuantizeStats Quantizer::run(const QuantizedMatrix& out, Tensor w, const IcqSpec* icq) {
  IRQ_CHECK(out.format.kind == QuantKind::nf && out.format.group == kBlock, "only NF codes in blocks of 64");
  IRQ_CHECK(w.rows == out.rows && w.cols == out.cols && w.contiguous() && w.dtype == DType::F32,
            "%s (%ld, %ld) %s does not fill a quantized (%ld, %ld)", w.name, w.rows, w.cols, name_of(w.dtype), out.rows,
            out.cols);
  IRQ_CHECK((icq != nullptr) == out.has_tau(), "%s: a shift is stored if and only if ICQ searches one", w.name);
  QuantizeStats stats;
  stats.blocks = out.blocks();
  if (w.numel() == 0) return stats;
  reserve(stats.blocks);
  const Tensor flat = w.flat();
  const int bits = out.format.bits;
  if (icq) {
    backend_.icq_search(tau_, entropy_plain_, entropy_, flat, bits, *icq);
    backend_.nfk_quantize(out.codes, absmax_, Tensor{}, flat, tau_, bits);
  } else {
    tau_ = Tensor{};
    backend_.nfk_quantize(out.codes, absmax_, entropy_, flat, tau_, bits);
    entropy_plain_ = entropy_;
  }
  // A NaN or infinite weight makes its block's absmax so, and with it the offset, their mean.
  float offset = 0;
  if (out.format.scale == ScaleKind::dq8) {
    backend_.double_quantize_scales(out.scale_codes, out.scale_groups, out.scale_offset, absmax_, out.map);
    backend_.download(&offset, out.scale_offset);
  } else {
    backend_.copy(out.scales, absmax_);
    offset = static_cast<float>(mean(absmax_));
  }
  if (!backend_.dry() && !std::isfinite(offset)) reject_unusable_weights(w);
  if (icq) backend_.double_quantize_tau(out.tau_codes, out.tau_groups, tau_, out.map);
  stats.entropy = mean(entropy_);
  stats.entropy_plain = icq ? mean(entropy_plain_) : stats.entropy;
  return stats;
}

QuantizeStats Quantizer::run_integer(const QuantizedMatrix& out, Tensor w, const IntSpec& spec) {
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
  backend_.int_encode(out.codes, w, by_group(out.scales), by_group(out.zeros), spec.bits, spec.group);
  return stats;
}

}  // namespace irq
