// The trained model in tools/demo, end to end: tokenizer, file, forward pass in F32 on the CPU, greedy search, text.
#include <cmath>

#include "tests/train_fixture.h"

namespace irq {
namespace {

std::string demo_file(const std::string& name) {
  return (std::filesystem::path(__FILE__).parent_path().parent_path() / "tools/demo" / name).string();
}

// The text that this model gave when it was trained. Greedy search takes the likeliest token, so rounding can change the
// text only where two tokens are as likely to within 1e-6; a wrong kernel, weight order, position or token changes it.
TEST(DemoModel, GreedyContinuationIsGolden) {
  const CommandResult r = run_command("irq_generate", {demo_file("model.bin"), "--prompt", "The opposite of",
                                                       "--max-tokens", "24", "--device", "cpu", "--quiet"});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_EQ(r.out, " unstable is stable. Unstable means not stable or not firm or conditioned. For example:\n");
}

// Mean loss per token of a model on a text.
double loss_of(const std::string& model, const std::string& text, const std::string& json) {
  const CommandResult r =
      run_command("irq_eval", {model, "--loss", text, "--window", "128", "--device", "cpu", "--quiet", "--json", json});
  EXPECT_EQ(r.status, 0) << r.err;
  return nlohmann::json::parse(read_text(json)).at("loss").at("nll");
}

// The answers of the held-out instructions as one running text. Measured when the test was written: 4.063 in bf16; 4.110
// in 4 bits with ICQ (4.124 without), 4.319 in 3 bits, 5.287 in 2. The bounds leave room for another rounding of the
// forward pass (1e-3), not for a wrong code, scale or tau.
TEST(DemoModel, FourBitsCostLittle) {
  setenv("OMP_WAIT_POLICY", "passive", 1);
  const TempDir dir;
  std::string text;
  for (const nlohmann::json& example : nlohmann::json::parse(read_text(demo_file("heldout.json"))))
    if (const std::string answer = example.at("output"); std::count(answer.begin(), answer.end(), ' ') > 2)
      text += (text.empty() ? "" : " ") + answer;
  write_bytes(dir / "text.txt", text);
  std::filesystem::copy_file(demo_file("tokenizer.model"), dir / "tokenizer.model");
  const double plain = loss_of(demo_file("model.bin"), dir / "text.txt", dir / "plain.json");
  EXPECT_NEAR(plain, 4.063, 0.002);
  const auto quantized = [&](const Args& options) {
    const CommandResult r =
        run_command("irq_quantize", Args{demo_file("model.bin"), dir / "q.irq", "--device", "cpu"} + options);
    EXPECT_EQ(r.status, 0) << r.err;
    return loss_of(dir / "q.irq", dir / "text.txt", dir / "q.json");
  };
  const double four = quantized({"--bits", "4"}), two = quantized({"--bits", "2"});
  EXPECT_GT(four, plain + 0.02);
  EXPECT_LT(four, plain + 0.07);
  EXPECT_LT(quantized({"--bits", "4", "--no-icq"}), plain + 0.09);
  EXPECT_GT(two, plain + 0.8);
}

}  // namespace
}  // namespace irq
