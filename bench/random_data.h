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
  // t[i] = mean + deviation * pool[(start + i) mod size], in t's type.
  void upload_tiled(Backend& backend, const Tensor& t, const std::vector<float>& pool, int64_t start, double mean,
                    double deviation);
  unsigned char* staging(int64_t bytes);  // host memory that stays, for the uploads

  uint64_t seed_, draws_ = 0;
  std::vector<float> pool_;
  std::vector<unsigned char> byte_pool_;
  std::unique_ptr<unsigned char[]> staging_;
  int64_t staging_bytes_ = 0;
};

}  // namespace irq
