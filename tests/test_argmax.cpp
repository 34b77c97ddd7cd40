// argmax: the ladder of its cases, and that it is the choice of sampler.h.
#include <gtest/gtest.h>

#include <cmath>

#include "src/eval/sampler.h"
#include "tests/cases/argmax.h"

IRQ_OP_TESTS(ArgmaxOp, irq::argmax_cases());

namespace irq {
namespace {

void check_choice(Backend& backend) {
  const int64_t n = 6, vocab = 259;
  const OpCase c = argmax_case(n, vocab, 5, 3);
  const HostArgs in = make_inputs(c), out = run_case(c, backend, in);
  for (size_t i = 0; i < n; ++i) {
    std::vector<float> row;
    for (size_t v = 0; v < vocab; ++v) row.push_back(static_cast<float>(in[1][i * vocab + v]));
    const int32_t best = argmax(row.data(), vocab);
    EXPECT_EQ(out[0][i], std::isfinite(row[static_cast<size_t>(best)]) ? best : -1) << i;
  }
}
TEST(Argmax, ChoosesWhatTheSamplerDoesOnTheCpu) { check_choice(cpu_backend(DType::F32)); }
TEST(Argmax, ChoosesWhatTheSamplerDoesOnCuda) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  check_choice(cuda_backend(DType::BF16));
}

TEST(Argmax, AGreedySamplerRefusesWhatIsNoNumber) {
  const Sampler greedy({});
  EXPECT_TRUE(greedy.greedy());
  EXPECT_EQ(greedy.accept(7), 7);
  EXPECT_THROW(greedy.accept(-1), Error);
  SamplingOptions drawn;
  drawn.temperature = 1;
  EXPECT_FALSE(Sampler(drawn).greedy());
  SamplingOptions penalized;
  penalized.repetition_penalty = 1.1;
  EXPECT_FALSE(Sampler(penalized).greedy());
}

}  // namespace
}  // namespace irq
