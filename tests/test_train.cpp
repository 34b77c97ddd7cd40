// Whole training runs of the built irq_train: what must be the same bytes is, and what differs, differs by rounding only.
#include <cmath>

#include "src/io/checkpoint.h"
#include "src/model/method.h"
#include "tests/train_fixture.h"

namespace irq {
namespace {

class TrainRuns : public Train {};

// The 3-step run is a finished one that goes on: its state must be accepted with more --steps.
TEST_F(TrainRuns, ResumedEqualsUninterruptedBitwise) {
  const std::vector<std::pair<Args, const char*>> cases = {
      {{"--dropout", "0.2"}, "adapter.lora"},
      {{"--method", "full", "--lr", "0.001", "--warmup", "4"}, "model.bin"},
      {{"--method", "qlora", "--recipe", "official-script", "--micro-batch", "3"}, "adapter.lora"},
      {{"--method", "lora16", "--dropout", "0.5", "--micro-batch", "2"}, "adapter.lora"}};
  int number = 0;
  for (const auto& [options, result] : cases) {
    const std::string one = dir_ / strf("one%d", number), two = dir_ / strf("two%d", number++);
    trained(options + Args{"--steps", "6", "--out", one});
    trained(options + Args{"--steps", "3", "--out", two});
    EXPECT_NE(read_bytes(one + "/" + result), read_bytes(two + "/" + result)) << "three steps more change nothing";
    const CommandResult r = trained(options + Args{"--steps", "6", "--out", two, "--resume"});
    EXPECT_NE(r.err.find("resuming after step 3"), std::string::npos) << r.err;
    EXPECT_EQ(read_bytes(one + "/" + result), read_bytes(two + "/" + result)) << number;
    EXPECT_EQ(read_bytes(one + "/train.state"), read_bytes(two + "/train.state")) << number;
    EXPECT_EQ(step_losses(one + "/log.jsonl").size(), 6u);
    EXPECT_EQ(step_losses(one + "/log.jsonl"), step_losses(two + "/log.jsonl"));
  }
}

// Ctrl-C leaves a state at once; a killed run goes on from the last state that it saved. The cosine schedule makes the
// learning rate of every step depend on where the run stands.
TEST_F(TrainRuns, InterruptedAndKilledRunsResumeBitwise) {
  for (const Args& method : {Args{"--dropout", "0.2"}, Args{"--method", "full", "--lr", "0.001"}}) {
    const Args options =
        method + Args{"--steps", "200", "--schedule", "cosine", "--warmup", "9", "--save-every", "0", "--threads", "1"};
    const bool full = method[0] == "--method";
    const std::string whole = dir_ / strf("whole%d", full), result = full ? "/model.bin" : "/adapter.lora";
    trained(options + Args{"--out", whole});
    for (const int signal : {full ? SIGTERM : SIGINT, SIGKILL}) {
      const std::string out = dir_ / strf("out%d-%d", full, signal), log = out + "/log.jsonl";
      RunningCommand run("irq_train",
                         command(options + Args{"--out", out, "--save-every", signal == SIGKILL ? "10" : "0"}));
      ASSERT_TRUE(run.wait_until([&] { return read_text(log).find("\"step\": 25,") != std::string::npos; }))
          << run.err();
      run.signal(signal);
      const CommandResult stopped = run.finish();
      EXPECT_EQ(stopped.status, signal == SIGKILL ? 128 + SIGKILL : 130) << stopped.err;
      EXPECT_FALSE(std::filesystem::exists(out + result)) << "ended before the signal";
      if (signal != SIGKILL) {
        const size_t steps = step_losses(log).size();
        EXPECT_NE(stopped.err.find(strf("interrupted after step %zu; --resume goes on from here", steps)),
                  std::string::npos)
            << stopped.err;
        EXPECT_EQ(complaint(stopped), "irq_train: interrupted\n");
      }
      trained(options + Args{"--out", out, "--resume"});
      EXPECT_EQ(read_bytes(out + result), read_bytes(whole + result)) << "signal " << signal;
      EXPECT_EQ(step_losses(log), step_losses(whole + "/log.jsonl"));
      EXPECT_EQ(step_losses(log).size(), 200u);
    }
  }
}

// One mean over all trainable tokens of the batch, whatever the micro-batch: what differs is the order in which a few
// hundred F32 products of the weight gradients are added, about 1e-6 of a gradient.
TEST_F(TrainRuns, AccumulationEqualsOneBatch) {
  const Args options = {"--batch", "16", "--steps", "8", "--dropout", "0.1", "--eval-every", "4"};
  trained(options + Args{"--out", dir_ / "16"});
  const std::vector<double> losses = step_losses(dir_ / "16/log.jsonl");
  const auto held_out = held_out_losses(dir_ / "16/log.jsonl");
  ASSERT_EQ(losses.size(), 8u);
  ASSERT_EQ(held_out.size(), 3u);  // before, after 4, after 8
  EXPECT_LT(held_out[2].second, held_out[0].second);
  for (const char* micro : {"4", "5", "1"}) {
    trained(options + Args{"--micro-batch", micro, "--out", dir_ / micro});
    const std::vector<double> other = step_losses(dir_ / (micro + std::string("/log.jsonl")));
    const auto other_held_out = held_out_losses(dir_ / (micro + std::string("/log.jsonl")));
    ASSERT_EQ(other.size(), losses.size());
    ASSERT_EQ(other_held_out.size(), held_out.size());
    for (size_t i = 0; i < losses.size(); ++i) EXPECT_NEAR(other[i], losses[i], 1e-5) << "step " << i + 1;
    for (size_t i = 0; i < held_out.size(); ++i) {
      EXPECT_EQ(other_held_out[i].first, held_out[i].first);
      EXPECT_NEAR(other_held_out[i].second, held_out[i].second, 1e-5);
    }
  }
}

// The held-out loss of the run has the row, the adapter has not. Adapters begin at zero, so the losses before training
// differ by the row alone.
TEST_F(TrainRuns, OfficialScriptAddsThePadRow) {
  const Args options = {"--method", "qlora", "--steps", "2", "--dropout", "0"};
  trained(options + Args{"--out", dir_ / "paper"});
  const CommandResult r = trained(options + Args{"--out", dir_ / "script", "--recipe", "official-script"});
  EXPECT_NE(r.err.find(" bytes were the peak"), std::string::npos) << r.err;
  const double paper = held_out_losses(dir_ / "paper/log.jsonl").at(0).second;
  const double script = held_out_losses(dir_ / "script/log.jsonl").at(0).second;
  // 64 nearly untrained tokens: each has about 1/64 of the probability, and so has the 65th.
  EXPECT_NEAR(script - paper, -std::log(1 - 1.0 / 65), 0.002);
  const auto shape = [](const AdapterFile& a) {
    std::vector<std::string> names;
    for (const NamedArray& t : a.tensors) names.push_back(strf("%s %ld %ld", t.name.c_str(), t.rows, t.cols));
    return names;
  };
  EXPECT_EQ(shape(read_adapter(dir_ / "paper/adapter.lora")), shape(read_adapter(dir_ / "script/adapter.lora")));
}

TEST_F(TrainRuns, SameSeedSameBytesWhateverTheThreads) {
  const Args options = {"--steps", "4", "--dropout", "0.1"};
  trained(options + Args{"--out", dir_ / "a", "--threads", "2"});
  const std::string bytes = read_bytes(dir_ / "a/adapter.lora");
  for (const char* threads : {"1", "2", "3"}) {
    trained(options + Args{"--out", dir_ / threads, "--threads", threads});
    EXPECT_EQ(read_bytes(dir_ / (threads + std::string("/adapter.lora"))), bytes) << threads << " threads";
  }
  trained(options + Args{"--out", dir_ / "other", "--seed", "43"});
  EXPECT_NE(read_bytes(dir_ / "other/adapter.lora"), bytes);
}

// Speed and memory choices change no bit: recompute runs the same code again, a cached weight is the dequantized one.
TEST_F(TrainRuns, RecomputeAndResidencyChangeNoBit) {
  std::string bytes;
  for (const char* recompute : {"none", "norms", "gate_up", "block"})
    for (const char* residency : {"cached", "packed"}) {
      const std::string out = dir_ / (recompute + std::string(residency));
      const CommandResult r =
          trained({"--steps", "3", "--out", out, "--recompute", recompute, "--residency", residency});
      EXPECT_NE(r.err.find(strf("%s weights, recompute %s\n", residency, recompute)), std::string::npos) << r.err;
      if (bytes.empty()) bytes = read_bytes(out + "/adapter.lora");
      EXPECT_EQ(read_bytes(out + "/adapter.lora"), bytes) << recompute << " " << residency;
    }
}

// The number behind `label` in a text, its commas dropped.
int64_t number_after(const std::string& text, const std::string& label) {
  const size_t at = text.find(label);
  if (at == std::string::npos) return -1;
  std::string digits;
  for (size_t i = at + label.size(); i < text.size() && (isdigit(text[i]) || text[i] == ','); ++i)
    if (text[i] != ',') digits += text[i];
  return digits.empty() ? -1 : std::stoll(digits);
}

TEST_F(TrainRuns, PlanIsThePeakUnderEveryLimit) {
  int64_t limit = 0;
  std::vector<std::string> plans;
  for (int i = 0; i < 24; ++i) {
    Args options = {"--steps", "3", "--batch", "12", "--micro-batch", "7", "--out", dir_ / std::to_string(i)};
    if (limit > 0) options = options + Args{"--memory-limit", std::to_string(limit)};
    const CommandResult r = train(options);
    if (r.status != 0) {
      EXPECT_GE(i, 3) << "cached, packed and recompute should each have had a turn\n" << r.err;
      const int64_t needed = number_after(r.err, "micro-batch 1 needs ");
      EXPECT_EQ(complaint(r).rfind("irq_train: out of memory: the run needs at least ", 0), 0u) << r.err;
      EXPECT_NE(r.err.find("plan    : already with packed weights and recompute block"), std::string::npos) << r.err;
      EXPECT_TRUE(r.err.find("try     : --micro-batch ") != std::string::npos || needed > 0) << r.err;
      break;
    }
    const int64_t planned = number_after(r.err, "memory plan: ");
    EXPECT_EQ(number_after(r.err, "memory: the planned "), planned) << r.err;
    if (limit > 0) { EXPECT_LE(planned, limit); }
    plans.push_back(r.err.substr(r.err.find("bytes (", r.err.find("memory plan"))).substr(0, 80));
    EXPECT_EQ(read_bytes(dir_ / (std::to_string(i) + "/adapter.lora")), read_bytes(dir_ / "0/adapter.lora"));
    limit = planned - 1;
  }
  // Each kind of plan has its turn, the fastest first; packed weights with nothing computed again take more than the second here.
  size_t at = 0;
  for (const char* kind : {"cached weights, recompute none", "cached weights, recompute norms",
                           "weights cached in 1 of 2 layers, recompute norms", "packed weights, recompute norms",
                           "packed weights, recompute gate_up", "recompute block"}) {
    while (at < plans.size() && plans[at].find(kind) == std::string::npos) ++at;
    EXPECT_LT(at, plans.size()) << kind;
  }
}

TEST_F(TrainRuns, MemoryAdviceWorks) {
  const Args options = {"--steps", "2", "--batch", "64", "--memory-limit", "2000000"};
  const CommandResult r = train(options + Args{"--out", dir_ / "a"});
  EXPECT_EQ(r.status, 1);
  const int64_t micro = number_after(r.err, "try     : --micro-batch ");
  ASSERT_GT(micro, 1) << r.err;
  trained(options + Args{"--out", dir_ / "a", "--micro-batch", std::to_string(micro)});
  const CommandResult hopeless = train({"--steps", "2", "--memory-limit", "100000", "--out", dir_ / "b"});
  EXPECT_EQ(hopeless.status, 1);
  EXPECT_NE(hopeless.err.find("\n  found   : even --micro-batch 1 needs "), std::string::npos) << hopeless.err;
  EXPECT_NE(hopeless.err.find("\n  try     : a larger --memory-limit, a lower --rank, fewer --bits, shorter examples "
                              "(--source-len, --target-len, --window)\n"),
            std::string::npos)
      << hopeless.err;
}

TEST_F(TrainRuns, EveryMethodTrains) {
  for (const Method& m : methods()) {
    if (m.needs_integers()) continue;  // test_train_methods.cpp
    const std::string out = dir_ / m.name;
    const CommandResult r = trained({"--steps", "2", "--method", m.name, "--out", out});
    EXPECT_EQ(r.out.rfind("held-out loss ", 0), 0u) << r.out;
    EXPECT_TRUE(r.out.ends_with(out + (m.full         ? "/model.bin\n"
                                       : m.requantize ? "/model.irq\n"
                                                      : "/adapter.lora\n")))
        << r.out;
    EXPECT_EQ(step_losses(out + "/log.jsonl").size(), 2u);
    if (m.full) {
      BaseReader(out + "/model.bin").verify_all();
      continue;
    }
    const AdapterFile a = read_adapter(out + "/adapter.lora");
    EXPECT_EQ(a.method, m.name);
    for (const std::string linear : {"layers.0.wq", "layers.0.wo", "layers.1.w_gate", "layers.1.w_down"}) {
      EXPECT_TRUE(a.find(linear + ".A") && a.find(linear + ".B")) << m.name;
      EXPECT_EQ(a.find(linear + ".beta1") != nullptr, m.u1) << m.name;
      EXPECT_EQ(a.find(linear + ".beta2") != nullptr, m.u2) << m.name;
    }
    if (m.u2) { EXPECT_NE(a.find("layers.0.wq.beta2")->data[0], 0) << "beta2 is not trained"; }
    if (m.u1) { EXPECT_NE(a.find("layers.0.wq.beta1")->data[0], 0) << "beta1 is not trained"; }
  }
}

TEST_F(TrainRuns, TargetModules) {
  trained({"--steps", "2", "--target-modules", "q_proj,w_down", "--out", dir_ / "a"});
  const AdapterFile a = read_adapter(dir_ / "a/adapter.lora");
  EXPECT_TRUE(a.find("layers.1.wq.A") && a.find("layers.0.w_down.B"));
  EXPECT_FALSE(a.find("layers.1.wk.A") || a.find("layers.0.w_up.B"));
}

TEST_F(TrainRuns, EpochsEvaluationsAndNoHeldOut) {
  // 1,199 predictions in windows of 24 are 50 examples; 4 are held out: 1.5 epochs of 46 in batches of 4 are 17.25 steps.
  trained({"--epochs", "1.5", "--eval-every", "6", "--out", dir_ / "a"});
  EXPECT_EQ(step_losses(dir_ / "a/log.jsonl").size(), 18u);
  std::vector<int> at;
  for (const auto& [step, loss] : held_out_losses(dir_ / "a/log.jsonl")) at.push_back(step);
  EXPECT_EQ(at, (std::vector<int>{0, 6, 12, 18}));
  const CommandResult r = trained({"--steps", "2", "--holdout", "0", "--out", dir_ / "b"});
  EXPECT_EQ(r.out, (dir_ / "b/adapter.lora") + "\n");
  EXPECT_TRUE(held_out_losses(dir_ / "b/log.jsonl").empty());
}

TEST_F(TrainRuns, PrintTape) {
  const CommandResult r = trained({"--steps", "2", "--print-tape", "--out", dir_ / "a"});
  EXPECT_EQ(r.out.rfind("node  op ", 0), 0u) << r.out;
  for (const char* word : {"saved bytes", "backward ms", "q|k|v", "attention out", "swiglu", "cross_entropy", "total"})
    EXPECT_NE(r.out.find(word), std::string::npos) << word << "\n" << r.out;
  trained({"--steps", "2", "--out", dir_ / "b"});
  EXPECT_EQ(read_bytes(dir_ / "a/adapter.lora"), read_bytes(dir_ / "b/adapter.lora"));
}

// The log's first line, given to a shell, does the run again. A name with a space needs its quotes.
TEST_F(TrainRuns, LogOpensWithACommandThatRunsAgain) {
  std::filesystem::copy_file(shared("data.tok"), dir_ / "some data.tok");
  trained({"--data", dir_ / "some data.tok", "--epochs", "0.3", "--dropout", "0.05", "--warmup", "2", "--micro-batch",
           "3", "--iec-expand", "tile", "--seed", "7", "--bits", "3", "--out", dir_ / "a"});
  const nlohmann::json first = read_log(dir_ / "a/log.jsonl").at(0);
  std::string command = first.at("command");
  EXPECT_NE(command.find(" --steps 4 "), std::string::npos) << command;
  EXPECT_NE(first.at("typed").get<std::string>().find(" --epochs 0.3 "), std::string::npos);
  ASSERT_EQ(command.rfind("./irq_train ", 0), 0u);
  const std::string before = read_bytes(dir_ / "a/adapter.lora");
  command = tool_path("irq_train") + command.substr(11) + " --quiet";
  EXPECT_NE(std::system((command + " >/dev/null 2>&1").c_str()), 0) << "a finished run is not overwritten";
  EXPECT_EQ(std::system((command + " --out " + (dir_ / "b") + " >/dev/null").c_str()), 0);
  EXPECT_EQ(read_bytes(dir_ / "b/adapter.lora"), before);
  EXPECT_EQ(read_bytes(dir_ / "b/train.state"), read_bytes(dir_ / "a/train.state"));
}

// A model that is trained in full from a config.json starts from the seed alone.
TEST_F(TrainRuns, FromScratch) {
  for (const char* out : {"a", "b"}) {
    const CommandResult r = run_command("irq_train", {shared("config.json"),
                                                      "--data",
                                                      shared("data.tok"),
                                                      "--window",
                                                      "24",
                                                      "--method",
                                                      "full",
                                                      "--steps",
                                                      "60",
                                                      "--batch",
                                                      "8",
                                                      "--lr",
                                                      "0.003",
                                                      "--seed",
                                                      "5",
                                                      "--device",
                                                      "cpu",
                                                      "--quiet",
                                                      "--out",
                                                      dir_ / out});
    EXPECT_EQ(r.status, 0) << r.err;
    EXPECT_EQ(r.err, "");
  }
  EXPECT_EQ(read_bytes(dir_ / "a/model.bin"), read_bytes(dir_ / "b/model.bin"));
  const std::vector<double> losses = step_losses(dir_ / "a/log.jsonl");
  EXPECT_NEAR(losses[0], std::log(64), 0.1);  // logits near 0: all 64 ids alike
  EXPECT_LT(losses.back(), losses[0] - 0.3);
}

}  // namespace
}  // namespace irq
