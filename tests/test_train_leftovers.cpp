// What irq_train refuses because it would change nothing, and what a run leaves in its folder.
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
      {{"--bits", "3", "--entropy", "fp32"}, "--entropy", kReleasedBits},
      {{"--dtype", "f16"}, "--dtype", "--method ir-qlora writes no model.bin"},
      {{"--source-len", "9"}, "--source-len", "the data has no prompts and answers"},
      {{"--holdout", "0", "--eval-every", "1"}, "--eval-every", "there is no held-out data"},
  };
  const Args out = {"--steps", "1", "--out", dir_ / "run"};
  for (const auto& c : cases)
    expect_complaint(train(c.args + out), c.flag + " has no effect here: " + c.why + "\n  try     : without " + c.flag,
                     2);
  for (const Args& search : {Args{"--lambda", "0.1"}, Args{"--n", "100"}, Args{"--entropy", "exact"}}) {
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
