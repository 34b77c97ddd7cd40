// embedding: the ladder of its cases, and the backward against a product with the one-hot matrix.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/cases/embedding.h"

namespace irq {
namespace {

IRQ_OP_TESTS(Embedding, embedding_cases());

// dtable = beta dtable + onehot^T dy with onehot (N, V); a row of token -1 is a zero row of onehot.
TEST(EmbeddingBwd, IsTheOneHotProduct) {
  for (const double beta : {0.0, 1.0, -0.5}) {
    constexpr int64_t kN = 40, kV = 13, kC = 70;
    const OpCase c = embedding_bwd_case(kN, kV, kC, beta);
    const HostArgs in = make_inputs(c);
    std::vector<double> want(size_t(kV * kC));
    for (int64_t v = 0; v < kV; ++v)
      for (int64_t k = 0; k < kC; ++k) {
        double sum = 0;
        for (int64_t i = 0; i < kN; ++i) sum += (in[2][size_t(i)] == double(v) ? 1.0 : 0.0) * in[1][size_t(i * kC + k)];
        want[size_t(v * kC + k)] = sum + (beta == 0 ? 0 : beta * in[0][size_t(v * kC + k)]);
      }
    // F64 sums of at most 40 terms in another order.
    EXPECT_LE(relative_l2(run_case(c, cpu_backend(DType::F64), in)[0], want), 1e-14) << beta;
  }
}

TEST(Embedding, PaddingIsAZeroRowAndTokensSelect) {
  std::vector<float> table = {1, 2, 3, 4, 5, 6}, y(8, NAN);
  std::vector<int32_t> tokens = {2, -1, 0, 2};
  cpu_backend(DType::F32)
      .embedding_fwd(make_view(y.data(), DType::F32, 4, 2, "y"), make_view(table.data(), DType::F32, 3, 2, "table"),
                     make_view(tokens.data(), DType::I32, 1, 4, "tokens"));
  EXPECT_EQ(y, (std::vector<float>{5, 6, 0, 0, 1, 2, 5, 6}));
}

// Two runs on the GPU give the same bits, whatever the schedule of its blocks.
TEST(EmbeddingBwd, CudaIsDeterministic) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  const OpCase c = embedding_bwd_case(5000, 50, 264, 1.0);
  const HostArgs in = make_inputs(c);
  const HostArgs first = run_case(c, cuda_backend(DType::BF16), in);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(run_case(c, cuda_backend(DType::BF16), in)[0], first[0]);
}

}  // namespace
}  // namespace irq
