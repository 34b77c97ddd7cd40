// nfk_layers: the ladder of its cases, that it gives the same bits every time, and that one launch is what the ops give.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/cases/nfk_layers.h"

IRQ_OP_TESTS(NfkLayersOp, irq::nfk_layers_cases());

namespace irq {
namespace {

// The blocks of the launch meet in an order of their own every time; the results must not.
TEST(NfkLayers, SameBitsEveryTimeOnCuda) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  const OpCase c = nfk_layers_case(
      {.layers = 4, .dim = 1024, .ffn = 2816, .heads = 8, .kv_heads = 8, .keys = 300, .head_dim = 128, .rank = 64});
  HostArgs inputs = make_inputs(c);
  round_storage_to_bf16(c, inputs);
  const HostArgs first = run_case(c, cuda_backend(DType::BF16), inputs);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(run_case(c, cuda_backend(DType::BF16), inputs), first);
}

TEST(NfkLayers, RefusesWhatIsNoLayer) {
  Backend& b = cpu_backend(DType::F32);
  PackedLayer layer;
  EXPECT_THROW(b.nfk_layers(&layer, 1), Error);
  b.nfk_layers(&layer, 0);
}

}  // namespace
}  // namespace irq
