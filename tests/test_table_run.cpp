// Whole runs of irq_table on a model of 15 thousand weights: cut anywhere, moved, told something else, failing.
#include "tests/table_fixture.h"

namespace irq {
namespace {

TEST_F(Table, FiguresAreThoseOfTheRuns) {
  const Json& rows = undisturbed();
  ASSERT_EQ(rows.size(), 2u);
  for (const Json& row : rows) {
    EXPECT_EQ(row.at("seeds"), Json({1, 2}));
    EXPECT_EQ(row.at("cells").size(), 2u);
    const Json& after = row.at("figures").at("loss_after");
    const double a = after.at("values").at(0), b = after.at("values").at(1);
    EXPECT_NE(a, b);  // the seeds do something
    EXPECT_DOUBLE_EQ(after.at("mean"), (a + b) / 2);
    EXPECT_NEAR(after.at("sd").get<double>(), std::abs(a - b) / std::sqrt(2.0), 1e-12);
    EXPECT_LT(a, row.at("figures").at("loss_before").at("mean").get<double>());  // and training as well
  }
  // A run by hand, with the same flags, is the same run.
  const CommandResult r = run_command("irq_train", {shared("model.bin"),
                                                    "--data",
                                                    shared("data.tok"),
                                                    "--eval-data",
                                                    held_out(),
                                                    "--window",
                                                    "24",
                                                    "--method",
                                                    "ir-qlora",
                                                    "--seed",
                                                    "2",
                                                    "--steps",
                                                    "80",
                                                    "--batch",
                                                    "4",
                                                    "--rank",
                                                    "8",
                                                    "--lr",
                                                    "0.01",
                                                    "--device",
                                                    "cpu",
                                                    "--out",
                                                    dir_ / "run"});
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_EQ(rows.at(1).at("figures").at("loss_after").at("values").at(1).get<double>(),
            held_out_losses(dir_ / "run/log.jsonl").back().second);
}

// fidelity 2.4 and 6.7: bytes of NF4 codes, 8-bit scales and shifts, worked out from the shapes.
TEST_F(Table, SizesMatchTheArithmetic) {
  const CommandResult r = run_command(
      "irq_table", {shared("model.bin"), "--eval-data", held_out(), "--window", "24", "--methods", "16-bit,nf,nf-icq",
                    "--bits", "4,2", "--device", "cpu", "--keep", "all", "--out", dir_ / "t"});
  ASSERT_EQ(r.status, 0) << r.err;
  const std::vector<std::pair<int64_t, int64_t>> shapes = {{32, 32}, {16, 32}, {16, 32}, {32, 32},
                                                           {48, 32}, {48, 32}, {32, 48}};
  int64_t weights = 0, scales = 0;
  for (const auto& [rows, cols] : shapes) {
    const int64_t blocks = (rows * cols + 63) / 64, groups = (blocks + 255) / 256;
    weights += 2 * rows * cols, scales += 2 * (blocks + 4 * groups);  // two layers
  }
  const int64_t offsets = 2 * 7 * 4;  // one f32 a matrix: the mean of its scales
  for (const Json& row : result(dir_ / "t").at("rows")) {
    const int64_t bits = row.at("bits").is_null() ? 16 : row.at("bits").get<int64_t>();
    int64_t expected = weights * bits / 8;
    if (bits < 16) expected += scales + offsets;
    if (row.at("row") == "nf-icq") expected += scales;  // the shifts are stored as the scales are, without an offset
    EXPECT_EQ(row.at("figures").at("linear_bytes").at("mean").get<double>(), static_cast<double>(expected)) << row;
    const std::string cell = row.at("row").get<std::string>() + (bits < 16 ? strf("-%ldbit", bits) : "");
    const std::string file = bits < 16 ? dir_ / ("t/cells/" + cell + "/model.irq") : shared("model.bin");
    EXPECT_EQ(row.at("figures").at("file_bytes").at("mean").get<double>(), static_cast<double>(fs::file_size(file)));
  }
  EXPECT_EQ(result(dir_ / "t").at("rows").size(), 5u);
  EXPECT_NE(r.out.find("| nf-icq |    4 |"), std::string::npos) << r.out;
}

TEST_F(Table, FinishedIsNotDoneAgain) {
  ASSERT_EQ(table(dir_ / "t").status, 0);
  const std::string before = read_text(dir_ / "t/table.md");
  const auto written = fs::last_write_time(dir_ / "t/cells/qlora-4bit-seed1/result.json");
  const CommandResult r = table(dir_ / "t");
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_EQ(r.out, before);  // times too
  EXPECT_EQ(fs::last_write_time(dir_ / "t/cells/qlora-4bit-seed1/result.json"), written);
  EXPECT_NE(r.err.find("4 of 4 cells are done"), std::string::npos) << r.err;
  EXPECT_EQ(rows(dir_ / "t"), undisturbed());
  EXPECT_TRUE(fs::exists(dir_ / "t/cells/qlora-4bit-seed1/run/adapter.lora"));
  EXPECT_FALSE(fs::exists(dir_ / "t/cells/qlora-4bit-seed1/run/train.state"));
}

// Cut in the middle of the second cell by each signal; what is finished stays, the rest goes on, the table is the same.
TEST_F(Table, GoesOnAfterEverySignal) {
  for (const int signal : {SIGINT, SIGTERM, SIGKILL}) {
    const std::string out = dir_ / strf("t%d", signal), cell = "qlora-4bit-seed2";
    RunningCommand running("irq_table", table_args(out));
    ASSERT_TRUE(running.wait_until([&] { return steps_done(out, cell) >= 10; })) << running.err();
    running.signal(signal);
    const CommandResult cut = running.finish();
    EXPECT_EQ(cut.status, signal == SIGKILL ? 128 + SIGKILL : 130) << cut.err;
    if (signal != SIGKILL) {
      EXPECT_NE(cut.err.find("irq_table: interrupted\n  done    : 1 of 4 cells\n  try     : the same command again"),
                std::string::npos)
          << cut.err;
    }
    EXPECT_FALSE(fs::exists(out + "/table.json"));
    const CommandResult r = table(out);  // at once: a tool that is still ending is waited for
    EXPECT_EQ(r.status, 0) << r.err;
    EXPECT_NE(r.err.find("resuming after step"), std::string::npos) << r.err;
    EXPECT_EQ(r.err.find("cell 1 of 4"), std::string::npos) << r.err;
    EXPECT_EQ(rows(out), undisturbed());
    EXPECT_FALSE(fs::exists(out + "/table.lock") || fs::exists(out + "/children.lock"));
  }
}

// Another machine: the folder under another name, base and data somewhere else, the former ones gone.
TEST_F(Table, GoesOnElsewhere) {
  fs::create_directories(dir_ / "here");
  const auto args_in = [&](const std::string& place, const std::string& out) {
    Args args = table_args(out);
    for (const char* name : {"model.bin", "data.tok", "held_out.tok"})
      std::replace(args.begin(), args.end(), shared(name), place + "/" + name);
    return args;
  };
  for (const std::string& file : {shared("model.bin"), shared("data.tok"), held_out()}) fs::copy(file, dir_ / "here");
  RunningCommand running("irq_table", args_in(dir_ / "here", dir_ / "here/t"));
  ASSERT_TRUE(running.wait_until([&] { return steps_done(dir_ / "here/t", "qlora-4bit-seed2") >= 10; }))
      << running.err();
  running.signal(SIGINT);
  EXPECT_EQ(running.finish().status, 130);
  fs::rename(dir_ / "here", dir_ / "there");
  const CommandResult r = run_command("irq_table", args_in(dir_ / "there", dir_ / "there/t"));
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.err.find("resuming after step"), std::string::npos) << r.err;
  EXPECT_EQ(rows(dir_ / "there/t"), undisturbed());
}

TEST_F(Table, TwoDoNotWorkInOneFolder) {
  RunningCommand running("irq_table", table_args(dir_ / "t"));
  ASSERT_TRUE(running.wait_until([&] { return steps_done(dir_ / "t", "qlora-4bit-seed1") >= 1; })) << running.err();
  const CommandResult second = table(dir_ / "t");
  EXPECT_EQ(second.status, 1);
  EXPECT_EQ(second.err, "irq_table: " + (dir_ / "t") + ": another irq_table is working here\n" +
                            "  try     : wait for it, or another --out\n");
  EXPECT_EQ(running.finish().status, 0);
}

TEST_F(Table, OtherOptionsAreRefused) {
  const Args small = {"--methods", "qlora", "--seeds", "1", "--steps", "3"};
  ASSERT_EQ(table(dir_ / "t", small).status, 0);
  CommandResult r = table(dir_ / "t", small + Args{"--steps", "4"});
  EXPECT_EQ(r.status, 1);
  EXPECT_NE(r.err.find("qlora-4bit-seed1: this cell was made with other options\n  then    : flags: --steps 3 "),
            std::string::npos)
      << r.err;
  EXPECT_NE(r.err.find("\n  now     : flags: --steps 4 "), std::string::npos) << r.err;
  EXPECT_NE(r.err.find("\n  try     : --overwrite"), std::string::npos) << r.err;
  write_tokens(dir_ / "other.tok", 1200, 3);
  r = table(dir_ / "t", small + Args{"--data", dir_ / "other.tok"});
  EXPECT_EQ(r.status, 1);
  EXPECT_NE(r.err.find("\n  then    : data: "), std::string::npos) << r.err;
  // What changes time and memory alone is not another cell.
  EXPECT_EQ(table(dir_ / "t", small + Args{"--micro-batch", "2", "--save-every", "1"}).status, 0);
  r = table(dir_ / "t", small + Args{"--steps", "4", "--overwrite"});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_EQ(result(dir_ / "t").at("rows").at(0).at("cells").at("qlora-4bit-seed1").at("train").at("steps"), 4);
}

TEST_F(Table, OtherEvaluationNeedsAWord) {
  const Args small = {"--methods", "16-bit,qlora", "--seeds", "1", "--steps", "3"};
  ASSERT_EQ(table(dir_ / "t", small).status, 0);
  const Args other = small + Args{"--eval", "--precision f32"};
  CommandResult r = table(dir_ / "t", other);
  EXPECT_EQ(r.status, 1);
  EXPECT_NE(r.err.find("16-bit: this cell was evaluated with other options"), std::string::npos) << r.err;
  EXPECT_NE(r.err.find("--reevaluate"), std::string::npos) << r.err;
  r = table(dir_ / "t", other + Args{"--reevaluate"});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_EQ(r.err.find(": train"), std::string::npos) << r.err;
}

// One cell fails; the others are done; the report has its command and what the tool said; the same command tries it again.
TEST_F(Table, FailureOfOneCell) {
  const Args args = {"--methods", "qlora,lora16", "--seeds", "1", "--steps", "3", "--quiet"};
  CommandResult r = table(dir_ / "t", args + Args{"--set", "qlora:--target-modules nonsense"});
  EXPECT_EQ(r.status, 1);
  EXPECT_EQ(
      r.err.find("irq_table: cell qlora-4bit-seed1 failed: the tool ended with status 2\n  command : ./irq_train "), 0u)
      << r.err;
  EXPECT_NE(r.err.find("--target-modules nonsense"), std::string::npos) << r.err;
  EXPECT_NE(r.err.find("\n    irq_train: --target-modules: unknown linear 'nonsense'"), std::string::npos) << r.err;
  EXPECT_NE(r.err.find("irq_table: 1 of 2 cells failed: qlora-4bit-seed1\n"), std::string::npos) << r.err;
  EXPECT_NE(r.out.find("failed:** qlora-4bit-seed1"), std::string::npos) << r.out;
  EXPECT_EQ(result(dir_ / "t").at("rows").at(0).at("row"), "lora16");
  EXPECT_EQ(result(dir_ / "t").at("rows").at(0).at("cells").size(), 1u);
  r = table(dir_ / "t",
            args + Args{"--set", "qlora:--target-modules q_proj"});  // nothing was done with the former flags
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_EQ(r.err, "");
}

TEST_F(Table, StopsOnErrorWhereAsked) {
  const CommandResult r = table(dir_ / "t", {"--methods", "lora16,qlora", "--seeds", "1", "--steps", "3", "--train",
                                             "--target-modules nonsense", "--stop-on-error"});
  EXPECT_EQ(r.status, 1);
  EXPECT_EQ(r.err.find("cell 2 of 2"), std::string::npos) << r.err;
  EXPECT_NE(r.err.find("1 of 2 cells failed"), std::string::npos) << r.err;
}

// A base that was quantized but whose time was lost with the process is made again.
TEST_F(Table, UntimedBaseIsMadeAgain) {
  const Args args = {"--methods", "qlora", "--seeds", "1", "--steps", "3", "--keep", "none"};
  ASSERT_EQ(table(dir_ / "t", args + Args{"--keep", "all"}).status, 0);
  EXPECT_TRUE(fs::exists(dir_ / "t/cells/qlora-4bit-seed1/run/train.state"));
  fs::remove_all(dir_ / "t/cells");
  ASSERT_EQ(table(dir_ / "t", args).status, 0);
  EXPECT_TRUE(result(dir_ / "t").at("rows").at(0).at("figures").contains("quantize_seconds"));
  EXPECT_FALSE(fs::exists(dir_ / "t/cells/qlora-4bit-seed1/run"));
  for (const auto& entry : fs::directory_iterator(dir_ / "t/base")) EXPECT_NE(entry.path().extension(), ".irq");
}

TEST_F(Table, UsageErrors) {
  const auto expect_part = [&](const Args& more, const std::string& part) {
    const CommandResult r = table(dir_ / "t", more);
    EXPECT_EQ(r.status, 2) << r.err;
    EXPECT_NE(r.err.find(part), std::string::npos) << r.err;
  };
  expect_part({"--methods", "qlroa"},
              "irq_table: --methods: there is no row 'qlroa'\n  nearest : qlora\n  allowed : 16-bit nf");
  expect_part({"--set", "iec:--rank 8"}, "--set: there is no row 'iec'");
  expect_part({"--row", "a b=qlora"}, "--row: 'a b=qlora' is not NAME=METHOD FLAGS");
  expect_part({"--row", "x=qlor --lr 1"}, "nearest : qlora");
  expect_part({"--row", "qlora=icq"}, "two rows are called qlora");
  expect_part({"--bits", "4,5"}, "--bits: '5' is not a whole number from 2 to 4");
  expect_part({"--seeds", "1,1"}, "--seeds: 1 stands there twice");
  expect_part({"--train", "'--lr"}, "a quote is not closed");
  expect_part({"--epochs", "1"}, "--steps and --epochs contradict each other");
  EXPECT_FALSE(fs::exists(dir_ / "t"));
  const CommandResult g = run_command(
      "irq_table", {shared("model.bin"), "--eval-data", shared("data.tok"), "--methods", "gptq", "--out", dir_ / "t"});
  EXPECT_EQ(g.status, 2) << g.err;
  EXPECT_NE(g.err.find("gptq: GPTQ calibrates on the training data, and there is none"), std::string::npos) << g.err;
  const CommandResult r = run_command(
      "irq_table", {shared("model.bin"), "--data", shared("data.tok"), "--methods", "qlora", "--out", dir_ / "t"});
  EXPECT_NE(r.err.find("nothing can be held out of plain text or tokens"), std::string::npos) << r.err;
}

}  // namespace
}  // namespace irq
