// dequant_group: the ladder of its cases; the kernel against the ops it replaces, bit for bit; integers.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/cases/dequant_group.h"
#include "tests/cases/int_codes.h"

IRQ_OP_TESTS(DequantGroupOp, irq::dequant_group_cases());

namespace irq {
namespace {

// The kernel, launched while what is in front of it still runs, against the ops it stands for.
TEST(DequantGroup, SameBitsAsItsOpsOnCuda) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  for (const DType storage : {DType::BF16, DType::F32})
    for (const PackedGroupShape& shape :
         {PackedGroupShape{.cols = 1024, .rows = {512, 256, 256}, .rank = 64},
          PackedGroupShape{.cols = 4096, .rows = {1376, 1376}, .rank = 16, .without = 1, .bits = 3, .spare = 16},
          PackedGroupShape{.cols = 11008, .rows = {96}, .rank = 64, .bits = 2, .tau = false}}) {
      const OpCase c = dequant_group_case(shape);
      HostArgs inputs = make_inputs(c);
      round_storage_to_bf16(c, inputs);
      const HostArgs ops = run_case(dequant_group_case(shape, true), cuda_backend(storage), inputs);
      for (int i = 0; i < 3; ++i)
        EXPECT_EQ(relative_l2(run_case(c, cuda_backend(storage), inputs)[0], ops[0]), 0) << c.name;
    }
}

// Integers go through the ops; the result is theirs and the adapters'.
void check_integers(Backend& backend) {
  const QuantizedMatrix q = int_matrix(6, 64, 4, 32, false);
  OpCase c;
  c.args = int_matrix_args(q);
  c.args.insert(c.args.begin(),
                {{"ext", Role::out, Kind::storage, 6 + 8, 64 + 8}, {"w", Role::out, Kind::storage, 6, 64}});
  c.args.push_back({"a", Role::in, Kind::storage, 8, 64});
  c.args.push_back({"b", Role::in, Kind::storage, 6, 8});
  c.run = [=](Backend& b, const std::vector<Tensor>& t) {
    PackedGroup group;
    group.w[0] = int_matrix_of(q, t, 2);
    group.a = t[6], group.b[0] = t[7];
    b.dequant_group(t[0], group);
    b.int_dequant(t[1], group.w[0]);
  };
  HostArgs inputs = make_inputs(c);
  round_storage_to_bf16(c, inputs);
  const HostArgs out = run_case(c, backend, inputs);
  for (size_t i = 0; i < 6; ++i)
    for (size_t j = 0; j < 64 + 8; ++j)
      EXPECT_EQ(out[0][i * 72 + j], j < 64 ? out[1][i * 64 + j] : inputs[7][i * 8 + j - 64]) << i << ", " << j;
  for (size_t i = 0; i < 8; ++i)
    for (size_t j = 0; j < 64 + 8; ++j) {
      if (j < 64) EXPECT_EQ(out[0][(6 + i) * 72 + j], inputs[6][i * 64 + j]);
      else EXPECT_TRUE(std::isnan(out[0][(6 + i) * 72 + j]));  // the corner
    }
}
TEST(DequantGroup, IntegersOnTheCpu) { check_integers(cpu_backend(DType::F32)); }
TEST(DequantGroup, IntegersOnCuda) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  check_integers(cuda_backend(DType::BF16));
}

TEST(DequantGroup, RefusesWhatDoesNotFitTogether) {
  Backend& b = cpu_backend(DType::F32);
  std::vector<float> memory(64 * 64);
  PackedGroup group;
  const Tensor ext = make_view(memory.data(), DType::F32, 1, 64, "ext");
  group.parts = 4;
  EXPECT_THROW(b.dequant_group(ext, group), Error);
  group.parts = 1;
  group.w[0].rows = 1, group.w[0].cols = 64;
  EXPECT_THROW(b.dequant_group(ext, group), Error);  // no codes
}

}  // namespace
}  // namespace irq
