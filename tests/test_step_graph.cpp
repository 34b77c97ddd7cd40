// A step whose passes are replayed from a recording is the step itself, bit for bit.
#include <gtest/gtest.h>

#include "tests/tiny_model.h"

namespace irq {
namespace {

struct Record {
  std::vector<double> values;
  std::vector<double> losses, norms;
  int64_t graphs = 0;
};

// Ten steps over windows of two shapes, each with two micro-batches: gradients are written by the first and added to by
// the second. An evaluation in between uses the same memory.
Record train(DType storage, const ModelPlan& plan, bool graphs) {
  TinyModel tiny(cuda_backend(storage), plan);
  tiny.trainer->use_graphs(graphs);
  Record run;
  OptimizerConfig config;
  config.lr = 0.01;
  for (int step = 1; step <= 10; ++step) {
    const std::vector<Example> examples = tiny_examples(step % 2 ? 30 : 8, static_cast<uint64_t>(step));
    const size_t half = examples.size() / 2;
    const StepResult r =
        tiny.trainer->step({pack_range(examples, 0, half), pack_range(examples, half, examples.size())}, step, config);
    run.losses.push_back(r.loss), run.norms.push_back(r.grad_norm);
    run.losses.push_back(tiny.trainer->evaluate(pack_range(examples, 0, 3)).first);
  }
  run.values = tiny.values();
  run.graphs = tiny.trainer->graphs();
  return run;
}

TEST(StepGraphCuda, ReplayIsTheStepBitForBit) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  for (const DType storage : {DType::F32, DType::BF16})
    for (const double dropout : {0.0, 0.1})
      for (const Recompute level : {Recompute::none, Recompute::block}) {
        ModelPlan plan = tiny_plan(true, dropout);
        plan.recompute = level, plan.recompute_layers = 1;
        const Record plain = train(storage, plan, false), replayed = train(storage, plan, true);
        EXPECT_EQ(plain.graphs, 0);
        EXPECT_EQ(replayed.graphs, 4);  // two shapes, gradients written or added to
        EXPECT_EQ(replayed.losses, plain.losses);
        EXPECT_EQ(replayed.norms, plain.norms);
        EXPECT_EQ(replayed.values, plain.values);
      }
}

TEST(StepGraphCpu, IsNotUsed) {
  TinyModel tiny(cpu_backend(DType::F32), tiny_plan(true));
  tiny.trainer->use_graphs(true);
  const std::vector<Example> examples = tiny_examples(4);
  for (int step = 1; step <= 3; ++step) tiny.trainer->step({pack_range(examples, 0, 4)}, step, {});
  EXPECT_EQ(tiny.trainer->graphs(), 0);
}

}  // namespace
}  // namespace irq
