// Runs of the built irq_train on a model of 15 thousand weights: a few milliseconds a step.
#pragma once
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>

#include "src/core/check.h"
#include "src/core/rng.h"
#include "src/text/token_file.h"
#include "tests/cli_util.h"
#include "tests/scratch_dir.h"

namespace irq {

using Args = std::vector<std::string>;
inline Args operator+(Args a, const Args& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// A tool that runs beside the test, to be watched, signalled and waited for.
class RunningCommand {
 public:
  // before_exec runs in the new process.
  RunningCommand(const std::string& tool, const Args& args, const std::function<void()>& before_exec = {}) {
    const std::string program = tool_path(tool), out = dir_ / "out", err = dir_ / "err";
    std::vector<const char*> argv{program.c_str()};
    for (const std::string& arg : args) argv.push_back(arg.c_str());
    argv.push_back(nullptr);
    child_ = fork();
    if (child_ == 0) {
      if (std::freopen("/dev/null", "r", stdin) && std::freopen(out.c_str(), "w", stdout) &&
          std::freopen(err.c_str(), "w", stderr)) {
        if (before_exec) before_exec();
        execv(program.c_str(), const_cast<char* const*>(argv.data()));
      }
      _exit(127);
    }
  }
  ~RunningCommand() {
    if (child_ <= 0) return;
    kill(child_, SIGKILL);
    waitpid(child_, nullptr, 0);
  }
  RunningCommand(const RunningCommand&) = delete;

  std::string err() const { return read_text(dir_ / "err"); }
  void signal(int number) const { kill(child_, number); }
  // Waits until `seen` holds; false if the command ended or a minute passed before.
  bool wait_until(const std::function<bool()>& seen) {
    for (int i = 0; i < 30000 && !seen(); ++i) {
      siginfo_t info = {};
      if (waitid(P_PID, static_cast<id_t>(child_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid != 0)
        return seen();
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return seen();
  }
  CommandResult finish() {
    int status = 0;
    waitpid(child_, &status, 0);
    child_ = 0;
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), read_text(dir_ / "out"),
            read_text(dir_ / "err")};
  }

 private:
  TempDir dir_;
  pid_t child_ = 0;
};

inline std::vector<nlohmann::json> read_log(const std::string& path) {
  std::vector<nlohmann::json> lines;
  std::istringstream in(read_text(path));
  for (std::string line; std::getline(in, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

// The losses of the step lines; a test failure unless these are steps 1, 2, ... once each.
inline std::vector<double> step_losses(const std::string& log) {
  std::vector<double> losses;
  for (const nlohmann::json& line : read_log(log)) {
    if (!line.contains("loss")) continue;
    losses.push_back(line["loss"]);
    EXPECT_EQ(line["step"], losses.size());
  }
  return losses;
}

inline std::vector<std::pair<int, double>> held_out_losses(const std::string& log) {
  std::vector<std::pair<int, double>> losses;
  for (const nlohmann::json& line : read_log(log))
    if (line.contains("held_out_tokens")) losses.emplace_back(line["step"], line["held_out_loss"]);
  return losses;
}

inline std::string tiny_config_text(int vocab = 64) {
  return strf(R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": %d, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "hidden_act": "silu", "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2})",
              vocab);
}

// Ids that follow a pattern with noise, so that there is something to learn.
inline void write_tokens(const std::string& path, size_t count, uint64_t seed) {
  std::vector<int32_t> ids;
  Rng rng(seed, 1);
  for (size_t i = 0; i < count; ++i)
    ids.push_back(static_cast<int32_t>(rng.below(4) == 0 ? rng.below(64) : (i * 7 + i / 5) % 64));
  write_token_file(path, ids);
}

// The suite's folder holds model.bin (2 steps of full training) and data.tok; each test writes into a folder of its own.
class Train : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    setenv("OMP_WAIT_POLICY", "passive", 1);  // the tools run beside other tests' threads
    shared_ = std::make_unique<TempDir>();
    write_bytes(shared("config.json"), tiny_config_text());
    write_tokens(shared("data.tok"), 1200, 1);
    const CommandResult r = run_command(
        "irq_train", Args{shared("config.json"), "--data", shared("data.tok"), "--window", "24", "--method", "full",
                          "--steps", "2", "--dtype", "f16", "--out", shared("full"), "--device", "cpu"});
    ASSERT_EQ(r.status, 0) << r.err;
    std::filesystem::rename(shared("full/model.bin"), shared("model.bin"));
  }
  static void TearDownTestSuite() { shared_.reset(); }
  static std::string shared(const std::string& name) { return *shared_ / name; }

  // irq_train BASE with the small options; `more` comes last and wins.
  static Args command(const Args& more) {
    return Args{shared("model.bin"),
                "--data",
                shared("data.tok"),
                "--window",
                "24",
                "--batch",
                "4",
                "--holdout",
                "4",
                "--lr",
                "0.01",
                "--device",
                "cpu"} +
           (std::find(more.begin(), more.end(), "full") == more.end() ? Args{"--rank", "8"} : Args{}) + more;
  }
  static CommandResult train(const Args& more) { return run_command("irq_train", command(more)); }
  // ... that must succeed.
  static CommandResult trained(const Args& more) {
    CommandResult r = train(more);
    EXPECT_EQ(r.status, 0) << r.err;
    return r;
  }
  // What a failed run says behind the notes: "irq_train: ..." to the end.
  static std::string complaint(const CommandResult& r) {
    const size_t at = r.err.find("irq_train: ");
    return at == std::string::npos ? "no complaint in:\n" + r.err : r.err.substr(at);
  }

  TempDir dir_;

 private:
  static inline std::unique_ptr<TempDir> shared_;
};

namespace fs = std::filesystem;

class TrainErrors : public Train {
 protected:
  // The complaint in full, and the exit status.
  void expect_complaint(const CommandResult& r, const std::string& text, int status = 1) {
    EXPECT_EQ(complaint(r), "irq_train: " + text + "\n");
    EXPECT_EQ(r.status, status) << r.err;
    EXPECT_EQ(r.out, "");
  }
  void expect_part(const CommandResult& r, const std::string& part, int status = 1) {
    EXPECT_NE(complaint(r).find(part), std::string::npos) << r.err;
    EXPECT_EQ(r.status, status) << r.err;
  }
  // No temporary file, no lock.
  void expect_clean(const std::string& folder) {
    for (const auto& entry : fs::directory_iterator(folder)) {
      const std::string name = entry.path().filename().string();
      EXPECT_FALSE(name.ends_with(".tmp") || name.ends_with(".lock")) << entry.path();
    }
  }
};

}  // namespace irq
