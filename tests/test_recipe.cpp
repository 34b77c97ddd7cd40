// The paper's recipe: its defaults by model size (fidelity 6.1), the first values of an adapter, and a clipped step.
#include <cmath>
#include <numeric>

#include "src/io/checkpoint.h"
#include "src/model/flops.h"
#include "src/ops/matmul_rate.h"
#include "src/train/finetune.h"
#include "tests/tiny_model.h"
#include "tests/train_fixture.h"

namespace irq {
namespace {

TEST(Recipe, DefaultsBySizeAndSource) {
  const struct {
    const char *recipe, *model;
    double lr, dropout;
  } columns[] = {
      {"paper", "7b", 2e-4, 0.1},          {"paper", "13b", 2e-4, 0.1},         {"paper", "2-13b", 2e-4, 0.1},
      {"paper", "30b", 1e-4, 0.05},        {"paper", "65b", 1e-4, 0.05},        {"official-script", "7b", 2e-4, 0},
      {"official-script", "13b", 2e-4, 0}, {"official-script", "30b", 2e-4, 0}, {"official-script", "65b", 2e-4, 0}};
  for (const auto& c : columns) {
    const RecipeDefaults d = recipe_defaults(c.recipe, preset_config(c.model), false);
    EXPECT_EQ(d.lr, c.lr) << c.recipe << " " << c.model;
    EXPECT_EQ(d.dropout, c.dropout) << c.recipe << " " << c.model;
    EXPECT_EQ(d.clip, 0.3);
    EXPECT_EQ(d.rank, 64);
    EXPECT_EQ(d.alpha, 16);
  }
  EXPECT_EQ(default_steps(DataForm::alpaca), 10000);
  EXPECT_EQ(default_steps(DataForm::tokens), 10000);
  EXPECT_EQ(default_steps(DataForm::input_output), 20000);  // Flan v2
  const TrainOptions o;
  EXPECT_EQ(o.batch, 16);
  EXPECT_EQ(o.source_len, 384);
  EXPECT_EQ(o.target_len, 128);
  EXPECT_EQ(o.seed, 42u);
  EXPECT_EQ(kAdamBeta1, 0.9);
  EXPECT_EQ(kAdamBeta2, 0.999);
  EXPECT_EQ(kAdamEps, 1e-8);
}

// A model wide enough for rank 64, untrained.
class RecipeRuns : public Train {
 protected:
  CommandResult wide(const Args& more) { return run_command("irq_train", wide_args(more)); }
  Args wide_args(const Args& more) {
    std::string config = tiny_config_text();
    for (const auto& [from, to] : {std::pair{"\"hidden_size\": 32", "\"hidden_size\": 128"},
                                   std::pair{"\"intermediate_size\": 48", "\"intermediate_size\": 192"}})
      config.replace(config.find(from), std::string(from).size(), to);
    write_bytes(dir_ / "config.json", config);
    return Args{dir_ / "config.json", "--data", shared("data.tok"), "--window", "24", "--device", "cpu"} + more;
  }
};

// Through the tool's own defaults, as it resolves them.
TEST_F(RecipeRuns, ResolvedCommandIsThePapers) {
  for (const std::string recipe : {"paper", "official-script"}) {
    const std::string log = dir_ / recipe + "/log.jsonl";
    RunningCommand run("irq_train", wide_args({"--recipe", recipe, "--out", dir_ / recipe}));
    ASSERT_TRUE(run.wait_until([&] { return read_text(log).find('\n') != std::string::npos; })) << run.err();
    run.signal(SIGINT);
    run.finish();
    const std::string command = read_log(log).at(0).at("command");
    for (const std::string part :
         {" --method ir-qlora --bits 4 --lambda 0.1 --n 100 ", " --steps 10000 --batch 16 ",
          " --lr 0.0002 --warmup 0 --schedule constant --clip 0.3 --rank 64 --alpha 16.0 ",
          recipe == "paper" ? " --dropout 0.1 --target-modules all " : " --dropout 0.0 --target-modules all ",
          " --seed 42 "})
      EXPECT_NE(command.find(part), std::string::npos) << part << " in\n" << command;
  }
}

// A ~ U(-1/sqrt(in), 1/sqrt(in)), everything else 0.
TEST_F(RecipeRuns, AdaptersBeginAsThePaperSays) {
  ASSERT_EQ(wide({"--steps", "0", "--out", dir_ / "run"}).status, 0);
  const AdapterFile a = read_adapter(dir_ / "run/adapter.lora");
  ASSERT_EQ(a.tensors.size(), 2u * 7 * 4);
  for (const NamedArray& t : a.tensors) {
    const double n = static_cast<double>(t.data.size()), bound = 1 / std::sqrt(static_cast<double>(t.cols));
    double largest = 0, sum = 0, squares = 0;
    for (const double x : t.data) largest = std::max(largest, std::abs(x)), sum += x, squares += x * x;
    if (!t.name.ends_with(".A")) {
      EXPECT_EQ(largest, 0) << t.name;
      continue;
    }
    ASSERT_EQ(t.rows, 64);
    EXPECT_LE(largest, bound * (1 + 1e-7)) << t.name;  // rounded to F32
    EXPECT_GT(largest, 0.99 * bound) << t.name;        // n >= 8192 values: missed once in e^82
    // Six standard deviations: of the mean bound / sqrt(3 n), of the mean square bound^2 sqrt(4 / (45 n)).
    EXPECT_NEAR(sum / n, 0, 6 * bound / std::sqrt(3 * n)) << t.name;
    EXPECT_NEAR(squares / n, bound * bound / 3, 6 * bound * bound * std::sqrt(4 / (45 * n))) << t.name;
  }
}

// From the command line to Adam: after one step m is 0.1 times the clipped gradient, whose norm is the clip, and every
// element of B has moved by the learning rate (its gradients are far above eps).
TEST_F(RecipeRuns, ClipAndLearningRateReachTheStep) {
  for (const char* clip : {"0.001", "0.002"}) {
    const std::string out = dir_ / clip;
    ASSERT_EQ(wide({"--steps", "1", "--clip", clip, "--dropout", "0", "--out", out}).status, 0);
    EXPECT_GT(read_log(out + "/log.jsonl").at(2).at("grad_norm"), 0.01);
    StateReader state(out + "/train.state");
    const Tensor m = state.tensor("adam_m");
    double squares = 0;
    for (int64_t i = 0; i < m.numel(); ++i) squares += std::pow(static_cast<double>(m.as<float>()[i]), 2);
    EXPECT_NEAR(std::sqrt(squares), 0.1 * std::stod(clip), 1e-3 * 0.1 * std::stod(clip));  // 1e-6 beside the norm, F32
    const AdapterFile a = read_adapter(out + "/adapter.lora");
    double largest = 0;
    for (const float x : a.find("layers.1.w_down.B")->data)
      largest = std::max(largest, std::abs(static_cast<double>(x)));
    EXPECT_NEAR(largest, 2e-4, 2e-4 * 0.01);  // eps = 1e-8 beside gradients that are at least 1e-6
  }
}

// Trainer::step against AdamW written out here, in F64: two steps with a norm above the clip, then one below.
TEST(RecipeStep, EqualsAdamwOnTheClippedGradient) {
  TinyModel t(cpu_backend(DType::F64), tiny_plan(true));
  const std::vector<Example> examples = tiny_examples(6);
  ParamStore& store = t.model().params();
  std::vector<double> p = t.values(), m(p.size()), v(p.size());
  for (int step = 1; step <= 3; ++step) {
    OptimizerConfig config;
    config.lr = 1e-3, config.clip = step == 3 ? 1e6 : 0.3;
    const auto begin = static_cast<size_t>(2 * (step - 1));
    const StepResult r = t.trainer->step({pack_range(examples, begin, begin + 2)}, step, config);
    const std::vector<double> g = t.grads();
    const double norm = std::sqrt(std::inner_product(g.begin(), g.end(), g.begin(), 0.0));
    EXPECT_NEAR(r.grad_norm, norm, 1e-12 * norm);
    ASSERT_GT(norm, 0.6) << "nothing would be clipped";
    const double scale = step == 3 ? 1 : 0.3 / (norm + 1e-6);
    for (size_t i = 0; i < p.size(); ++i) {
      m[i] = 0.9 * m[i] + 0.1 * scale * g[i];
      v[i] = 0.999 * v[i] + 0.001 * scale * scale * g[i] * g[i];
      p[i] -= 1e-3 * (m[i] / (1 - std::pow(0.9, step))) / (std::sqrt(v[i] / (1 - std::pow(0.999, step))) + 1e-8);
    }
    const std::vector<double> values = t.values(), first = get(t.backend, store.adam_m()),
                              second = get(t.backend, store.adam_v());
    for (size_t i = 0; i < p.size(); ++i) {  // F64: a few roundings of numbers below 2
      ASSERT_NEAR(values[i], p[i], 1e-13) << "step " << step << ", value " << i;
      ASSERT_NEAR(first[i], m[i], 1e-13 * std::max(1.0, norm)) << "step " << step << ", m " << i;
      ASSERT_NEAR(second[i], v[i], 1e-13 * std::max(1.0, norm * norm)) << "step " << step << ", v " << i;
    }
  }
}

// The figures behind "74 % of this GPU's GEMM rate". 7B at rank 64 over 512 labelled tokens, by hand: 4 x 6.476e9 for the
// linears, 6 x 159.9e6 for the adapters, 7 x 512 x 4096 x 32 for attention, 4 x 131.1e6 for the head.
TEST(Recipe, FlopsOfAToken) {
  const ModelConfig c = preset_config("7b");
  const double adapters = 6.0 * 159'907'840, attention = 7.0 * 512 * 4096 * 32, head = 32000.0 * 4096;
  const double linears = 6'476'005'376.0;
  EXPECT_DOUBLE_EQ(model_flops_per_token(c, 64, 512, 1), 4 * linears + adapters + attention + 4 * head);
  EXPECT_DOUBLE_EQ(model_flops_per_token(c, 64, 512, 0.5, 0), 4 * linears + attention + 2 * head);
  EXPECT_DOUBLE_EQ(model_flops_per_token(c, 64, 512, 1, 0, true), 6 * linears + attention + 6 * head);
}

TEST(MatmulRate, IsMeasuredAndGivesItsMemoryBack) {
  const auto backend = make_backend("cpu");
  const double rate = square_matmul_rate(*backend, 256);
  EXPECT_GT(rate, 1e7);                                          // 34 MFLOP in less than three seconds
  EXPECT_LT(rate, 1e14);                                         // and in more than 0.3 microseconds
  EXPECT_EQ(square_matmul_rate(*backend, int64_t{1} << 22), 0);  // 2e14 bytes are not free
}

TEST(MatmulRate, CudaRemembersNothing) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  const auto backend = make_backend("cuda");
  backend->tune_matmul(false);
  const std::string before = backend->matmul_choices(false);
  const int64_t free = backend->free_bytes();
  EXPECT_GT(square_matmul_rate(*backend, 8192), 1e13);
  EXPECT_EQ(backend->matmul_choices(false), before);
  EXPECT_TRUE(backend->take_matmul_timings().empty());
  EXPECT_GE(backend->free_bytes(), free - (int64_t{256} << 20));  // of 384 MiB; kernels stay loaded
}

}  // namespace
}  // namespace irq
