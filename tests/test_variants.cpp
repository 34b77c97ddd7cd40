// The teaching variants: what is compared with what, that every one of them equals the CPU reference (on a GPU), and what
// irq_bench says where there is none. And the other figures that irq_bench compares: peers, the plain loop, no adapters.
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "bench/compare.h"
#include "kernels/backend.h"
#include "tests/cli_util.h"

namespace irq {
namespace {

// Column -> value of each line of a CSV table; quotes hold commas together.
std::vector<std::map<std::string, std::string>> table(const std::string& text) {
  std::istringstream in(text);
  std::vector<std::string> header;
  std::vector<std::map<std::string, std::string>> rows;
  for (std::string line; std::getline(in, line);) {
    if (line.empty() || line[0] == '#') continue;
    std::vector<std::string> fields(1);
    bool quoted = false;
    for (const char c : line) {
      if (c == '"') quoted = !quoted;
      else if (c == ',' && !quoted) fields.emplace_back();
      else fields.back() += c;
    }
    if (header.empty()) {
      header = fields;
      continue;
    }
    EXPECT_EQ(fields.size(), header.size()) << line;
    rows.emplace_back();
    for (size_t i = 0; i < fields.size() && i < header.size(); ++i) rows.back()[header[i]] = fields[i];
  }
  return rows;
}

TEST(Compare, ExactMeansEveryBit) {
  const std::vector<float> x = {1.0f, 0.0f, NAN, -2.5f};
  EXPECT_EQ(difference(x, x, 0), "");
  EXPECT_NE(difference({1.0f, -0.0f, NAN, -2.5f}, x, 0), "");
  EXPECT_NE(difference({std::nextafter(1.0f, 2.0f), 0.0f, NAN, -2.5f}, x, 0), "");
  EXPECT_NE(difference({1.0f, 0.0f, 0.0f, -2.5f}, x, 0), "");
}

TEST(Compare, ToleranceIsARelativeDistanceAndNoNanPasses) {
  const std::vector<float> x = {3.0f, 4.0f};
  EXPECT_EQ(difference({3.0f, 4.05f}, x, 0.0101), "");  // 0.05 of 5
  EXPECT_NE(difference({3.0f, 4.05f}, x, 0.0099), "");
  EXPECT_NE(difference({3.0f, NAN}, x, 10), "");
  EXPECT_NE(difference({3.0f, INFINITY}, x, 10), "");
  EXPECT_NE(difference({0.1f}, {0.0f}, 10), "");
}

class Variants : public ::testing::TestWithParam<const char*> {};
TEST_P(Variants, EqualTheReference) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  const CommandResult r = run_command("irq_bench", {GetParam(), "--variants", "--check", "--csv"});
  EXPECT_EQ(r.status, 0) << r.err << r.out;
  const auto rows = table(r.out);
  EXPECT_GE(rows.size(), 5u) << r.out;  // four variants and the production kernel
  for (const auto& row : rows) EXPECT_EQ(row.at("result"), "right") << row.at("variant");
  ASSERT_FALSE(rows.empty());
  EXPECT_EQ(rows.back().at("variant"), "production");
}
INSTANTIATE_TEST_SUITE_P(Ops, Variants, ::testing::Values("nfk_dequant", "icq_search", "attention_fwd", "nfk_matmul"),
                         [](const auto& info) { return std::string(info.param); });

TEST(VariantsFlag, SaysWhatItNeeds) {
  const CommandResult other = run_command("irq_bench", {"rope", "--variants"});
  EXPECT_EQ(other.status, 2);
  EXPECT_NE(other.err.find("nfk_dequant"), std::string::npos) << other.err;
  EXPECT_EQ(run_command("irq_bench", {"nfk_dequant", "--variants", "--device", "cpu"}).status, 2);
  EXPECT_EQ(run_command("irq_bench", {"nfk_dequant", "--variants", "--shape", "1"}).status, 2);
  EXPECT_EQ(run_command("irq_bench", {"nfk_dequant", "--check"}).status, 2);
  if (cuda_unavailable_reason().empty()) return;
  const CommandResult r = run_command("irq_bench", {"nfk_dequant", "--variants"});
  EXPECT_EQ(r.status, 1);
  EXPECT_NE(r.err.find(cuda_unavailable_reason()), std::string::npos) << r.err;
}

// The bench itself compares the shifts of the engine's search with the loop's, bit for bit, and fails if one differs.
TEST(BenchPlainLoop, FindsTheSameShifts) {
  const CommandResult r =
      run_command("irq_bench", {"icq_search", "--shape", "fp32=0", "--device", "cpu", "--repeats", "1", "--csv"});
  ASSERT_EQ(r.status, 0) << r.err;
  const auto rows = table(r.out);
  ASSERT_EQ(rows.size(), 3u);  // 4, 3 and 2 bits
  for (const auto& row : rows) EXPECT_NE(row.at("peers").find("x plain loop"), std::string::npos) << row.at("peers");
}

CommandResult swiglu_with_peers(const std::string& json) {
  const TempDir dir;
  std::ofstream(dir / "peers.json") << json;
  return run_command("irq_bench", {"swiglu_fwd", "--device", "cpu", "--rows", "8", "--repeats", "1", "--csv", "--peers",
                                   dir / "peers.json"});
}

TEST(BenchPeers, RatioIsTheirTimeOverOurs) {
  const auto time = [](const char* shape, const char* peer, double us) {
    return strf(R"({"op": "swiglu_fwd", "shape": "%s", "peer": "%s", "us": %g})", shape, peer, us);
  };
  const CommandResult plain = swiglu_with_peers(R"({"device": "CPU", "results": []})");
  ASSERT_EQ(plain.status, 0) << plain.err;
  const auto without = table(plain.out);
  ASSERT_EQ(without.size(), 1u);
  EXPECT_EQ(without[0].at("peers"), "-");
  const std::string shape = without[0].at("shape"), first = shape.substr(0, shape.find(','));
  const CommandResult r = swiglu_with_peers(
      strf(R"({"device": "CPU", "results": [%s, %s, %s]})", time(shape.c_str(), "one", 1e6).c_str(),
           time(first.c_str(), "two", 3e6).c_str(), time((first + "0").c_str(), "another shape", 1).c_str()));
  ASSERT_EQ(r.status, 0) << r.err;
  const auto row = table(r.out).at(0);
  double one = 0, two = 0;
  ASSERT_EQ(std::sscanf(row.at("peers").c_str(), "%lfx one, %lfx two", &one, &two), 2) << row.at("peers");
  EXPECT_EQ(row.at("peers").find("another"), std::string::npos);
  EXPECT_NEAR(one, 1e6 / std::stod(row.at("us")), 0.01 * one);  // three digits are printed
  EXPECT_NEAR(two, 3 * one, 0.01 * two);
}

TEST(BenchPeers, RefusesOtherDevicesAndOtherFiles) {
  const CommandResult other = swiglu_with_peers(R"({"device": "NVIDIA A100", "results": []})");
  EXPECT_EQ(other.status, 1);
  EXPECT_NE(other.err.find("NVIDIA A100"), std::string::npos) << other.err;
  for (const char* bad : {"", "[]", "{}", R"({"device": "CPU"})", R"({"device": "CPU", "results": [1]})",
                          R"({"device": "CPU", "results": [{"op": "a", "shape": "b", "peer": "c", "us": 0}]})",
                          R"({"device": "CPU", "results": [{"op": "a", "shape": "b", "peer": "c", "us": "1"}]})"})
    EXPECT_EQ(swiglu_with_peers(bad).status, 1) << bad;
  EXPECT_EQ(run_command("irq_bench", {"rope", "--device", "cpu", "--peers", "/no/such/file"}).status, 1);
}

TEST(BenchLoraRatio, IsAStepWithAdaptersOverOneWithout) {
  const CommandResult r =
      run_command("irq_bench", {"step", "--device", "cpu", "--lora-ratio", "--rows", "2x16", "--layers", "1", "--rank",
                                "8", "--steps", "2", "--warmup", "1", "--csv"});
  ASSERT_EQ(r.status, 0) << r.err;
  const auto row = table(r.out).at(0);
  const double frozen = (std::stod(row.at("frozen_ms")) + std::stod(row.at("frozen_again_ms"))) / 2;
  EXPECT_NEAR(std::stod(row.at("ratio")), std::stod(row.at("adapted_ms")) / frozen, 2e-3 * std::stod(row.at("ratio")));
  EXPECT_EQ(run_command("irq_bench", {"step", "--device", "cpu", "--lora-ratio", "--rank", "0"}).status, 2);
  EXPECT_EQ(run_command("irq_bench", {"rope", "--device", "cpu", "--lora-ratio"}).status, 2);
}

// Gradients reach the first norm through every frozen linear: the step is an error where its norm is zero. No optimizer state
// of adapters is planned.
TEST(BenchStep, RunsWithoutAdapters) {
  const auto step = [](const char* rank) {
    const CommandResult r = run_command("irq_bench", {"step", "--device", "cpu", "--rows", "2x16", "--layers", "2",
                                                      "--rank", rank, "--steps", "2", "--warmup", "1", "--csv"});
    EXPECT_EQ(r.status, 0) << r.err;
    return table(r.out).at(0);
  };
  const auto bare = step("0"), adapted = step("8");
  EXPECT_GT(std::stod(bare.at("grad_norm")), 0);
  EXPECT_EQ(bare.at("planned_bytes"), bare.at("peak_bytes"));
  EXPECT_LT(std::stod(bare.at("peak_bytes")), std::stod(adapted.at("peak_bytes")));
  EXPECT_EQ(run_command("irq_bench", {"step", "--device", "cpu", "--rank", "0", "--dropout", "0.1"}).status, 2);
}

TEST(BenchQuantize, TakesAFileOrMakesOne) {
  const TempDir dir;
  const CommandResult r = run_command(
      "irq_bench", {"quantize", "--device", "cpu", "--layers", "1", "--bits", "2", "--file", dir / "m.bin", "--csv"});
  ASSERT_EQ(r.status, 0) << r.err;
  const auto row = table(r.out).at(0);
  EXPECT_EQ(row.at("pass"), "warm");
  EXPECT_NEAR(std::stod(row.at("ratio")), std::stod(row.at("quantize_s")) / std::stod(row.at("read_s")),
              1e-2 * std::stod(row.at("ratio")));      // reading takes a tenth of a millisecond, printed to 1e-7 s
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));  // what it made is gone
  std::ofstream(dir / "m.bin") << "no model";
  EXPECT_EQ(run_command("irq_bench", {"quantize", "--device", "cpu", "--file", dir / "m.bin"}).status, 1);
  EXPECT_TRUE(std::filesystem::exists(dir / "m.bin"));  // what was there stays
  EXPECT_EQ(run_command("irq_bench", {"rope", "--device", "cpu", "--file", "x.bin"}).status, 2);
}

}  // namespace
}  // namespace irq
