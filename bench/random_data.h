// Random inputs for benches, made quickly: a pool of normals, tiled into every tensor from another place each time.
// The period is prime, so that no row, block or tile of a kernel repeats another one's.
#pragma once
#include "kernels/backend.h"
#include "tests/op_case.h"

namespace irq {

class RandomData {
 public:
  explicit RandomData(uint64_t seed);
  // N(mean, deviation) into a contiguous F32, F64 or BF16 tensor; uniform bytes into a U8 one.
  void normals(Backend& backend, const Tensor& t, double mean, double deviation);
  void bytes(Backend& backend, const Tensor& t);
  // An argument's inputs as its OpCase describes them. Long float arguments repeat after kPeriod values.
  void argument(Backend& backend, const Tensor& t, const Arg& arg);

 private:
  static constexpr int64_t kPeriod = 1048573;
  int64_t next_start();

  uint64_t seed_, draws_ = 0;
  std::vector<float> pool_;
};

}  // namespace irq
