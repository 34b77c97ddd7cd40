#include "src/quant/gptq.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace irq {
namespace {

constexpr int64_t kBlockColumns = 128;

// The first rows * cols elements of `all`, as a matrix.
Tensor part(const Tensor& all, int64_t rows, int64_t cols) {
  return all.slice_cols(0, rows * cols).reshape(rows, cols);
}

// The diagonal of a contiguous square matrix as a column.
Tensor diagonal_of(const Tensor& h) {
  Tensor d = h;
  d.cols = 1, d.stride = h.cols + 1;
  return d;
}

Tensor by_group(const QuantizedMatrix& q, const Tensor& t) { return t.reshape(q.rows, q.groups_per_row()); }

}  // namespace

void GptqSolver::reserve(int64_t max_rows, int64_t max_cols, int64_t largest) {
  memory_.release();
  max_rows_ = max_rows, max_cols_ = max_cols, largest_ = largest;
  h_all_ = memory_.take(DType::F32, 1, max_cols * max_cols, "GPTQ's H");
  u_all_ = memory_.take(DType::F32, 1, max_cols * max_cols, "GPTQ's U");
  bytes_all_ = memory_.take(DType::U8, 1, largest, "codes");
  err_all_ = memory_.take(DType::F32, 1, max_rows * kBlockColumns, "errors");
  order_all_ = memory_.take(DType::I32, 1, max_cols, "order of columns");
  stats_all_ =
      memory_.take(DType::F32, 1, 2 * (largest / 8 + max_rows), "entropies");  // groups have at least 8 weights
  info_ = memory_.take(DType::I32, 1, 1, "info");
}

void GptqSolver::begin(int64_t cols) {
  IRQ_CHECK(cols <= max_cols_, "%ld columns, reserved for %ld", cols, max_cols_);
  h_ = part(h_all_, cols, cols), u_ = part(u_all_, cols, cols);
  backend_.fill(h_, 0);
}

void GptqSolver::measure(const Tensor& x, double scale) { backend_.matmul(h_, x, true, x, false, scale, 1, h_); }

std::vector<float> GptqSolver::diagonal() const {
  std::vector<float> d(static_cast<size_t>(h_.rows));
  backend_.download(d.data(), diagonal_of(h_));
  return d;
}

void GptqSolver::factorize(const char* name, const GptqOptions& options) {
  std::vector<float> d = diagonal();
  const size_t n = d.size();
  dead_.clear();
  double sum = 0;
  for (size_t i = 0; i < n; ++i) {
    if (!std::isfinite(d[i]))
      throw Error(std::string(name) + ": the inputs on the calibration data are not finite")
          .line("likely", "a damaged model, or activations beyond this device's number format")
          .line("try", "./irq_inspect <model>    which says whether a weight is not finite");
    if (d[i] == 0) dead_.push_back(static_cast<int32_t>(i)), d[i] = 1;
    sum += static_cast<double>(d[i]);
  }
  order_ = Tensor{};
  if (options.act_order) {
    std::vector<int32_t> order(n);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return d[static_cast<size_t>(a)] > d[static_cast<size_t>(b)]; });
    order_ = order_all_.slice_cols(0, static_cast<int64_t>(n));
    backend_.upload(order_, order.data());
    backend_.permute(u_, h_, order_, order_);  // u is free until the factor comes
    std::swap(h_, u_);
    std::vector<float> reordered(n);
    for (size_t i = 0; i < n; ++i) reordered[i] = d[static_cast<size_t>(order[i])];
    d = reordered;
  }
  const double mean = sum / static_cast<double>(n);
  std::vector<float> damped(n);
  for (damping_ = options.damping * mean; damping_ <= 1.001 * mean; damping_ *= 10) {
    for (size_t i = 0; i < n; ++i) damped[i] = static_cast<float>(static_cast<double>(d[i]) + damping_);
    backend_.upload(diagonal_of(h_), damped.data());
    backend_.gptq_factor(u_, info_, h_);
    if (backend_.dry()) return;
    int32_t info = 0;
    backend_.download(&info, info_);
    if (info == 0) return;
  }
  throw Error(std::string(name) + ": GPTQ cannot factorize the Hessian of its inputs")
      .line("expected", "calibration data that excites the inputs in many directions")
      .line("likely", "very few calibration tokens, or a damaged model")
      .line("try", "more calibration data, or --format int");
}

// Parameters of the groups that begin among the columns [first, first + count), from w as it stands.
void GptqSolver::measure_groups(const QuantizedMatrix& out, const Tensor& w, const IntSpec& spec, int64_t first,
                                int64_t count) {
  const int64_t length = out.group_size(), begin = (first + length - 1) / length * length;
  if (begin >= first + count) return;
  const int64_t groups = (first + count - begin + length - 1) / length;
  const int64_t end = std::min(out.cols, begin + groups * length), at = begin / length;
  IntSpec of_slice = spec;
  if (spec.group == kPerChannel) of_slice.group = kPerChannel;
  backend_.int_params(by_group(out, out.scales).slice_cols(at, groups), by_group(out, out.zeros).slice_cols(at, groups),
                      {}, {}, w.slice_cols(begin, end - begin), of_slice);
}

void GptqSolver::solve_blocks(const QuantizedMatrix& out, const Tensor& w, const IntSpec& spec,
                              const GptqOptions& options) {
  const int64_t width = options.fresh && out.group_size() < kBlockColumns ? out.group_size() : kBlockColumns;
  const Tensor bytes = part(bytes_all_, w.rows, w.cols);
  for (int64_t first = 0; first < w.cols; first += width) {
    const int64_t count = std::min(width, w.cols - first), next = first + count;
    measure_groups(out, w, spec, first, count);
    const Tensor err = part(err_all_, w.rows, count), u_rows = u_.slice_rows(first, count);
    backend_.gptq_block(bytes, err, w.slice_cols(first, count), u_rows.slice_cols(first, count),
                        by_group(out, out.scales), by_group(out, out.zeros), order_, first, spec.bits, spec.group);
    if (next == w.cols) break;
    const Tensor later = w.slice_cols(next, w.cols - next);
    backend_.matmul(later, err, false, u_rows.slice_cols(next, w.cols - next), false, -1, 1, later);
  }
  backend_.int_pack(out.codes, by_group(out, entropy_), bytes, spec.bits, spec.group);
}

void GptqSolver::reject_unusable(const QuantizedMatrix& out, const Tensor& w, const IntSpec& spec) {
  // RTN's parameters of w: a group that holds a NaN or an infinity, or is too wide, has none.
  IntSpec nearest = spec;
  nearest.search = IntSearch::none;
  backend_.int_params(by_group(out, out.scales), by_group(out, out.zeros), {}, by_group(out, entropy_plain_), w,
                      nearest);
  std::vector<float> scales(static_cast<size_t>(out.blocks()));
  backend_.download(scales.data(), out.scales);
  if (backend_.dry()) return;
  for (const float s : scales)
    if (!std::isfinite(s)) reject_groups(backend_, w, scales, out.group_size());
}

QuantizeStats GptqSolver::run(const QuantizedMatrix& out, const Tensor& w, const IntSpec& spec,
                              const GptqOptions& options) {
  IRQ_CHECK(out.format == integer_format(spec), "%s: another format than its parameters ask for", w.name);
  IRQ_CHECK(w.rows == out.rows && w.cols == out.cols && w.cols == h_.cols && w.rows <= max_rows_ &&
                w.numel() <= largest_ && w.contiguous(),
            "%s (%ld, %ld) does not fit H of %ld and what is reserved", w.name, w.rows, w.cols, h_.cols);
  IRQ_CHECK(!options.act_order || spec.group == kPerChannel, "%s: reordered columns have no groups", w.name);
  QuantizeStats stats;
  stats.blocks = out.blocks();
  const Tensor both = stats_all_.slice_cols(0, 2 * stats.blocks);
  entropy_plain_ = both.slice_cols(0, stats.blocks), entropy_ = both.slice_cols(stats.blocks, stats.blocks);
  reject_unusable(out, w, spec);
  for (const int32_t column : dead_) backend_.fill(w.slice_cols(column, 1), 0);
  Tensor work = w;
  if (order_) {
    if (!copy_all_) copy_all_ = memory_.take(DType::F32, 1, largest_, "reordered columns");
    work = part(copy_all_, w.rows, w.cols);
    work.name = w.name;
    backend_.permute(work, w, {}, order_);
  }
  solve_blocks(out, work, spec, options);
  const auto mean = [&](const Tensor& t) {
    std::vector<float> host(static_cast<size_t>(t.numel()));
    backend_.download(host.data(), t);
    return std::accumulate(host.begin(), host.end(), 0.0) / static_cast<double>(std::max<size_t>(host.size(), 1));
  };
  stats.entropy_plain = mean(entropy_plain_), stats.entropy = mean(entropy_);
  return stats;
}

}  // namespace irq
