#include "src/quant/loftq.h"

#include "src/core/interrupt.h"

namespace irq {

Loftq::~Loftq() {
  if (scratch_) backend_.release(scratch_);
}

void Loftq::reserve(const Tensor& w) {
  int64_t offset = 0;
  const auto place = [&](Tensor& t, int64_t rows, int64_t cols, const char* name) {
    t = make_view(static_cast<char*>(scratch_) + offset, DType::F32, rows, cols, name, backend_.device());
    offset += (t.bytes() + 255) / 256 * 256;
  };
  const auto place_all = [&] {
    offset = 0;
    place(rest_, w.rows, w.cols, w.name);
    place(error_, w.rows, w.cols, w.name);
    place(left_, w.rows, spec_.rank, "left");
    place(right_, spec_.rank, w.cols, "right");
    place(norm_, 1, 1, "norm");
  };
  if (!scratch_) scratch_bytes_ = 0;
  place_all();  // for the size
  if (offset <= scratch_bytes_) return;
  if (scratch_) backend_.release(scratch_);
  scratch_ = nullptr;
  scratch_ = backend_.allocate(offset);
  scratch_bytes_ = offset;
  place_all();
}

double Loftq::norm(const Tensor& x) {
  backend_.global_norm(norm_, x.flat());
  float host = 0;
  backend_.download(&host, norm_);
  return static_cast<double>(host);
}

QuantizeStats Loftq::run(const QuantizedMatrix& out, Tensor w) {
  IRQ_CHECK(spec_.turns >= 1 && spec_.rank >= 1 && !out.has_tau() && backend_.precision().master == DType::F32,
            "LoftQ: %d turns of rank %ld on %s", spec_.turns, spec_.rank, name_of(backend_.precision().master));
  steps_.clear();
  QuantizeStats stats;
  reserve(w);
  const double size = norm(w), unit = size > 0 ? size : 1;
  for (int turn = 0; turn < spec_.turns; ++turn) {
    throw_if_interrupted();
    if (turn > 0) backend_.matmul(rest_, left_, false, right_, false, -1, 1, w);
    stats = quantizer_.run(out, turn > 0 ? rest_ : w, nullptr);
    dequantize(backend_, error_, out);
    backend_.axpby(error_, w, 1, -1);
    LoftqStep step;
    step.quantized = norm(error_) / unit;
    backend_.low_rank(left_, right_, error_);
    backend_.matmul(error_, left_, false, right_, false, -1, 1, error_);
    step.corrected = norm(error_) / unit;
    steps_.push_back(step);
  }
  const auto mean_square = [&](double share) { return share * unit * share * unit / static_cast<double>(w.numel()); };
  stats.error_plain = mean_square(steps_.front().quantized), stats.error = mean_square(steps_.back().corrected);
  return stats;
}

}  // namespace irq
