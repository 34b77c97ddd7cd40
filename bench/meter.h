// Meter: times work on a backend, and the two ceilings of the same run that every figure is compared with.
#pragma once
#include <map>
#include <vector>

#include "bench/random_data.h"

namespace irq {

struct Timing {
  double median_ms = 0, min_ms = 0, max_ms = 0;
  int repeats = 0;
};
Timing summarize(std::vector<double> ms);

class Meter {
 public:
  Meter(Backend& backend, RandomData& random, int repeats);
  ~Meter();
  Meter(const Meter&) = delete;
  Meter& operator=(const Meter&) = delete;

  // Median after a warm-up. Before each repeat other memory is read, so that the inputs come from DRAM, not from L2.
  Timing time(const std::function<void()>& work);
  // Bytes per second of the device's own copy when it reads and writes `bytes` together.
  double copy_rate(int64_t bytes);
  double copy_rate() { return copy_rate(large_copy_); }
  // FLOPs per second of a square matrix product through Backend::matmul: 8192^3 in BF16 on a GPU. Measured anew by each call.
  double gemm_rate();
  int64_t gemm_size() const { return gemm_size_; }
  // Gives the product's matrices back (a step bench needs the memory).
  void release_gemm();
  double empty_ms();  // what two events with nothing between them measure

 private:
  void flush_cache();

  Backend& backend_;
  RandomData& random_;
  int repeats_;
  int64_t gemm_size_, large_copy_;
  Tensor flush_, flush_sum_;
  std::vector<Tensor> gemm_;
  std::map<int64_t, double> copy_rates_;
};

// A tensor in memory of its own; release with backend.release(t.data).
Tensor allocate_tensor(Backend& backend, const char* name, DType dtype, int64_t rows, int64_t cols);

}  // namespace irq
