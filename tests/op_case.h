// One OpCase per op and shape: it serves the CPU test, the CUDA test and the bench. See tests/README.md for the ladder.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "src/core/rng.h"

namespace irq {

enum class Role { in, out, inout };  // out is filled with NaN before the run, so that an unwritten element shows
// What an argument's type follows: the run's storage or master type, or a fixed one.
enum class Kind { storage, master, f32, f64, i32, u8, params };

inline DType dtype_for(Kind kind, Precision precision) {
  switch (kind) {
    case Kind::storage: return precision.storage;
    case Kind::master: return precision.master;
    case Kind::f32: return DType::F32;
    case Kind::f64: return DType::F64;
    case Kind::i32: return DType::I32;
    case Kind::u8:
    case Kind::params: return DType::U8;
  }
  return DType::F32;
}

struct Arg {
  const char* name;
  Role role;
  Kind kind;
  int64_t rows, cols;
  std::function<double(Rng&, int64_t index)> value = nullptr;  // default: N(0, 1)
  int64_t spare_cols = 0;                                      // row stride = cols + spare_cols
  StepParams params = {};                                      // Kind::params only
};

struct OpCase {
  std::string name;  // "rmsnorm_fwd/N=33,C=4096": letters, digits, '_' and '/', '=', ','
  std::vector<Arg> args;
  std::function<void(Backend&, const std::vector<Tensor>&)> run;  // tensors in the order of args
  // Makes what `run` needs besides random inputs (attention_bwd: o and lse); the bench does not time it.
  std::function<void(Backend&, const std::vector<Tensor>&)> prepare = nullptr;
  // Largest relative L2 error of each output allowed, and the reason.
  double tolerance_f32 = 1e-5;  // F32 against F64: rounding of sums of a few thousand terms
  double tolerance_bf16 =
      5e-3;  // CUDA BF16 against F64 on bf16-rounded inputs: one rounding of the result is 2^-9 = 2e-3
  double bytes = 0, flops = 0;  // the least that must be moved (for BF16 storage) and computed; for the bench
};

// Values of every argument as doubles (integers are exact); outputs hold what the op left there.
using HostArgs = std::vector<std::vector<double>>;
HostArgs make_inputs(const OpCase& c, uint64_t seed = 1);
void round_storage_to_bf16(const OpCase& c, HostArgs& args);  // storage-kind arguments only
HostArgs run_case(const OpCase& c, Backend& backend, const HostArgs& args);

// Relative L2 distance of `out` from `ref`, infinite if any element is NaN (and ref's is not).
double relative_l2(const std::vector<double>& out, const std::vector<double>& ref);
std::string worst_element(const Arg& arg, const std::vector<double>& out, const std::vector<double>& ref);

// The ladder for one case; gtest expectations inside. CUDA parts are skipped with the reason where there is no GPU.
void check_cpu_f32(const OpCase& c);
void check_cuda_f32(const OpCase& c);
void check_cuda_bf16(const OpCase& c);

// The process-wide test backends (each is made once).
Backend& cpu_backend(DType storage);   // F32 or F64
Backend& cuda_backend(DType storage);  // F32 or BF16; call only where cuda_unavailable_reason() is empty

}  // namespace irq

// Instantiates the whole ladder for a list of cases:  IRQ_OP_TESTS(Rmsnorm, rmsnorm_cases())
#define IRQ_OP_TESTS(suite, cases)                                                        \
  class suite : public ::testing::TestWithParam<::irq::OpCase> {};                        \
  TEST_P(suite, CpuF32) { ::irq::check_cpu_f32(GetParam()); }                             \
  TEST_P(suite, CudaF32) { ::irq::check_cuda_f32(GetParam()); }                           \
  TEST_P(suite, CudaBf16) { ::irq::check_cuda_bf16(GetParam()); }                         \
  INSTANTIATE_TEST_SUITE_P(Ops, suite, ::testing::ValuesIn(cases), [](const auto& info) { \
    std::string name = info.param.name;                                                   \
    for (char& c : name)                                                                  \
      if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';                          \
    return name;                                                                          \
  })
