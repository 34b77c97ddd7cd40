// Every form of data file trains, with the tokenizer that lies beside the model.
#include "src/text/instruct.h"
#include "tests/train_fixture.h"

namespace irq {
namespace {

std::string demo_file(const std::string& name) {
  return (std::filesystem::path(__FILE__).parent_path().parent_path() / "tools/demo" / name).string();
}

class TrainData : public testing::Test {
 protected:
  void SetUp() override {
    setenv("OMP_WAIT_POLICY", "passive", 1);
    write_bytes(dir_ / "config.json", tiny_config_text(4096));
    std::filesystem::copy_file(demo_file("tokenizer.model"), dir_ / "tokenizer.model");
  }
  CommandResult train(const Args& more) {
    return run_command("irq_train", Args{dir_ / "config.json", "--rank", "8", "--batch", "2", "--steps", "2",
                                         "--device", "cpu", "--out", dir_ / "run", "--overwrite"} +
                                        more);
  }
  // Trains on a file with this content; what it is taken for is said.
  CommandResult trained(const std::string& name, const std::string& content, const std::string& form,
                        const Args& more = {}) {
    write_bytes(dir_ / name, content);
    const CommandResult r = train(more + Args{"--data", dir_ / name});
    EXPECT_EQ(r.status, 0) << r.err;
    EXPECT_NE(r.err.find((dir_ / name) + ": "), std::string::npos) << r.err;
    EXPECT_NE(r.err.find("(" + form + ")"), std::string::npos) << r.err;
    EXPECT_EQ(step_losses(dir_ / "run/log.jsonl").size(), 2u);
    // Random weights of deviation 0.02: logits near 0, so that each of 4096 ids has nearly the same probability.
    for (const double loss : step_losses(dir_ / "run/log.jsonl")) EXPECT_NEAR(loss, std::log(4096), 0.3);
    return r;
  }
  TempDir dir_;
};

const std::string kAlpaca = R"([{"instruction": "Define the word.", "input": "grass", "output": "A green plant."},
  {"instruction": "Say hello.", "input": "", "output": "Hello."}, {"instruction": "Count.", "output": "One two three."}])";

TEST_F(TrainData, EveryForm) {
  trained("train.jsonl",
          "{\"input\": \"Is grass green?\", \"output\": \"Yes.\"}\n{\"input\": \"2 + 2\", \"output\": \"4\"}\n",
          name_of(DataForm::input_output));
  trained("chat.jsonl",
          R"({"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello there."}, )"
          R"({"role": "user", "content": "And?"}, {"role": "assistant", "content": "No more."}]})",
          name_of(DataForm::chat));
  trained("story.txt",
          "The meaning of grass is a plant. A plant is green. It grows in the sun, and the sun is a star.\n",
          name_of(DataForm::text), {"--window", "16"});
  trained("alpaca.json", kAlpaca, name_of(DataForm::alpaca));
  write_tokens(dir_ / "data.tok", 100, 1);
  trained("ids.bin", read_bytes(dir_ / "data.tok"), name_of(DataForm::tokens), {"--window", "16"});
}

// Alpaca's prompts begin alike: fewer rows are computed, for the same losses but for F32 rounding of some hundred terms.
TEST_F(TrainData, PromptsThatBeginAlikeAreComputedOnce) {
  const std::string note = "prompts that begin alike are computed once: ";
  const auto run = [&](const Args& options) {
    return trained("alpaca.json", kAlpaca, name_of(DataForm::alpaca), Args{"--batch", "3", "--holdout", "0"} + options);
  };
  const auto losses = [&] { return step_losses(dir_ / "run/log.jsonl"); };
  const auto told = [&](const CommandResult& r) {
    EXPECT_NE(r.err.find(" bytes were the peak"), std::string::npos) << r.err;
    return r.err.find(note) != std::string::npos;
  };
  EXPECT_FALSE(told(run({"--dropout", "0", "--share-prefixes", "off"})));
  const std::vector<double> own = losses();
  for (const char* share : {"auto", "on"}) {
    EXPECT_TRUE(told(run({"--dropout", "0", "--share-prefixes", share})));
    ASSERT_EQ(losses().size(), own.size());
    for (size_t i = 0; i < own.size(); ++i) EXPECT_NEAR(losses()[i], own[i], 1e-5 * own[i]);
  }
  // Under dropout the examples have masks of their own unless told otherwise.
  const std::string advice = "note: prompts begin alike; --share-prefixes on would compute ";
  const CommandResult masked = run({"--dropout", "0.1"});
  EXPECT_FALSE(told(masked));
  EXPECT_NE(masked.err.find(advice), std::string::npos) << masked.err;
  EXPECT_EQ(run({"--dropout", "0.1", "--share-prefixes", "off"}).err.find(advice), std::string::npos);
  EXPECT_TRUE(told(run({"--dropout", "0.1", "--share-prefixes", "on"})));
  // They are part of the run then: what shares a mask must not change on the way. Without dropout it is only another order.
  const Args more = {"--batch", "3", "--holdout", "0", "--data", dir_ / "alpaca.json", "--steps", "4", "--resume"};
  for (const Args& other :
       {Args{"--dropout", "0.1"}, Args{"--dropout", "0.1", "--share-prefixes", "on", "--micro-batch", "2"}}) {
    const CommandResult refused =
        run_command("irq_train",
                    Args{dir_ / "config.json", "--rank", "8", "--device", "cpu", "--out", dir_ / "run"} + more + other);
    EXPECT_EQ(refused.status, 1);
    EXPECT_NE(refused.err.find("that run had other options"), std::string::npos) << refused.err;
  }
}

TEST_F(TrainData, FindsTrainJsonBesideTheModel) {
  write_bytes(dir_ / "train.json", kAlpaca);
  const CommandResult r = train({});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.err.find((dir_ / "train.json") + ": 3 examples"), std::string::npos) << r.err;
}

TEST_F(TrainData, EvalDataIsAnotherFile) {
  write_bytes(dir_ / "held.txt", "A plant is green, and grass is a plant.\n");
  const CommandResult r =
      trained("alpaca.json", kAlpaca, name_of(DataForm::alpaca), {"--eval-data", dir_ / "held.txt", "--window", "16"});
  EXPECT_EQ(held_out_losses(dir_ / "run/log.jsonl").size(), 2u);
  EXPECT_NE(r.out.find("held-out loss "), std::string::npos);
  const std::string command = read_log(dir_ / "run/log.jsonl")[0]["command"];
  for (const std::string& part :
       {"--eval-data " + (dir_ / "held.txt"), std::string("--source-len 384"), std::string("--window 16")})
    EXPECT_NE(command.find(part), std::string::npos) << command;
}

TEST_F(TrainData, NotesWhatIsCutAndWhatIsTooLong) {
  const CommandResult cut =
      trained("alpaca.json", kAlpaca, name_of(DataForm::alpaca), {"--source-len", "10", "--target-len", "3"});
  EXPECT_NE(cut.err.find("note: " + (dir_ / "alpaca.json") +
                         ": 3 of 3 examples have prompts cut at --source-len 10 tokens\n"),
            std::string::npos)
      << cut.err;
  EXPECT_NE(cut.err.find(" examples have answers cut at --target-len 3 tokens; they lose their end-of-text mark\n"),
            std::string::npos)
      << cut.err;
  EXPECT_EQ(cut.err.find("this model was made for"), std::string::npos) << cut.err;
  const CommandResult longer = trained("alpaca.json", kAlpaca, name_of(DataForm::alpaca));
  EXPECT_NE(
      longer.err.find("note: --source-len 384 and --target-len 128 allow examples longer than the 64 tokens this model "
                      "was made for; the longest has "),
      std::string::npos)
      << longer.err;
  const CommandResult window = trained("story.txt", "A plant is green.", name_of(DataForm::text), {"--window", "65"});
  EXPECT_NE(window.err.find("note: --window 65 allow"), std::string::npos) << window.err;
}

}  // namespace
}  // namespace irq
