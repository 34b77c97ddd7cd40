// Whole runs of irq_train with qa-lora, ir-qa-lora and peqa on a base of integers, and what the other tools make of the results.
#include "src/io/checkpoint.h"
#include "tests/integer_base.h"
#include "tests/train_fixture.h"

namespace irq {
namespace {

ModelConfig train_config() {
  ModelConfig c;
  c.dim = 32, c.ffn = 48, c.layers = 2, c.heads = 4, c.kv_heads = 2, c.head_dim = 8, c.vocab = 64, c.max_seq = 64;
  return c;
}

class TrainMethods : public TrainErrors {
 protected:
  // irq_train on integers in groups of 16 (48 and 32 features: 3 and 2 groups).
  void SetUp() override {
    IrqInfo info = integer_info(train_config(), 16);
    write_integer_base(base(), info);
    info.integers.search = IntSearch::clip;  // what ir-qa-lora asks for; the codes are random either way
    write_integer_base(base("ir-qa-lora"), info);
  }
  std::string base(const std::string& method = "") { return dir_ / (method == "ir-qa-lora" ? "icq.irq" : "int.irq"); }
  CommandResult run(const Args& more) {
    const auto named = std::find(more.begin(), more.end(), "--method");
    Args args = {base(named == more.end() ? "" : named[1]),
                 "--data",
                 shared("data.tok"),
                 "--window",
                 "24",
                 "--batch",
                 "4",
                 "--holdout",
                 "4",
                 "--lr",
                 "0.002",
                 "--device",
                 "cpu"};
    const bool scales = std::find(more.begin(), more.end(), "peqa") != more.end();
    return run_command("irq_train", args + (scales ? Args{} : Args{"--rank", "8"}) + more);
  }
  void ran(const Args& more) {
    const CommandResult r = run(more);
    EXPECT_EQ(r.status, 0) << r.err;
  }
  double loss_of(const Args& model) {
    const CommandResult r = run_command("irq_eval", model + Args{"--loss", shared("data.tok"), "--window", "24",
                                                                 "--json", dir_ / "loss.json", "--device", "cpu"});
    EXPECT_EQ(r.status, 0) << r.err;
    return nlohmann::json::parse(read_text(dir_ / "loss.json"))["loss"]["nll"];
  }
};

TEST_F(TrainMethods, TrainResumeAndMerge) {
  const std::vector<std::pair<std::string, Args>> cases = {
      {"qa-lora", {"--method", "qa-lora", "--dropout", "0.2"}},
      {"ir-qa-lora", {"--method", "ir-qa-lora", "--iec-align", "group", "--pool", "peft"}},
      {"peqa", {"--method", "peqa", "--micro-batch", "2"}}};
  for (const auto& [method, options] : cases) {
    const std::string one = dir_ / (method + "1"), two = dir_ / (method + "2");
    ran(options + Args{"--steps", "6", "--out", one});
    ran(options + Args{"--steps", "3", "--out", two});
    ran(options + Args{"--steps", "6", "--out", two, "--resume"});
    EXPECT_EQ(read_bytes(one + "/adapter.lora"), read_bytes(two + "/adapter.lora")) << method;
    EXPECT_EQ(read_bytes(one + "/train.state"), read_bytes(two + "/train.state")) << method;
    const auto held_out = held_out_losses(one + "/log.jsonl");
    EXPECT_LT(held_out.back().second, held_out.front().second) << method;

    const AdapterFile a = read_adapter(one + "/adapter.lora");
    EXPECT_EQ(a.method, method);
    if (method == "peqa") {
      EXPECT_EQ(a.tensors.size(), 14u);
      EXPECT_EQ(a.find("layers.1.w_down.scales")->cols, 3);
      EXPECT_FALSE(a.pool.on());
    } else {
      EXPECT_EQ(a.pool, (InputPool{method == "qa-lora" ? PoolKind::mean : PoolKind::peft, 16, method != "qa-lora"}));
      EXPECT_EQ(a.find("layers.1.w_down.A")->cols, 3);
      EXPECT_EQ(a.find("layers.0.wq.beta1") != nullptr, method == "ir-qa-lora");
    }
    // What the run says, what the adapter says beside its base, and what the merged file says.
    const std::string merged = dir_ / (method + ".irq"), adapter = one + "/adapter.lora";
    const CommandResult r = run_command("irq_export", {base(method), "--adapter", adapter, "--irq", merged});
    ASSERT_EQ(r.status, 0) << r.err;
    const double apart = loss_of({base(method), "--adapter", adapter});
    EXPECT_NEAR(loss_of({merged}), apart, 1e-5 * apart) << "F32 rounding of weights, see test_merge_irq.cpp";
    EXPECT_LT(apart, loss_of({base(method)}));
    const CommandResult words =
        run_command("irq_generate", {merged, "--ids", "1,5,9", "--max-tokens", "4", "--device", "cpu"});
    EXPECT_EQ(words.status, 0) << words.err;
    EXPECT_EQ(words.out, run_command("irq_generate", {base(method), "--adapter", adapter, "--ids", "1,5,9",
                                                      "--max-tokens", "4", "--device", "cpu"})
                             .out);
  }
}

TEST_F(TrainMethods, RecomputeAndResidencyChangeNoBit) {
  for (const Args& method : {Args{"--method", "ir-qa-lora", "--dropout", "0.1"}, Args{"--method", "peqa"}}) {
    std::string bytes;
    for (const char* recompute : {"none", "norms", "gate_up", "block"})
      for (const char* residency : {"cached", "packed"}) {
        const std::string out = dir_ / (method[1] + recompute + residency);
        ran(method + Args{"--steps", "2", "--out", out, "--recompute", recompute, "--residency", residency});
        if (bytes.empty()) bytes = read_bytes(out + "/adapter.lora");
        EXPECT_EQ(read_bytes(out + "/adapter.lora"), bytes) << method[1] << " " << recompute << " " << residency;
      }
  }
}

TEST_F(TrainMethods, StartsFromAnAdapter) {
  ran({"--method", "ir-qa-lora", "--iec-align", "group", "--steps", "2", "--out", dir_ / "a"});
  ran({"--method", "peqa", "--steps", "2", "--out", dir_ / "p"});
  const std::string adapter = dir_ / "a/adapter.lora", scales = dir_ / "p/adapter.lora";
  ran({"--method", "ir-qa-lora", "--init-adapter", adapter, "--steps", "1", "--out", dir_ / "b"});
  EXPECT_TRUE(read_adapter(dir_ / "b/adapter.lora").pool.aligned);
  EXPECT_EQ(held_out_losses(dir_ / "b/log.jsonl").front().second, held_out_losses(dir_ / "a/log.jsonl").back().second);
  ran({"--method", "peqa", "--init-adapter", scales, "--steps", "1", "--out", dir_ / "q"});
  EXPECT_EQ(held_out_losses(dir_ / "q/log.jsonl").front().second, held_out_losses(dir_ / "p/log.jsonl").back().second);
  const auto refused = [&](const Args& options, const std::string& part, int status = 1) {
    expect_part(run(options + Args{"--steps", "1", "--out", dir_ / "x"}), part, status);
  };
  refused({"--method", "ir-qa-lora", "--init-adapter", adapter, "--pool", "mean"},
          "--pool mean: " + adapter + " has sum", 2);
  refused({"--method", "ir-qa-lora", "--init-adapter", scales}, "does not belong to --method ir-qa-lora");
  refused({"--method", "peqa", "--init-adapter", adapter}, "does not belong to --method peqa");
  refused({"--method", "qlora", "--init-adapter", adapter}, "--peft DIR");
}

TEST_F(TrainMethods, FlagsAndBasesWithoutMeaningAreRefused) {
  const auto refused = [&](const Args& options, const std::string& part) {
    expect_part(run(options + Args{"--steps", "1", "--out", dir_ / "x"}), part, 2);
  };
  refused({"--method", "qlora", "--pool", "sum"}, "--pool has no effect here: --method qlora does not pool its input");
  refused({"--method", "qa-lora", "--iec-align", "group"}, "--iec-align has no effect here");
  refused({"--method", "peqa", "--alpha", "8"}, "--alpha has no effect here: --method peqa has no adapters");
  expect_part(train({"--method", "qa-lora", "--format", "nf", "--steps", "1", "--out", dir_ / "x"}),
              "--method qa-lora with --format nf", 2);
  EXPECT_FALSE(std::filesystem::exists(dir_ / "x"));
}

}  // namespace
}  // namespace irq
