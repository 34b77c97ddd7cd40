// irq_bench on the CPU with tiny shapes: it times every op there is, its step really trains, and its figures follow from
// each other.
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <sstream>

#include "tests/cli_util.h"

namespace irq {
namespace {

// The fields of a CSV line; quotes hold commas together.
std::vector<std::string> fields(const std::string& line) {
  std::vector<std::string> out(1);
  bool quoted = false;
  for (const char c : line) {
    if (c == '"') quoted = !quoted;
    else if (c == ',' && !quoted) out.emplace_back();
    else out.back() += c;
  }
  return out;
}

using CsvRow = std::map<std::string, std::string>;
std::vector<CsvRow> csv_rows(const std::string& text) {
  std::istringstream in(text);
  std::vector<std::string> header;
  std::vector<CsvRow> rows;
  for (std::string line; std::getline(in, line);) {
    if (line.empty() || line[0] == '#') continue;
    const std::vector<std::string> f = fields(line);
    if (header.empty()) {
      header = f;
      continue;
    }
    EXPECT_EQ(f.size(), header.size()) << line;
    CsvRow row;
    for (size_t i = 0; i < f.size() && i < header.size(); ++i) row[header[i]] = f[i];
    rows.push_back(row);
  }
  return rows;
}

TEST(Bench, TimesEveryOp) {
  const CommandResult r =
      run_command("irq_bench", {"all", "--device", "cpu", "--rows", "64", "--repeats", "1", "--csv"});
  ASSERT_EQ(r.status, 0) << r.err;
  std::set<std::string> timed;
  for (CsvRow& row : csv_rows(r.out)) {
    timed.insert(row["op"]);
    EXPECT_GT(std::stod(row["us"]), 0) << row["op"];
    EXPECT_GT(std::stod(row["rate"]), 0) << row["op"];
    EXPECT_NEAR(std::stod(row["fraction_of_ceiling"]), std::stod(row["rate"]) / std::stod(row["ceiling"]),
                1e-4 * std::stod(row["fraction_of_ceiling"]))  // printed with six digits
        << row["op"];
  }
#define IRQ_OP(name, ...) EXPECT_TRUE(timed.count(#name)) << #name << " is not timed";
#include "kernels/ops.inc"
#undef IRQ_OP
}

TEST(Bench, TakesOneShape) {
  const CommandResult r =
      run_command("irq_bench", {"matmul", "--device", "cpu", "--shape", "12x20x16", "--repeats", "1", "--csv"});
  ASSERT_EQ(r.status, 0) << r.err;
  const std::vector<CsvRow> rows = csv_rows(r.out);
  ASSERT_EQ(rows.size(), 1u) << r.out;
  EXPECT_EQ(rows[0].at("shape"), "given,12x20x16,NT");
}

TEST(Bench, StepTrainsInExactlyThePlannedMemory) {
  for (const char* residency : {"packed", "cached"}) {
    const CommandResult r = run_command(
        "irq_bench", {"step", "--device", "cpu", "--rows", "2x16", "--layers", "1", "--rank", "8", "--steps", "2",
                      "--warmup", "1", "--residency", residency, "--dropout", "0.1", "--csv"});
    ASSERT_EQ(r.status, 0) << r.err;
    const std::vector<CsvRow> rows = csv_rows(r.out);
    ASSERT_EQ(rows.size(), 1u) << r.out;
    const CsvRow& row = rows[0];
    EXPECT_EQ(row.at("residency"), residency);
    EXPECT_EQ(row.at("planned_bytes"), row.at("peak_bytes"));
    EXPECT_GT(std::stod(row.at("grad_norm")), 0);
    EXPECT_NEAR(std::stod(row.at("tokens_per_s")), 32e3 / std::stod(row.at("ms")),
                0.01 * std::stod(row.at("tokens_per_s")));
    // The tiny model's one layer: 4 FLOPs per weight (no weight gradients), 6 per adapter weight, 7 s C in attention, 4 V C
    // in the head, which every token reaches here.
    const double weights = 4 * 256 * 256 + 3 * 256 * 688, adapters = 8 * (4 * (256 + 256) + 3 * (256 + 688));
    const double flops = 32 * (4 * weights + 6 * adapters + 7.0 * 16 * 256 + 4.0 * 512 * 256);
    const double tflops = flops / std::stod(row.at("ms")) / 1e9;
    EXPECT_NEAR(std::stod(row.at("tflops")), tflops, 1e-5 + 0.01 * tflops);
  }
}

// 6 sequences of 20, which begin with 8 or 11 tokens in turns: 19 rows for all of them, and their own.
TEST(Bench, StepComputesTemplatesOnce) {
  const auto row_with = [](std::vector<std::string> more) {
    std::vector<std::string> args = {"step", "--device",   "cpu", "--rows",  "6x20",        "--layers",
                                     "1",    "--rank",     "8",   "--steps", "1",           "--warmup",
                                     "1",    "--labelled", "0.4", "--csv",   "--templates", "8,11"};
    args.insert(args.end(), more.begin(), more.end());
    const CommandResult r = run_command("irq_bench", args);
    EXPECT_EQ(r.status, 0) << r.err;
    const std::vector<CsvRow> rows = csv_rows(r.out);
    return rows.empty() ? CsvRow{} : rows[0];
  };
  const CsvRow shared = row_with({}), own = row_with({"--share-prefixes", "off"}),
               masked = row_with({"--dropout", "0.1"});
  EXPECT_EQ(shared.at("computed_rows"), "82");
  EXPECT_EQ(own.at("computed_rows"), "120");
  EXPECT_EQ(masked.at("computed_rows"), "120");
  EXPECT_EQ(shared.at("planned_bytes"), shared.at("peak_bytes"));
  EXPECT_NEAR(std::stod(shared.at("loss")), std::stod(own.at("loss")), 2e-5 * std::stod(own.at("loss")));
  EXPECT_NEAR(std::stod(shared.at("tokens_per_s")), 120e3 / std::stod(shared.at("ms")),
              0.01 * std::stod(shared.at("tokens_per_s")));
  const CommandResult r = run_command("irq_bench", {"step", "--device", "cpu", "--rows", "2x8", "--templates", "8"});
  EXPECT_EQ(r.status, 2);
  EXPECT_NE(r.err.find("--templates: sequences of 8 tokens cannot begin with 8"), std::string::npos) << r.err;
}

TEST(Bench, DecodingTakesExactlyThePlannedMemory) {
  const CommandResult r = run_command("irq_bench", {"decode", "--device", "cpu", "--layers", "1", "--rank", "8",
                                                    "--rows", "2", "--context", "20", "--steps", "3", "--csv"});
  ASSERT_EQ(r.status, 0) << r.err;
  const std::vector<CsvRow> rows = csv_rows(r.out);
  ASSERT_EQ(rows.size(), 1u) << r.out;
  const CsvRow& row = rows[0];
  EXPECT_EQ(row.at("planned_bytes"), row.at("peak_bytes"));
  EXPECT_NEAR(std::stod(row.at("tokens_per_s")), 2e3 / std::stod(row.at("ms")),
              0.01 * std::stod(row.at("tokens_per_s")));
  // Codes and 8-bit scales and shifts, adapters and head in F32 here, and 21.5 keys on average of two sequences.
  const double weights = 4 * 256 * 256 + 3 * 256 * 688, adapters = 8 * (4 * (256 + 256) + 3 * (256 + 688));
  const double bytes = weights * (0.5 + 2.0 / 64 + 8.0 / 16384) + 4 * (adapters + 512 * 256 + 2 * 2 * 21.5 * 256);
  EXPECT_NEAR(std::stod(row.at("bytes")), bytes, 1e-3 * bytes);
}

TEST(Bench, OneBatchIsLearntByHeart) {
  const std::vector<const char*> args = {"step",    "--device", "cpu",    "--rows", "2x16",     "--layers", "1",
                                         "--steps", "30",       "--rank", "8",      "--warmup", "1",        "--csv"};
  const auto loss = [&](bool overfit) {
    std::vector<std::string> all(args.begin(), args.end());
    if (overfit) all.push_back("--overfit");
    const CommandResult r = run_command("irq_bench", all);
    EXPECT_EQ(r.status, 0) << r.err;
    return std::stod(csv_rows(r.out).at(0).at("loss"));
  };
  // 512 tokens drawn evenly cost ln 512 = 6.24 nats each; new ones in every step stay there, 32 known ones do not.
  EXPECT_LT(loss(true), 5.5);
  EXPECT_GT(loss(false), 6.0);
}

TEST(Bench, ProfileNamesTheOps) {
  const CommandResult r =
      run_command("irq_bench", {"step", "--device", "cpu", "--rows", "2x8", "--layers", "1", "--rank", "4", "--steps",
                                "1", "--warmup", "1", "--micro-batch", "1", "--recompute", "block", "--profile"});
  ASSERT_EQ(r.status, 0) << r.err;
  for (const char* op : {"matmul", "attention_bwd", "adamw", "iec_fold_all"})
    EXPECT_NE(r.out.find(op), std::string::npos) << op;
}

TEST(Bench, SaysWhatIsWrong) {
  EXPECT_EQ(run_command("irq_bench", {}).status, 2);
  const CommandResult typo = run_command("irq_bench", {"swiglu_fw", "--device", "cpu"});
  EXPECT_EQ(typo.status, 2);
  EXPECT_NE(typo.err.find("swiglu_fwd"), std::string::npos) << typo.err;
  EXPECT_EQ(run_command("irq_bench", {"step", "--device", "cpu", "--rows", "12"}).status, 2);
  EXPECT_EQ(run_command("irq_bench", {"rope", "--device", "cpu", "--shape", "no such shape"}).status, 2);
  EXPECT_EQ(run_command("irq_bench", {"all", "--device", "cpu", "--model", "9b"}).status, 2);
}

}  // namespace
}  // namespace irq
