// Every device op at the sizes of a LLaMA training step, as the tests' OpCases.
#pragma once
#include "src/model/config.h"
#include "tests/op_case.h"

namespace irq {

struct BenchSizes {
  ModelConfig config;
  std::vector<int64_t> rows;     // token rows of a micro-step
  std::vector<int64_t> lengths;  // of sequences, for attention
  int64_t rank = 64;
};
// The order of ops.inc. Names are OP/SHAPE.
std::vector<OpCase> bench_cases(const BenchSizes& sizes);
// y (m, n) = a (m, k) b (n, k)^T: a shape of the user's own.
OpCase bench_matmul(int64_t m, int64_t n, int64_t k);

}  // namespace irq
