// One timed op: its tensors, its row of a table.
#pragma once
#include "bench/meter.h"
#include "tests/op_case.h"

namespace irq {

struct OpRow {
  std::string op, shape;
  double us = 0, rate = 0, ceiling = 0, a100_us = 0;  // rate and ceiling in FLOPs or bytes per second
  bool flops = false;
  std::string peers, note;  // peers: "1.24x torch flash", "-" where none was measured
};

// The case's tensors for as long as it is timed. Inputs are random, outputs undefined.
class CaseMemory {
 public:
  CaseMemory(Backend& backend, RandomData& random, const OpCase& c);
  ~CaseMemory();
  CaseMemory(const CaseMemory&) = delete;
  CaseMemory& operator=(const CaseMemory&) = delete;
  const std::vector<Tensor>& tensors() const { return tensors_; }

 private:
  Backend& backend_;
  std::vector<Tensor> tensors_;
};

// Times c.run on tensors of its own. gemm: the last GEMM rate that was measured; renewed around a case that GEMMs are the
// measure of.
OpRow measure_op(Backend& backend, Meter& meter, RandomData& random, const OpCase& c, double& gemm);

}  // namespace irq
