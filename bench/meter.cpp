#include "bench/meter.h"

#include <algorithm>

namespace irq {
namespace {

constexpr int kWarmups = 2;  // the first call chooses algorithms and touches fresh memory
constexpr int kFewestRepeats = 3;
constexpr double kBudgetMs = 1500;  // of one measurement: slow ops (CPU) are repeated less often

}  // namespace

Timing summarize(std::vector<double> ms) {
  if (ms.empty()) return {};
  std::sort(ms.begin(), ms.end());
  const size_t n = ms.size(), middle = n / 2;
  return {n % 2 == 1 ? ms[middle] : (ms[middle - 1] + ms[middle]) / 2, ms.front(), ms.back(), static_cast<int>(n)};
}

Tensor allocate_tensor(Backend& backend, const char* name, DType dtype, int64_t rows, int64_t cols) {
  const int64_t bytes = std::max<int64_t>(rows * cols * size_of(dtype), 256);
  return make_view(backend.allocate(bytes), dtype, rows, cols, name, backend.device());
}

Meter::Meter(Backend& backend, RandomData& random, int repeats)
    : backend_(backend), random_(random), repeats_(repeats) {
  const bool gpu = backend.device() == Device::CUDA;
  gemm_size_ = gpu ? 8192 : 256;
  large_copy_ = int64_t{1} << (gpu ? 31 : 26);
  // Several times the largest L2 (60 MB on an H200). It is read, not written: lines to be written back would slow the
  // measured op down.
  flush_ = allocate_tensor(backend, "cache flush", backend.precision().master, 1, int64_t{1} << (gpu ? 26 : 20));
  flush_sum_ = allocate_tensor(backend, "cache flush", backend.precision().master, 1, 1);
  random_.normals(backend, flush_, 0, 1);
}

Meter::~Meter() {
  release_gemm();
  backend_.release(flush_.data);
  backend_.release(flush_sum_.data);
}

void Meter::release_gemm() {
  backend_.synchronize();
  for (const Tensor& t : gemm_) backend_.release(t.data);
  gemm_.clear();
}

void Meter::flush_cache() { backend_.reduce_sum(flush_sum_, flush_, 0); }

Timing Meter::time(const std::function<void()>& work) {
  std::vector<double> ms;
  double total = 0;
  for (int i = 0; i < kWarmups; ++i) total += backend_.time_ms(work);
  if (total > kBudgetMs) total = kBudgetMs;
  while (static_cast<int>(ms.size()) < repeats_ &&
         (total < kBudgetMs || static_cast<int>(ms.size()) < std::min(kFewestRepeats, repeats_))) {
    flush_cache();  // not waited for: while the device reads, the host enqueues the work
    ms.push_back(backend_.time_ms(work));
    total += ms.back();
  }
  return summarize(std::move(ms));
}

double Meter::copy_rate(int64_t bytes) {
  // Whole 4096 bytes: the CUDA driver copies a remainder by a second launch, which at 10 MB takes a third of the time.
  const int64_t half = std::max<int64_t>((bytes / 2 + 2048) / 4096 * 4096, 4096);
  if (const auto known = copy_rates_.find(half); known != copy_rates_.end()) return known->second;
  const Tensor from = allocate_tensor(backend_, "copied", DType::U8, 1, half);
  const Tensor to = allocate_tensor(backend_, "copy", DType::U8, 1, half);
  random_.bytes(backend_, from);
  const Timing t = time([&] { backend_.copy_bytes(to.data, from.data, half); });
  backend_.release(from.data);
  backend_.release(to.data);
  return copy_rates_[half] = 2e3 * static_cast<double>(half) / t.median_ms;
}

double Meter::gemm_rate() {
  const int64_t n = gemm_size_;
  if (gemm_.empty())
    for (int i = 0; i < 3; ++i) {
      gemm_.push_back(allocate_tensor(backend_, "gemm", backend_.precision().storage, n, n));
      if (i > 0) random_.normals(backend_, gemm_.back(), 0, 1);
    }
  const Timing t = time([&] { backend_.matmul(gemm_[0], gemm_[1], false, gemm_[2], true, 1, 0, {}); });
  const double side = static_cast<double>(n);
  return 2e3 * side * side * side / t.median_ms;
}

double Meter::empty_ms() {
  return time([] {}).median_ms;
}

}  // namespace irq
