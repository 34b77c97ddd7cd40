// What irq_train says when something is wrong, and what it leaves behind then.
#include <sys/resource.h>

#include <limits>

#include "src/core/file.h"
#include "src/io/checkpoint.h"
#include "tests/train_fixture.h"

namespace irq {
namespace {

TEST_F(TrainErrors, FinishedAndUnfinishedRunsAreKept) {
  const std::string out = dir_ / "run";
  expect_complaint(train({"--steps", "3", "--out", out, "--resume"}),
                   out + ": nothing to resume\n  expected: " + out + "/train.state\n  try     : without --resume");
  trained({"--steps", "3", "--out", out});
  const std::string bytes = read_bytes(out + "/adapter.lora"), log = read_bytes(out + "/log.jsonl");
  expect_complaint(train({"--steps", "3", "--out", out}),
                   out + ": a finished run is there\n  found   : " + out +
                       "/adapter.lora\n  try     : --resume (go on, with more --steps), --overwrite (start again), or "
                       "another --out");
  expect_complaint(train({"--steps", "5", "--out", out, "--resume", "--lr", "0.5", "--rank", "16"}),
                   out +
                       "/train.state: that run had other options\n  then    : --lr 0.01\n  then    : --rank 8\n"
                       "  now     : --lr 0.5\n  now     : --rank 16\n  try     : the options of the first run (" +
                       out + "/log.jsonl begins with them), or --overwrite");
  write_tokens(dir_ / "other.tok", 1200, 2);
  expect_part(train({"--steps", "5", "--out", out, "--resume", "--data", dir_ / "other.tok"}), "\n  now     : data ");
  expect_part(train({"--steps", "5", "--out", out, "--resume", "--lambda", "0.2"}), ": that run had another base");
  expect_complaint(train({"--steps", "2", "--out", out, "--resume"}),
                   "--steps 2: the run has done 3 steps already\n  try     : --steps with more than 3, or --overwrite",
                   2);
  EXPECT_EQ(read_bytes(out + "/adapter.lora"), bytes);
  EXPECT_EQ(read_bytes(out + "/log.jsonl"), log);
  trained({"--steps", "3", "--out", out, "--resume"});  // nothing left to do: the same result
  EXPECT_EQ(read_bytes(out + "/adapter.lora"), bytes);
  trained({"--steps", "3", "--out", out, "--overwrite", "--seed", "9"});
  EXPECT_NE(read_bytes(out + "/adapter.lora"), bytes);
  expect_clean(out);
}

TEST_F(TrainErrors, UnfinishedRun) {
  const std::string out = dir_ / "run";
  RunningCommand run("irq_train", command({"--steps", "100000", "--save-every", "1", "--out", out}));
  ASSERT_TRUE(run.wait_until([&] { return fs::exists(out + "/train.state"); })) << run.err();
  expect_complaint(train({"--steps", "3", "--out", out}),
                   out + ": another process is training into this folder\n  try     : another --out");
  run.signal(SIGINT);
  EXPECT_EQ(run.finish().status, 130);
  const size_t steps = step_losses(out + "/log.jsonl").size();
  expect_complaint(train({"--steps", "3", "--out", out}),
                   out + ": an unfinished run is there\n  found   : " + out +
                       strf("/train.state, after step %s", with_commas(static_cast<long long>(steps)).c_str()) +
                       "\n  try     : --resume (go on), --overwrite (start again), or another --out");
  expect_clean(out);
}

TEST_F(TrainErrors, CommandLine) {
  const std::string help = "\n  try     : ./irq_train --help";
  const struct {
    Args args;
    std::string text;
  } cases[] = {
      {{"--epoch", "1"}, "unknown flag --epoch\n  nearest : --epochs" + help},
      {{"--bits", "5"}, "--bits: 5 is not one of 2, 3, 4" + help},
      {{"--rank", "12"},
       "--rank 12 does not fit\n  expected: a multiple of 8: the adapters extend 16-byte aligned rows"},
      {{"--rank", "24"}, "--rank 24 does not fit\n  expected: at most 16, the narrowest linear of this model"},
      {{"--steps", "5", "--epochs", "2"}, "--steps and --epochs contradict each other"},
      {{"--resume", "--overwrite"}, "--resume and --overwrite contradict each other"},
      {{"--eval-data", "x"}, "--eval-data and --holdout contradict each other"},
      {{"--batch", "2000000"}, "--batch: 2000000 is not between 1 and 1048576" + help},
      {{"--steps", "99999999999999999999"}, "--steps: 99999999999999999999 is not between 0 and 1000000000" + help},
      {{"--data", ""}, "--data: the name is empty\n  try     : a name, or without --data"},
      {{"--holdout", "50"}, "--holdout 50 takes all of the 50 examples"},
      {{"--gpus", "2"}, "--gpus: several GPUs are not supported yet\n  try     : --gpus 1"},
      {{"--target-modules", "q_proj,x_proj"},
       "--target-modules: unknown linear 'x_proj'\n  allowed : all, or a list of q_proj k_proj v_proj o_proj gate_proj "
       "up_proj down_proj"},
      {{"--steps", "900000000", "--batch", "16"},
       "--steps 900000000 with --batch 16 is too long\n  expected: at most 2,147,483,647 examples in a run: they are "
       "numbered in 32 bits"},
  };
  for (const auto& c : cases) expect_complaint(train(c.args + Args{"--out", dir_ / "run"}), c.text, 2);
  expect_complaint(train({"--out", ""}), "--out: the name is empty\n  try     : a name, or without --out", 2);
}

TEST_F(TrainErrors, Bases) {
  const Args out = {"--steps", "1", "--out", dir_ / "run"};
  const auto with_base = [&](const std::string& base, const Args& more = {}) {
    Args args = command(out + more);
    args[0] = base;
    return run_command("irq_train", args);
  };
  expect_part(with_base(dir_ / "absent.bin"), (dir_ / "absent.bin") + ": no such file");
  const std::string bytes = read_bytes(shared("model.bin"));
  write_bytes(dir_ / "cut.bin", bytes.substr(0, bytes.size() * 4 / 5));
  expect_part(with_base(dir_ / "cut.bin"), (dir_ / "cut.bin") + ": checkpoint is cut short\n");
  std::string flipped = bytes;
  flipped[bytes.size() / 2] = static_cast<char>(flipped[bytes.size() / 2] ^ 0x10);
  write_bytes(dir_ / "flipped.bin", flipped);
  for (const char* method : {"ir-qlora", "lora16", "full"})
    expect_part(with_base(dir_ / "flipped.bin", {"--method", method}), (dir_ / "flipped.bin") + ": ");
  write_bytes(dir_ / "magic.bin", "XXXX" + bytes.substr(4));
  expect_part(with_base(dir_ / "magic.bin"), (dir_ / "magic.bin") + ": not a base model (.bin)\n");
  trained(out);
  expect_part(with_base(dir_ / "run/adapter.lora", {"--overwrite"}),
              (dir_ / "run/adapter.lora") +
                  ": not a base model (.bin)\n  found   : an adapter (.lora)\n  likely  : an adapter given in the "
                  "model's place\n  try     : give the base model first, then --init-adapter ");
  // --overwrite takes nothing that the run reads.
  const std::string adapter = read_bytes(dir_ / "run/adapter.lora");
  expect_part(train(out + Args{"--overwrite", "--init-adapter", dir_ / "run/adapter.lora"}),
              (dir_ / "run/adapter.lora") + ": writing it would destroy an input of this command", 2);
  EXPECT_EQ(read_bytes(dir_ / "run/adapter.lora"), adapter);

  const CommandResult quantized = run_command("irq_quantize", {shared("model.bin"), dir_ / "m.irq", "--device", "cpu"});
  ASSERT_EQ(quantized.status, 0) << quantized.err;
  EXPECT_EQ(with_base(dir_ / "m.irq", {"--overwrite"}).status, 0);
  expect_part(with_base(dir_ / "m.irq", {"--overwrite", "--bits", "3"}),
              "--bits 3: " + (dir_ / "m.irq") + " has 4 bits", 2);
  expect_part(with_base(dir_ / "m.irq", {"--overwrite", "--method", "qlora"}), "expected: quantized without ICQ");
  expect_part(with_base(dir_ / "m.irq", {"--overwrite", "--method", "full"}), "needs a base that is not quantized");
}

TEST_F(TrainErrors, Data) {
  const Args out = {"--steps", "1", "--out", dir_ / "run"};
  const auto with_data = [&](const std::string& name) { return train(out + Args{"--data", dir_ / name}); };
  write_token_file(dir_ / "one.tok", {5});
  expect_part(with_data("one.tok"), (dir_ / "one.tok") + ": the file holds no token to train on\n");
  write_token_file(dir_ / "large.tok", {5, 64, 7});
  expect_part(with_data("large.tok"), (dir_ / "large.tok") + ": token id outside the model's vocabulary\n");
  write_bytes(dir_ / "text.txt", "A line.\n");
  expect_part(with_data("text.txt"),
              "plain text files need the model's tokenizer\n  likely  : no tokenizer.model or tokenizer.json beside");
  write_bytes(dir_ / "empty.json", "");
  expect_part(with_data("empty.json"), (dir_ / "empty.json") + ": the data file is empty");
  expect_part(train(out + Args{"--data", "/dev/zero"}), "/dev/zero: is not a regular file\n");
  expect_part(train(out + Args{"--data", "/proc/self/mem"}),
              "irq_train: /proc/self/mem: cannot be read: Input/output error\n  likely  : ");
  expect_part(with_data("absent.json"), (dir_ / "absent.json") + ": cannot be read");
  expect_part(run_command("irq_train", Args{shared("model.bin"), "--rank", "8", "--device", "cpu"} + out),
              "no training data\n", 2);
}

// A base with one weight that is no number.
void write_nan_base(const std::string& path, const ModelConfig& c, const std::string& where) {
  BaseWriter w(path, c, DType::F32);
  Rng rng(3, 1);
  while (const TensorSpec* t = w.next()) {
    std::vector<float> values(static_cast<size_t>(t->rows * t->cols), 1.0f);
    if (t->rows > 1)
      for (float& x : values) x = static_cast<float>(0.05 * rng.normal());
    if (t->name == where) values[values.size() / 2] = std::numeric_limits<float>::quiet_NaN();
    const std::string name = t->name;
    w.write(name, values.data(), t->bytes());
  }
  w.finish();
}

TEST_F(TrainErrors, NotANumberInTheBase) {
  const ModelConfig c = BaseReader(shared("model.bin")).config();
  const Args out = {"--steps", "2", "--out", dir_ / "run"};
  const auto with_nan = [&](const std::string& tensor, const Args& more) {
    write_nan_base(dir_ / "nan.bin", c, tensor);
    Args args = command(out + more);
    args[0] = dir_ / "nan.bin";
    return run_command("irq_train", args);
  };
  expect_part(with_nan("layers.1.wk", {}), "layers.1.wk: a weight is not a number\n  expected: finite weights");
  const std::string named = "\n  likely  : " + (dir_ / "nan.bin") + ": a weight of layers.1.wk is not finite\n";
  for (const char* method : {"lora16", "full"}) {
    const CommandResult before = with_nan("layers.1.wk", {"--method", method});
    expect_part(before, "irq_train: held-out loss after step 0: the loss or the gradient is not a number\n");
    expect_part(before, named);
    const CommandResult first = with_nan("layers.1.wk", {"--method", method, "--holdout", "0"});
    expect_part(first, "irq_train: step 1: the loss or the gradient is not a number\n");
    expect_part(first, named);
    EXPECT_FALSE(fs::exists(dir_ / "run/train.state"));
  }
  // Norms and embeddings are not quantized, and looked at all the same.
  for (const char* name : {"embed", "layers.0.ffn_norm", "norm", "head"}) {
    expect_part(with_nan(name, {}), "irq_train: " + (dir_ / "nan.bin") + ": " + name + ": a weight is not a number\n");
    EXPECT_EQ(with_nan(name, {"--method", "lora16"}).status, 1);
  }
}

// Finite weights and a rate that carries the product gate x up beyond fp32 in the second step.
TEST_F(TrainErrors, DivergedRun) {
  const ModelConfig c = BaseReader(shared("model.bin")).config();
  BaseWriter w(dir_ / "large.bin", c, DType::F32);
  Rng rng(3, 1);
  while (const TensorSpec* t = w.next()) {
    const std::string name = t->name;
    std::vector<float> values(static_cast<size_t>(t->rows * t->cols), name.ends_with("ffn_norm") ? 1e17f : 1.0f);
    if (t->rows > 1)
      for (float& x : values) x = static_cast<float>(0.05 * rng.normal());
    w.write(name, values.data(), t->bytes());
  }
  w.finish();
  for (const char* quiet : {"--quiet", "--overwrite"}) {
    Args args =
        command({"--method", "full", "--lr", "10", "--clip", "0", "--steps", "9", "--out", dir_ / "run", quiet});
    args[0] = dir_ / "large.bin";
    const CommandResult r = run_command("irq_train", args);
    expect_part(r, ": the loss or the gradient is not a number\n");
    expect_part(r, "\n  likely  : a learning rate that is too high\n  try     : --lr 2.5\n");
    EXPECT_EQ(r.out, "");
    EXPECT_FALSE(fs::exists(dir_ / "run/model.bin"));
  }
  const CommandResult rising = trained({"--lr", "1", "--clip", "0", "--steps", "30", "--out", dir_ / "rising"});
  EXPECT_NE(rising.err.find("note: the held-out loss rose; try --lr 0.25, or fewer --steps\n"), std::string::npos)
      << rising.err;
  const CommandResult usage = train({"--lr", "1e6", "--out", dir_ / "run"});
  expect_complaint(usage, "--lr: 1e6 is not between 0 and 10\n  try     : ./irq_train --help", 2);
}

// RLIMIT_FSIZE stands for a full disk: the write fails behind so many bytes.
TEST_F(TrainErrors, FullDiskLeavesTheOldFilesWhole) {
  const std::string out = dir_ / "run";
  trained({"--steps", "2", "--out", out});
  const auto adapter_bytes = fs::file_size(out + "/adapter.lora"), state_bytes = fs::file_size(out + "/train.state");
  ASSERT_LT(adapter_bytes + 4096, state_bytes);
  const std::string adapter = read_bytes(out + "/adapter.lora");
  const auto limited = [&](uint64_t bytes, const Args& more) {
    RunningCommand run("irq_train", command(Args{"--out", out, "--quiet"} + more), [&] {
      std::signal(SIGXFSZ, SIG_IGN);
      const rlimit limit = {bytes, bytes};
      setrlimit(RLIMIT_FSIZE, &limit);
    });
    return run.finish();
  };
  const std::string full = ": cannot be written: File too large\n";
  expect_part(limited(adapter_bytes - 1000, {"--steps", "3", "--overwrite"}),
              "irq_train: " + out + "/adapter.lora" + full);
  EXPECT_EQ(read_bytes(out + "/adapter.lora"), adapter);
  expect_clean(out);
  expect_part(limited(state_bytes - 1000, {"--steps", "3", "--overwrite", "--save-every", "1", "--seed", "2"}),
              "irq_train: " + out + "/train.state" + full);
  EXPECT_EQ(read_bytes(out + "/adapter.lora"), adapter);
  expect_clean(out);
  expect_part(limited(1000, {"--steps", "3", "--overwrite"}), "irq_train: " + out + "/log.jsonl" + full);
  for (const nlohmann::json& line : read_log(out + "/log.jsonl")) EXPECT_TRUE(line.is_object());  // no half line
  EXPECT_EQ(read_bytes(out + "/adapter.lora"), adapter);
  // The quantized base does not fit: no file of that name, and the next run makes it.
  fs::copy_file(shared("model.bin"), dir_ / "m.bin");
  Args args = command({"--steps", "1", "--out", dir_ / "q"});
  args[0] = dir_ / "m.bin";
  RunningCommand run("irq_train", args + Args{"--quiet"}, [] {  // its stderr is a file too
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {5000, 5000};
    setrlimit(RLIMIT_FSIZE, &limit);
  });
  expect_part(run.finish(), ".irq" + full);
  for (const auto& entry : fs::directory_iterator(dir_.path()))
    EXPECT_NE(entry.path().extension(), ".irq") << entry.path();
  expect_clean(dir_.path());
  const CommandResult again = run_command("irq_train", args);
  EXPECT_NE(again.err.find("quantized base: " + (dir_ / "m.nf4-icq-l0.1-n100-exact-")), std::string::npos) << again.err;
}

// The folder beside BASE cannot be written: the quantized base goes to --out, or is used where somebody left it.
TEST_F(TrainErrors, ReadOnlyFolderOfTheBase) {
  fs::create_directory(dir_ / "models");
  fs::create_directory(dir_ / "runs");
  fs::copy_file(shared("model.bin"), dir_ / "models/m.bin");
  fs::copy_file(shared("data.tok"), dir_ / "data.tok");
  fs::permissions(dir_ / "data.tok", fs::perms(0444));
  for (const char* open : {"", "runs"}) fs::permissions(dir_ / open, fs::perms(0777));
  fs::permissions(dir_ / "models", fs::perms(0555));
  const bool root = geteuid() == 0;  // whom no permission stops: the run gives root up
  const auto unprivileged = [root] {
    if (root && (setgid(65534) != 0 || setuid(65534) != 0)) _exit(126);
  };
  RunningCommand probe("irq_train", {"--version"}, unprivileged);
  if (probe.finish().status != 0) GTEST_SKIP() << "irq_train cannot be run as another user here";
  const auto run_here = [&](const std::string& out) {
    Args args = command({"--data", dir_ / "data.tok", "--steps", "1", "--out", dir_ / out});
    args[0] = dir_ / "models/m.bin";
    RunningCommand run("irq_train", args, unprivileged);
    return run.finish();
  };
  const CommandResult first = run_here("runs/a");
  EXPECT_EQ(first.status, 0) << first.err;
  EXPECT_NE(first.err.find("quantized base: " + (dir_ / "runs/a/m.nf4-icq-")), std::string::npos) << first.err;
  fs::permissions(dir_ / "models", fs::perms(0755));
  for (const auto& entry : fs::directory_iterator(dir_ / "runs/a"))
    if (entry.path().extension() == ".irq") fs::copy(entry.path(), dir_ / "models");
  fs::permissions(dir_ / "models", fs::perms(0555));
  const CommandResult second = run_here("runs/b");
  EXPECT_EQ(second.status, 0) << second.err;
  EXPECT_NE(second.err.find("quantized base: " + (dir_ / "models/m.nf4-icq-")), std::string::npos) << second.err;
  EXPECT_NE(second.err.find(" (cached), "), std::string::npos) << second.err;
  fs::permissions(dir_ / "models", fs::perms(0755));
}

// Of two runs that need the same quantized base one makes it, the other waits for it; a broken one is made again.
TEST_F(TrainErrors, OneProcessQuantizes) {
  fs::copy_file(shared("model.bin"), dir_ / "m.bin");
  const auto args = [&](const std::string& out) {
    Args a = command({"--steps", "1", "--out", dir_ / out});
    a[0] = dir_ / "m.bin";
    return a;
  };
  RunningCommand one("irq_train", args("one")), two("irq_train", args("two"));
  EXPECT_EQ(one.finish().status, 0);
  EXPECT_EQ(two.finish().status, 0);
  EXPECT_EQ(read_bytes(dir_ / "one/adapter.lora"), read_bytes(dir_ / "two/adapter.lora"));
  std::string irq;
  for (const auto& entry : fs::directory_iterator(dir_.path()))
    if (entry.path().extension() == ".irq") irq = entry.path().string();
  ASSERT_NE(irq, "");
  expect_clean(dir_.path());
  const std::string bytes = read_bytes(irq);
  fs::remove(irq);
  auto lock = FileLock::try_lock(irq + ".lock");
  ASSERT_TRUE(lock);
  RunningCommand three("irq_train", args("three"));
  const std::string waiting = "waiting: another process is quantizing " + (dir_ / "m.bin") + "\n";
  ASSERT_TRUE(three.wait_until([&] { return three.err().find(waiting) != std::string::npos; })) << three.err();
  write_bytes(irq, bytes);
  lock.reset();
  const CommandResult r = three.finish();
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.err.find("quantized base: " + irq + " (cached)"), std::string::npos) << r.err;
  EXPECT_EQ(read_bytes(dir_ / "three/adapter.lora"), read_bytes(dir_ / "one/adapter.lora"));

  write_bytes(irq, bytes.substr(0, bytes.size() / 2));
  const CommandResult mended = run_command("irq_train", args("four"));
  EXPECT_EQ(mended.status, 0) << mended.err;
  EXPECT_NE(mended.err.find("note: quantizing again"), std::string::npos) << mended.err;
  EXPECT_EQ(read_bytes(irq), bytes);
}

}  // namespace
}  // namespace irq
