// What irq_train refuses because it would change nothing, and what a run leaves in its folder.
#include <sys/mount.h>
#include <sys/resource.h>

#include <map>

#include "src/core/ignored_flags.h"
#include "tests/train_fixture.h"

namespace irq {
namespace {

TEST_F(TrainErrors, FlagsWithoutEffect) {
  ASSERT_EQ(run_command("irq_quantize", {shared("model.bin"), dir_ / "m.irq", "--device", "cpu"}).status, 0);
  const std::string irq = dir_ / "m.irq";
  const struct {
    Args args;
    std::string flag, why;
  } cases[] = {
      {{"--method", "qlora", "--lambda", "0.2"}, "--lambda", "--method qlora has no ICQ"},
      {{"--method", "iec", "--n", "5"}, "--n", "--method iec has no ICQ"},
      {{"--method", "lora16", "--bits", "3"}, "--bits", "--method lora16 leaves the base as it is"},
      {{"--method", "full", "--residency", "packed"}, "--residency", "--method full leaves the base as it is"},
      {{"--method", "full", "--alpha", "8"}, "--alpha", "--method full has no adapters"},
      {{"--method", "full", "--dropout", "0.1"}, "--dropout", "--method full has no adapters"},
      {{"--method", "icq", "--iec-expand", "tile"}, "--iec-expand", "--method icq has no IEC"},
      {{"--method", "qlora", "--icq-ties", "mse"}, "--icq-ties", "--method qlora has no ICQ"},
      {{"--method", "iec", "--icq-consistent"}, "--icq-consistent", "--method iec has no ICQ"},
      {{"--icq-search", "exact", "--n", "9"},
       "--n",
       "--icq-search exact tries a shift for every histogram between the ends, whatever n is"},
      {{"--bits", "3", "--entropy", "fp32"}, "--entropy", kReleasedBits},
      {{"--dtype", "f16"}, "--dtype", "--method ir-qlora writes no model.bin"},
      {{"--source-len", "9"}, "--source-len", "the data has no prompts and answers"},
      {{"--holdout", "0", "--eval-every", "1"}, "--eval-every", "there is no held-out data"},
  };
  const Args out = {"--steps", "1", "--out", dir_ / "run"};
  for (const auto& c : cases)
    expect_complaint(train(c.args + out), c.flag + " has no effect here: " + c.why + "\n  try     : without " + c.flag,
                     2);
  for (const Args& search : {Args{"--lambda", "0.1"}, Args{"--n", "100"}, Args{"--entropy", "exact"},
                             Args{"--icq-width", "raw"}, Args{"--icq-consistent"}}) {
    Args args = command(search + out);
    args[0] = irq;
    expect_part(run_command("irq_train", args), search[0] + " has no effect here: " + irq + " is quantized already", 2);
  }
  Args args = command(out + Args{"--bits", "4"});  // true, and checked
  args[0] = irq;
  EXPECT_EQ(run_command("irq_train", args).status, 0);
  EXPECT_EQ(run_command("irq_quantize", {shared("model.bin"), dir_ / "n.irq", "--no-icq", "--lambda", "0.1"}).err,
            "irq_quantize: --lambda has no effect here: --no-icq searches no shifts\n  try     : without --lambda\n");
  EXPECT_EQ(run_command("irq_inspect", {irq, "--tensors", "--entropy"}).err,
            "irq_inspect: --entropy has no effect here: --tensors lists tensors only\n  try     : without --entropy\n");
  EXPECT_EQ(run_command("irq_bench", {"swiglu_fwd", "--dropout", "0.1"}).status, 2);
  EXPECT_EQ(run_command("irq_bench", {"step", "--repeats", "3"}).status, 2);
}

// Another setting of ICQ is another base, made and kept beside the first; the same setting finds it. The command in the
// log says the setting, and can be given again.
TEST_F(TrainErrors, SettingsOfIcqHaveTheirOwnBases) {
  fs::copy(shared("model.bin"), dir_ / "model.bin");
  const Args mse = {"--icq-ties", "mse", "--icq-search", "exact", "--icq-consistent"};
  const auto run = [&](const std::string& out, const Args& flags) {
    Args args = command(flags + Args{"--steps", "1", "--out", dir_ / out});
    args[0] = dir_ / "model.bin";
    const CommandResult r = run_command("irq_train", args);
    EXPECT_EQ(r.status, 0) << r.err;
    return r.err;
  };
  const auto bases = [&] {
    int count = 0;
    for (const auto& entry : fs::directory_iterator(dir_.path())) count += entry.path().extension() == ".irq";
    return count;
  };
  EXPECT_EQ(run("a", {}).find("(cached)"), std::string::npos);
  EXPECT_EQ(run("b", mse).find("(cached)"), std::string::npos);
  EXPECT_EQ(bases(), 2);
  const std::string again = run("c", mse);
  EXPECT_NE(again.find("-exact-optimum-mse-consistent-"), std::string::npos) << again;
  EXPECT_NE(again.find("(cached)"), std::string::npos) << again;
  EXPECT_EQ(bases(), 2);
  const std::string logged = read_log(dir_ / "b/log.jsonl").at(0).at("command");
  EXPECT_NE(logged.find(" --lambda 0.1 --entropy exact --icq-ties mse --icq-search exact --icq-consistent --recipe "),
            std::string::npos)  // without --n, which would be refused
      << logged;
}

// Whatever a run fails at, the folders that it made for --out are gone again; a folder that was there stays as it was.
TEST_F(TrainErrors, FailuresLeaveNoFolder) {
  const std::string out = dir_ / "new/er/run";
  write_bytes(dir_ / "empty.json", "");
  for (const Args& bad : {Args{"--resume"}, Args{"--data", dir_ / "empty.json"}, Args{"--memory-limit", "10K"},
                          Args{"--holdout", "50"}, Args{"--eval-every", "1", "--holdout", "0"}}) {
    EXPECT_NE(train(bad + Args{"--steps", "1", "--out", out}).status, 0);
    EXPECT_FALSE(fs::exists(dir_ / "new")) << bad[0];
  }
  const auto contents = [](const std::string& folder) {
    std::map<std::string, std::string> files;
    for (const auto& entry : fs::directory_iterator(folder))
      if (entry.is_regular_file()) files[entry.path().filename()] = read_bytes(entry.path());
    return files;
  };
  fs::create_directory(dir_ / "old");
  write_bytes(dir_ / "old/notes.txt", "mine");
  EXPECT_EQ(train({"--resume", "--steps", "1", "--out", dir_ / "old"}).status, 1);
  EXPECT_EQ(contents(dir_ / "old").size(), 1u);

  fs::create_directory(dir_ / "models");
  fs::copy_file(shared("model.bin"), dir_ / "models/m.bin");
  const auto run = [&](const Args& more) {
    Args args = command(more + Args{"--steps", "2", "--out", dir_ / "run"});
    args[0] = dir_ / "models/m.bin";
    return run_command("irq_train", args);
  };
  ASSERT_EQ(run({}).status, 0);
  const auto before = contents(dir_ / "run"), models = contents(dir_ / "models");
  for (const Args& other : {Args{"--lr", "0.5"}, Args{"--lambda", "0.2"}, Args{"--bits", "2"}}) {
    EXPECT_EQ(run(other + Args{"--resume"}).status, 1);
    EXPECT_EQ(contents(dir_ / "run"), before) << other[0];
    EXPECT_EQ(contents(dir_ / "models"), models) << other[0];
  }
  const std::string state = read_bytes(dir_ / "run/train.state");
  write_bytes(dir_ / "run/train.state", state.substr(0, state.size() / 2));
  const auto cut = contents(dir_ / "run");
  EXPECT_NE(complaint(run({"--resume"})).find("training state is cut short"), std::string::npos);
  EXPECT_EQ(contents(dir_ / "run"), cut);
}

// The advice of each complaint is followed, and works.
TEST_F(TrainErrors, ResultWithoutItsState) {
  const std::string out = dir_ / "run", found = "\n  found   : " + out +
                                                "/adapter.lora, without the train.state that "
                                                "--resume goes on from\n  try     : --overwrite (start again), or "
                                                "another --out";
  trained({"--steps", "1", "--out", out});
  fs::remove(out + "/train.state");
  expect_complaint(train({"--steps", "1", "--out", out, "--resume"}), out + ": nothing to resume" + found);
  expect_complaint(train({"--steps", "1", "--out", out}), out + ": a finished run is there" + found);
  trained({"--steps", "1", "--out", out, "--overwrite"});
}

// Resuming a finished run prints the result again; the log grows only when something runs, or where its end is missing.
TEST_F(TrainErrors, ResumingAFinishedRunLeavesItsLog) {
  const std::string out = dir_ / "run", log = out + "/log.jsonl";
  const std::string result = trained({"--steps", "2", "--out", out}).out, text = read_bytes(log);
  for (int i = 0; i < 2; ++i) EXPECT_EQ(trained({"--steps", "2", "--out", out, "--resume"}).out, result);
  EXPECT_EQ(read_bytes(log), text);
  write_bytes(log, text.substr(0, text.rfind("{\"step\": 2, \"finished\"")));  // killed in its last evaluation
  trained({"--steps", "2", "--out", out, "--resume"});
  const nlohmann::json end = read_log(log).back();
  EXPECT_TRUE(end.contains("finished"));
  EXPECT_EQ(end.at("peak_bytes"),
            nlohmann::json::parse(text.substr(text.rfind("{\"step\": 2, \"finished\""))).at("peak_bytes"))
      << "of the whole run, not of its last evaluation";
  trained({"--steps", "3", "--out", out, "--resume"});
  EXPECT_EQ(step_losses(log).size(), 3u);
}

// Told at the start: with the state of step 1 saved, the disk would be full at the second one.
TEST_F(TrainErrors, DiskTooSmallForTheRun) {
  trained({"--steps", "1", "--out", dir_ / "large"});
  const auto state = static_cast<int64_t>(fs::file_size(dir_ / "large/train.state"));
  const std::string disk = dir_ / "disk";
  fs::create_directory(disk);
  const std::string size = strf("size=%ld", state + 65536);
  if (mount("tmpfs", disk.c_str(), "tmpfs", 0, size.c_str()) != 0)
    GTEST_SKIP() << "a small file system cannot be mounted here";
  const CommandResult r = train({"--steps", "3", "--save-every", "1", "--out", disk + "/run"});
  umount(disk.c_str());
  expect_part(r, "irq_train: " + disk + "/run: adapter.lora and train.state: not enough disk space to write it\n");
  EXPECT_EQ(r.err.find("step 1/3"), std::string::npos) << r.err;
}

// A batch beyond all bounds is planned in little memory (2.4 GB before), and refused by the plan.
TEST_F(TrainErrors, MillionExamplesABatch) {
  RunningCommand run("irq_train",
                     command({"--batch", "1000000", "--steps", "2000", "--memory-limit", "100M", "--threads", "1",
                              "--out", dir_ / "run"}),
                     [] {
                       const rlimit limit = {uint64_t{1} << 30, uint64_t{1} << 30};
                       setrlimit(RLIMIT_DATA, &limit);  // not AS: mapping CUDA's libraries takes more than that
                     });
  const CommandResult r = run.finish();
  expect_part(r, "irq_train: out of memory: the run needs at least ");
  EXPECT_NE(r.err.find("\n  try     : --micro-batch "), std::string::npos) << r.err;
}

// Only the method that ran last has a result in the folder.
TEST_F(TrainErrors, OverwritingWithAnotherMethodTakesTheOldResultAway) {
  const std::string out = dir_ / "run";
  trained({"--steps", "1", "--out", out});
  EXPECT_TRUE(fs::exists(out + "/adapter.lora"));
  trained({"--steps", "1", "--out", out, "--overwrite", "--method", "full"});
  EXPECT_TRUE(fs::exists(out + "/model.bin"));
  EXPECT_FALSE(fs::exists(out + "/adapter.lora"));
  trained({"--steps", "1", "--out", out, "--overwrite", "--method", "lora16"});
  EXPECT_TRUE(fs::exists(out + "/adapter.lora"));
  EXPECT_FALSE(fs::exists(out + "/model.bin"));
  trained({"--steps", "2", "--out", out, "--resume", "--method", "lora16"});  // its own state is there
}

}  // namespace
}  // namespace irq
