#include "bench/op_row.h"

#include <algorithm>

#include "bench/op_bench.h"

namespace irq {

CaseMemory::CaseMemory(Backend& backend, RandomData& random, const OpCase& c) : backend_(backend) {
  for (const Arg& a : c.args) {
    const bool params = a.kind == Kind::params;
    const int64_t rows = params ? 1 : a.rows, cols = params ? int64_t{sizeof(StepParams)} : a.cols;
    Tensor t = allocate_tensor(backend, a.name, dtype_for(a.kind, backend.precision()), rows, cols + a.spare_cols);
    if (a.role != Role::out) random.argument(backend, t, a);
    t.cols = cols;
    tensors_.push_back(t);
  }
}

CaseMemory::~CaseMemory() {
  for (const Tensor& t : tensors_) backend_.release(t.data);
}

OpRow measure_op(Backend& backend, Meter& meter, RandomData& random, const OpCase& c, double& gemm) {
  const size_t slash = c.name.find('/');
  OpRow row{.op = c.name.substr(0, slash), .shape = c.name.substr(slash + 1), .peers = "-", .note = ""};
  const CaseMemory memory(backend, random, c);
  if (c.prepare) c.prepare(backend, memory.tensors());
  const auto work = [&] { c.run(backend, memory.tensors()); };
  if (const size_t at = row.shape.find(",spare=0"); at != std::string::npos) row.shape.erase(at, 8);
  // What binds it on this device: the larger of its two floors. Only sums of products are measured against a GEMM.
  const bool products = row.op == "matmul" || row.op.starts_with("nfk_matmul") || row.op == "nfk_linear" ||
                        row.op.starts_with("attention");
  row.flops = products && c.flops / gemm > c.bytes / meter.copy_rate();
  const double before = row.flops ? meter.gemm_rate() : 0;
  const Timing t = meter.time(work);
  if (row.flops) gemm = (before + meter.gemm_rate()) / 2;  // just before and just after: the same heat
  row.us = 1e3 * t.median_ms;
  row.rate = 1e6 * (row.flops ? c.flops : c.bytes) / row.us;
  row.ceiling = row.flops ? gemm : meter.copy_rate(static_cast<int64_t>(c.bytes));
  row.a100_us = 1e6 * std::max(c.bytes / kA100BytesPerSecond, c.flops / kA100FlopsPerSecond);
  return row;
}

}  // namespace irq
