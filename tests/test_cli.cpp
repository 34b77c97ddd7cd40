// The command-line layer: what a user is told, word for word, and the exit status that goes with it.
#include <gtest/gtest.h>

#include <csignal>

#include "src/core/interrupt.h"
#include "tests/cli_util.h"
#include "tools/cli.h"

namespace irq {
namespace {

struct Outcome {
  int status;
  std::string out, err;
};

// A small tool in this process.
struct Sample {
  std::string base, out, prompt, format = "nf";
  int bits = 4;
  int64_t memory = 0;
  uint64_t seed = 1;
  double lr = 2e-4;
  bool icq = true, lr_given = false;
  std::vector<std::string> files, pair;
  std::string command;

  Outcome run(
      std::vector<const char*> args, std::function<int()> body = [] { return 0; }) {
    args.insert(args.begin(), "irq_sample");
    testing::internal::CaptureStdout();
    testing::internal::CaptureStderr();
    Cli cli("irq_sample", "a sample");
    cli.positional("BASE", &base, "the model");
    cli.positional("OUT", &out, "the result", false);
    cli.option("--format", &format, "code book", {"nf", "int", "gptq"});
    cli.option("--prompt", &prompt, "what to ask");
    cli.option("--bits", &bits, "bits per weight", {2, 3, 4});
    cli.option("--lr", &lr, "learning rate");
    cli.range("--lr", 0, 1);
    cli.option("--seed", &seed, "seed");
    cli.size_option("--memory-limit", &memory, "at most this much");
    cli.flag("--icq", &icq, "calibrate", "--no-icq");
    cli.option("--choice", &files, "question files");
    cli.option("--logits", &pair, "ids and file", 2);
    const int status = cli.run(static_cast<int>(args.size()), args.data(), [&] {
      lr_given = cli.given("--lr");
      command = cli.command();
      return body();
    });
    std::string stdout_text = testing::internal::GetCapturedStdout();
    return {status, std::move(stdout_text), testing::internal::GetCapturedStderr()};
  }
};

TEST(Cli, FillsDeclaredVariables) {
  Sample s;
  const Outcome o = s.run({"llama.bin", "--bits", "3", "--no-icq", "--lr=1e-3", "--memory-limit", "10GiB", "--seed",
                           "18446744073709551615", "--choice", "a", "b", "--logits", "1 2", "o.npy", "--prompt",
                           "--is it?", "out.irq"});
  EXPECT_EQ(o.status, 0) << o.err;
  EXPECT_EQ(s.base, "llama.bin");
  EXPECT_EQ(s.out, "out.irq");
  EXPECT_EQ(s.bits, 3);
  EXPECT_FALSE(s.icq);
  EXPECT_EQ(s.lr, 1e-3);
  EXPECT_TRUE(s.lr_given);
  EXPECT_EQ(s.memory, int64_t{10} << 30);
  EXPECT_EQ(s.seed, 18446744073709551615u);
  EXPECT_EQ(s.files, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(s.pair, (std::vector<std::string>{"1 2", "o.npy"}));
  EXPECT_EQ(s.prompt, "--is it?");  // a value may begin with dashes
  EXPECT_EQ(s.command,
            "./irq_sample llama.bin --bits 3 --no-icq --lr=1e-3 --memory-limit 10GiB --seed 18446744073709551615 "
            "--choice a b --logits '1 2' o.npy --prompt '--is it?' out.irq");
}

TEST(Cli, KeepsDefaults) {
  Sample s;
  EXPECT_EQ(s.run({"llama.bin"}).status, 0);
  EXPECT_EQ(s.bits, 4);
  EXPECT_EQ(s.format, "nf");
  EXPECT_TRUE(s.icq);
  EXPECT_FALSE(s.lr_given);
}

// Each complaint in full: a change of wording must be meant.
TEST(Cli, ComplaintsAreExact) {
  const std::string help = "\n  try     : ./irq_sample --help\n";
  const struct {
    std::vector<const char*> args;
    std::string err;
  } cases[] = {
      {{"x", "--bitz", "3"}, "irq_sample: unknown flag --bitz\n  nearest : --bits" + help},
      {{"x", "--no-icg"}, "irq_sample: unknown flag --no-icg\n  nearest : --no-icq" + help},
      {{"x", "--memory", "1G"}, "irq_sample: unknown flag --memory\n  nearest : --memory-limit" + help},
      {{"x", "--entirely-unlike"}, "irq_sample: unknown flag --entirely-unlike" + help},
      {{"x", "--bits", "5"}, "irq_sample: --bits: 5 is not one of 2, 3, 4" + help},
      {{"x", "--bits", "four"}, "irq_sample: --bits: 'four' is not a whole number" + help},
      {{"x", "--bits", "3.5"}, "irq_sample: --bits: '3.5' is not a whole number" + help},
      {{"x", "--seed", "-1"}, "irq_sample: --seed: '-1' is not a whole number" + help},
      {{"x", "--lr", "fast"}, "irq_sample: --lr: 'fast' is not a number" + help},
      {{"x", "--lr", "-1"}, "irq_sample: --lr: -1 is not between 0 and 1" + help},
      {{"x", "--seed", "99999999999999999999"},
       "irq_sample: --seed: 99999999999999999999 is not between 0 and 18446744073709551615" + help},
      {{"x", "--threads", "99999999999999999999"},
       "irq_sample: --threads: 99999999999999999999 is not between 0 and 4096" + help},
      {{"x", "--lr", "1e999"}, "irq_sample: --lr: 1e999 is too large or too close to 0" + help},
      {{"x", "--lr", "nan"}, "irq_sample: --lr: nan is not between 0 and 1" + help},
      {{"x", "--format", "fp"}, "irq_sample: --format: 'fp' is not one of nf, int, gptq" + help},
      {{"x", "--device", "tpu"}, "irq_sample: --device: 'tpu' is not one of auto, cpu, cuda" + help},
      {{"x", "--memory-limit", "much"},
       "irq_sample: --memory-limit: 'much' is not a size\n  expected: a number and a unit: 10GiB, 10G, 800MB\n"},
      {{"x", "--bits"}, "irq_sample: --bits needs a value" + help},
      {{"x", "--logits", "1"}, "irq_sample: --logits needs 2 values" + help},
      {{"x", "--icq", "--no-icq"}, "irq_sample: --icq and --no-icq contradict each other" + help},
      {{"x", "y", "z"}, "irq_sample: too many arguments: 'z' is not expected" + help},
      {{}, "irq_sample: BASE is missing" + help},
  };
  for (const auto& c : cases) {
    Sample s;
    const Outcome o = s.run(c.args);
    EXPECT_EQ(o.err, c.err);
    EXPECT_EQ(o.status, 2) << c.err;
    EXPECT_EQ(o.out, "");
  }
}

TEST(Cli, HelpAndVersionGoToStdoutAndSucceed) {
  Sample s;
  const Outcome help = s.run({"--help"});
  EXPECT_EQ(help.status, 0);
  EXPECT_EQ(help.err, "");
  for (const char* part : {"Usage: ./irq_sample BASE [OUT] [options]", "--bits 2|3|4 [4]", "--format nf|int|gptq [nf]",
                           "--memory-limit SIZE", "--device auto|cpu|cuda [auto]", "--threads N [0]"})
    EXPECT_NE(help.out.find(part), std::string::npos) << part << "\n" << help.out;
  const Outcome version = s.run({"--version"});
  EXPECT_EQ(version.status, 0);
  EXPECT_EQ(version.out, std::string("irq_sample ") + kVersion + "\n");
}

TEST(Cli, ExitStatusFollowsTheError) {
  Sample s;
  const Outcome missing = s.run({"x"}, [&]() -> int { throw Error("x: no such file").line("try", "./irq_convert"); });
  EXPECT_EQ(missing.status, 1);
  EXPECT_EQ(missing.err, "irq_sample: x: no such file\n  try     : ./irq_convert\n");
  EXPECT_EQ(s.run({"x"}, []() -> int { throw Error("--a needs --b", Exit::usage); }).status, 2);
  const Outcome strange = s.run({"x"}, []() -> int { throw std::runtime_error("odd"); });
  EXPECT_EQ(strange.status, 1);
  EXPECT_EQ(strange.err, "irq_sample: internal error: odd\n");
  EXPECT_EQ(s.run({"x"}, [] { return 3; }).status, 3);
}

TEST(Cli, ControlCEndsWith130) {
  Sample s;
  const Outcome o = s.run({"x"}, [] {
    std::raise(SIGINT);
    EXPECT_TRUE(interrupted());  // the process goes on to the next place where it can stop
    throw_if_interrupted();
    return 0;
  });
  clear_interrupt();
  EXPECT_EQ(o.status, 130);
  EXPECT_EQ(o.err, "irq_sample: interrupted\n");
}

TEST(Cli, SecondControlCKills) {
  const pid_t child = fork();
  if (child == 0) {
    install_interrupt_handler();
    std::raise(SIGINT);
    std::raise(SIGINT);
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGINT);
}

TEST(Cli, Sizes) {
  EXPECT_EQ(parse_size("0"), 0);
  EXPECT_EQ(parse_size("1000"), 1000);
  EXPECT_EQ(parse_size("1.5G"), 1610612736);
  EXPECT_EQ(parse_size("1.5GB"), 1500000000);
  EXPECT_EQ(parse_size("64MiB"), 67108864);
  EXPECT_EQ(parse_size("2kB"), 2000);
  for (const char* bad : {"", "G", "-1G", "1 G", "1Gi", "1e30G", "nan", "0x10"})
    EXPECT_THROW(parse_size(bad), Error) << bad;
}

TEST(Cli, EditDistance) {
  EXPECT_EQ(edit_distance("", "abc"), 3);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3);
  EXPECT_EQ(edit_distance("ab", "ba"), 1);  // neighbours swapped
  EXPECT_EQ(edit_distance("same", "same"), 0);
  EXPECT_EQ(nearest("--epcohs", {"--epochs", "--steps"}), "--epochs");
  EXPECT_EQ(nearest("--zzzzzz", {"--epochs", "--steps"}), "");
}

// The built tools.
TEST(CliTools, QuantizeMissingFile) {
  const TempDir dir;
  const CommandResult r = run_command("irq_quantize", {dir / "absent.bin", dir / "out.irq", "--device", "cpu"});
  EXPECT_EQ(r.status, 1);
  EXPECT_EQ(r.out, "");
  EXPECT_NE(r.err.find("irq_quantize: " + (dir / "absent.bin")), std::string::npos) << r.err;
  EXPECT_FALSE(std::filesystem::exists(dir / "out.irq"));
}

TEST(CliTools, EveryToolHasHelpVersionAndUsageErrors) {
  int tools = 0;
  for (const auto& entry : std::filesystem::directory_iterator(std::filesystem::path(tool_path("x")).parent_path())) {
    const std::string tool = entry.path().filename().string();
    if (tool.rfind("irq_", 0) != 0 || tool.rfind("irq_tests", 0) == 0 || tool.find('.') != std::string::npos) continue;
    ++tools;
    EXPECT_EQ(run_command(tool, {"--version"}).out, tool + " " + kVersion + "\n");
    EXPECT_EQ(run_command(tool, {"--help"}).status, 0);
    const CommandResult r = run_command(tool, {"--devise", "cpu"});
    EXPECT_EQ(r.status, 2) << tool;
    EXPECT_EQ(r.err, tool + ": unknown flag --devise\n  nearest : --device\n  try     : ./" + tool + " --help\n");
  }
  EXPECT_GE(tools, 2) << "the tools are not beside the test program";
}

}  // namespace
}  // namespace irq
