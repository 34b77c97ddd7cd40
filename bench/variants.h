// Numbered teaching variants of four kernels, bench/variants/OP_vN_idea.cu, timed beside the production kernel of the op.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "tests/op_case.h"

namespace irq {

struct Variant {
  std::string op, name;  // "nfk_dequant", "v1_thread_per_weight": as the file is called
  // Enqueues the kernel on the CUDA backend's stream, as OpCase::run would; takes the case's tensors.
  std::function<void(Backend&, const std::vector<Tensor>&)> run;
};
// Every file of bench/variants adds its own before main() runs. None of them is linked where there is no nvcc.
bool add_variant(Variant variant);
std::vector<Variant> variants_of(const std::string& op);  // in the order of their numbers

struct VariantBenchOptions {
  std::string op = "all";
  bool check_only = false;  // nothing is timed
  int repeats = 20;
  uint64_t seed = 1;
  bool csv = false;
};
bool has_variants(const std::string& op);  // "all" has
// Prints one table per case: each variant is compared with the CPU reference, then timed; last the production kernel.
// Returns 0, or 1 if any result is wrong.
int run_variant_bench(const VariantBenchOptions& options);

}  // namespace irq
