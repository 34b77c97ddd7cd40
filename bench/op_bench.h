// One table of ops: time, rate, share of this run's ceiling, and what an A100 should need.
#pragma once
#include <string>

#include "bench/meter.h"
#include "bench/op_list.h"

namespace irq {

// What an A100 80GB reaches: kernels 93 % of its measured copy bandwidth, GEMMs 92 % of its best measured rate. Published
// and derived figures, not measured by this project; everything made of them is printed as predicted.
constexpr double kA100BytesPerSecond = 1.63e12, kA100FlopsPerSecond = 250e12;

struct OpBenchOptions {
  BenchSizes sizes;
  std::string op = "all", shape;  // one op; only names that contain `shape`
  std::string peers;              // a file of bench/peers/*.py --json, "" = none
  int repeats = 20;
  uint64_t seed = 1;
  bool csv = false;
};
// Prints to stdout, row by row.
void run_op_bench(Backend& backend, const OpBenchOptions& options);

}  // namespace irq
