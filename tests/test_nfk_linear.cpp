// nfk_linear: the ladder of its cases; that it gives the same bits every time; a recording of it.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/cases/nfk_linear.h"

IRQ_OP_TESTS(NfkLinearOp, irq::nfk_linear_cases());

namespace irq {
namespace {

// The blocks of a launch meet in an order of their own every time; the sums must not.
TEST(NfkLinear, SameBitsEveryTimeOnCuda) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  const OpCase c = nfk_linear_case({.cols = 1024, .rows = {2048}, .rank = 64, .norm = true, .residual = true});
  HostArgs inputs = make_inputs(c);
  round_storage_to_bf16(c, inputs);
  const HostArgs first = run_case(c, cuda_backend(DType::BF16), inputs);
  for (int i = 0; i < 20; ++i) EXPECT_EQ(run_case(c, cuda_backend(DType::BF16), inputs)[0], first[0]);
}

// A row's result does not depend on the rows beside it: the same kernel, the same shape.
void check_row_alone(Backend& backend) {
  const PackedLinearShape shape{.m = 8, .cols = 512, .rows = {64}, .rank = 16, .norm = true};
  const OpCase c = nfk_linear_case(shape);
  HostArgs inputs = make_inputs(c);
  if (backend.device() == Device::CUDA) round_storage_to_bf16(c, inputs);
  const HostArgs together = run_case(c, backend, inputs);
  for (size_t i = 0; i < inputs[1].size(); ++i)  // all rows of x but row 5
    if (i / 512 != 5) inputs[1][i] = inputs[1][(i * 7) % 512] * 3;
  const HostArgs other = run_case(c, backend, inputs);
  for (size_t i = 5 * 64; i < 6 * 64; ++i) EXPECT_EQ(other[0][i], together[0][i]);
  EXPECT_NE(other[0], together[0]);
}
TEST(NfkLinear, ARowDoesNotDependOnItsBatchOnTheCpu) { check_row_alone(cpu_backend(DType::F32)); }
TEST(NfkLinear, ARowDoesNotDependOnItsBatchOnCuda) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  check_row_alone(cuda_backend(DType::BF16));
}

TEST(NfkLinear, RefusesWhatDoesNotFitTogether) {
  Backend& b = cpu_backend(DType::F32);
  std::vector<float> memory(64 * 64);
  PackedLinear call;
  call.x = make_view(memory.data(), DType::F32, 1, 64, "x");
  call.y = make_view(memory.data(), DType::F32, 1, 64, "y");
  call.parts = 4;
  EXPECT_THROW(b.nfk_linear(call), Error);
  call.parts = 1;
  EXPECT_THROW(b.nfk_linear(call), Error);  // no codes
}

}  // namespace
}  // namespace irq
