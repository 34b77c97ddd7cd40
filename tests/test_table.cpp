// The parts of irq_table that need no model: rows and cells, statistics, the text of the table, logs, child processes.
#include <gtest/gtest.h>

#include "src/core/child_process.h"
#include "src/report/cell_stages.h"
#include "src/report/inputs.h"
#include "src/report/markdown.h"
#include "tests/cli_util.h"
#include "tests/scratch_dir.h"

namespace irq {
namespace {

TEST(TableParts, WordsOfFlags) {
  using Words = std::vector<std::string>;
  EXPECT_EQ(split_words("  --lr 1e-3\t--init-adapter 'my adapter' "),
            (Words{"--lr", "1e-3", "--init-adapter", "my adapter"}));
  EXPECT_EQ(split_words("a\"b c\"d '' \\' \"\\\"\" '\\'"), (Words{"ab cd", "", "'", "\"", "\\"}));
  EXPECT_EQ(split_words(""), Words{});
  EXPECT_EQ(error_of([] { split_words("--x 'a"); }), "a quote is not closed: --x 'a");
  const Words odd = {"plain", "", "a b", "it's", "\"", "$HOME", "\\", "--x=1"};
  EXPECT_EQ(split_words(join_quoted(odd)), odd);
}

TEST(TableParts, CellsOfAMatrix) {
  const std::vector<Row> rows = {make_row("nf", "nf"), make_row("qlora", "qlora"), make_row("16-bit", "16-bit"),
                                 make_row("wide", "icq", {"--lambda", "0.2"}), make_row("lora16", "lora16")};
  std::vector<std::string> names;
  const std::vector<Cell> cells = make_cells(rows, {4, 2}, {1, 7});
  for (const Cell& c : cells) names.push_back(c.name);
  EXPECT_EQ(names,
            (std::vector<std::string>{"16-bit", "lora16-seed1", "lora16-seed7", "nf-4bit", "qlora-4bit-seed1",
                                      "qlora-4bit-seed7", "wide-4bit-seed1", "wide-4bit-seed7", "nf-2bit",
                                      "qlora-2bit-seed1", "qlora-2bit-seed7", "wide-2bit-seed1", "wide-2bit-seed7"}));
  EXPECT_EQ(cells[0].bits, 0);
  EXPECT_EQ(cells[3].seed, -1);
  EXPECT_EQ(cells[12].seed, 7);
  // Every method of irq_train is a row, whatever methods there are.
  for (const Method& m : methods()) EXPECT_EQ(make_row("x", m.name).method, &m);
  EXPECT_EQ(known_kinds().size(), methods().size() + untrained_rows().size());
}

TEST(TableParts, MeanAndSampleDeviation) {
  EXPECT_TRUE(std::isnan(Stat{}.mean()));
  EXPECT_EQ(Stat{{2.5}}.mean(), 2.5);
  EXPECT_TRUE(std::isnan(Stat{{2.5}}.sd()));
  const Stat s{{1, 2, 6}};
  EXPECT_DOUBLE_EQ(s.mean(), 3);
  EXPECT_DOUBLE_EQ(s.sd(), std::sqrt(7.0));  // (4 + 1 + 9) / 2
  EXPECT_EQ(stat_text(&s, 2), "3.00 ± 2.65");
  EXPECT_EQ(stat_text(nullptr, 2), "–");
  const Stat accuracy{{0.625, 0.635}}, error{{0.01, 0.02}}, one{{0.5}};
  EXPECT_EQ(stat_text(&accuracy, &error, 2, 100), "63.00 ± 0.71 (1.50)");
  EXPECT_EQ(stat_text(&one, nullptr, 1, 100), "50.0");
}

// Records as cells leave them; the figures are made up, round, and different everywhere.
Report trained_record(double before, double after, double train_seconds, const std::string& quantized, double a,
                      double b) {
  return {
      {"finished", true},
      {"train",
       {{"loss_before", before},
        {"loss_after", after},
        {"seconds", train_seconds},
        {"peak_bytes", 3000000},
        {"quantized", quantized},
        {"device", "CPU, 2 threads"}}},
      {"evaluate",
       {{"sizes",
         {{"bits", 4},
          {"bits_per_weight", 4.127},
          {"linear_bytes", 1000},
          {"file_bytes", 1234567},
          {"adapter_bytes", 4321},
          {"entropy", 3.6786}}},
        {"tasks",
         {{"arc", {{"n", 100}, {"acc", a}, {"acc_se", 0.04}}}, {"piqa", {{"n", 100}, {"acc", b}, {"acc_se", 0.03}}}}},
        {"mmlu", {{"micro", 0.25}, {"micro_se", 0.004}, {"groups", {{"STEM", {{"acc", 0.26}, {"acc_se", 0.005}}}}}}}}}};
}

struct Sample {
  std::vector<Row> rows = {make_row("qlora", "qlora"),       make_row("icq", "icq"), make_row("iec", "iec"),
                           make_row("ir-qlora", "ir-qlora"), make_row("nf", "nf"),   make_row("nf-icq", "nf-icq")};
  std::vector<Cell> cells = make_cells(rows, {4}, {1, 2});
  std::map<std::string, Report> records;
  Sample() {
    records["qlora-4bit-seed1"] = trained_record(6.5, 3.25, 10, "nf.irq", 0.5, 0.75);
    records["qlora-4bit-seed2"] = trained_record(6.5, 3.75, 12, "nf.irq", 0.25, 0.75);
    records["icq-4bit-seed1"] = trained_record(6.25, 3, 10.5, "icq.irq", 0.5, 0.5);
    records["iec-4bit-seed1"] = trained_record(6.5, 3, 11.5, "nf.irq", 0.5, 0.5);
    records["ir-qlora-4bit-seed1"] = trained_record(6.25, 2.5, 11, "icq.irq", 0.5, 0.5);
    records["nf-4bit"] = {{"finished", true}, {"quantize", {{"seconds", 2}}}};
    records["nf-icq-4bit"] = {{"finished", true}, {"quantize", {{"seconds", 5}}}};
  }
  TableSummary summary() const { return summarize(cells, records, {{"nf.irq", 1.5}, {"icq.irq", 4.25}}); }
};

TEST(TableParts, AveragesOverTasks) {
  const Sample sample;
  const TableSummary table = sample.summary();
  const RowSummary& qlora = table.rows.at(0);
  EXPECT_EQ(table.tasks, (std::vector<std::string>{"arc", "piqa"}));
  EXPECT_EQ(qlora.find("task Avg. acc")->values, (std::vector<double>{0.625, 0.5}));
  EXPECT_DOUBLE_EQ(qlora.find("task Avg. acc_se")->values[0], 0.025);  // sqrt(0.04^2 + 0.03^2) / 2
  EXPECT_EQ(qlora.find("mmlu Avg. acc")->mean(), 0.25);                // the micro-average, not the mean of the groups
  EXPECT_EQ(qlora.find("total_seconds")->values, (std::vector<double>{11.5, 13.5}));
}

TEST(TableParts, AddedSeconds) {
  const Sample sample;
  const TableSummary table = sample.summary();
  const auto row = [&](size_t i) -> const RowSummary& { return table.rows.at(i); };
  EXPECT_EQ(added_by_icq(table, row(0)).against, "");
  EXPECT_EQ(added_by_icq(table, row(1)).against, "qlora");
  EXPECT_DOUBLE_EQ(added_by_icq(table, row(1)).seconds, 2.75);
  EXPECT_EQ(added_by_icq(table, row(3)).against, "iec");
  EXPECT_EQ(added_by_iec(table, row(2)).against, "qlora");
  EXPECT_DOUBLE_EQ(added_by_iec(table, row(2)).seconds, 0.5);
  EXPECT_EQ(added_by_iec(table, row(3)).against, "icq");
  EXPECT_DOUBLE_EQ(added_by_iec(table, row(3)).seconds, 0.5);
  EXPECT_TRUE(std::isnan(added_by_iec(table, row(3)).sd));  // one seed
  EXPECT_EQ(added_by_icq(table, row(5)).against, "nf");
  EXPECT_DOUBLE_EQ(added_by_icq(table, row(5)).seconds, 3);
}

// A variant with flags of its own is no row "without that technique alone"; a row without ICQ lacks ICQ's flags.
TEST(TableParts, AddedSecondsAreNotAgainstAVariant) {
  Sample sample;
  sample.rows = {make_row("qlora", "qlora"), make_row("icq-mse", "icq", {"--icq-ties", "mse"}),
                 make_row("ir-qlora", "ir-qlora"), make_row("ir-mse", "ir-qlora", {"--icq-ties", "mse"})};
  sample.cells = make_cells(sample.rows, {4}, {1});
  for (const char* name : {"icq-mse", "ir-mse"})
    sample.records[std::string(name) + "-4bit-seed1"] = trained_record(6.25, 3, 10.25, "icq.irq", 0.5, 0.5);
  const TableSummary table = sample.summary();
  EXPECT_EQ(added_by_icq(table, table.rows.at(1)).against, "qlora");
  EXPECT_EQ(added_by_iec(table, table.rows.at(2)).against, "");
  EXPECT_EQ(added_by_iec(table, table.rows.at(3)).against, "icq-mse");
  const std::string text = render_markdown(table);
  EXPECT_NE(text.find("- Rows: `icq-mse` is `icq --icq-ties mse`; `ir-mse` is `ir-qlora --icq-ties mse`.\n"),
            std::string::npos)
      << text;
}

TEST(TableParts, SquaredErrorsWhereTheyWereMeasured) {
  Sample sample;
  sample.records["nf-4bit"]["quantize"]["error"] = 3.0778e-05;
  sample.records["nf-icq-4bit"]["quantize"]["error"] = 0;
  sample.records["nf-4bit"]["evaluate"]["loss"]["nll"] = 6.5;
  const std::string text = render_markdown(sample.summary());
  EXPECT_NE(text.find("|   Ent. | Sq. error |\n"), std::string::npos) << text;
  EXPECT_NE(text.find("| 3.078e-05 |\n"), std::string::npos) << text;
  const TableSummary table = sample.summary();
  EXPECT_EQ(table.rows.at(5).find("error"), nullptr);
}

// Both rows' spreads: sd of {10, 12} is sqrt(2), of {11.5, 15.5} sqrt(8); together sqrt(10).
TEST(TableParts, AddedSecondsHaveASpread) {
  Sample sample;
  sample.records["iec-4bit-seed2"] = trained_record(6.5, 3, 15.5, "nf.irq", 0.5, 0.5);
  const Added added = added_by_iec(sample.summary(), sample.summary().rows.at(2));
  EXPECT_DOUBLE_EQ(added.seconds, 2.5);
  EXPECT_DOUBLE_EQ(added.sd, std::sqrt(10.0));
  EXPECT_NE(render_markdown(sample.summary()).find(" +2.50 ± 3.16 (qlora) |"), std::string::npos);
}

TEST(TableParts, MarkdownIsGolden) {
  Sample sample;
  sample.rows.resize(2);
  sample.cells = make_cells(sample.rows, {4}, {1, 2});
  const std::string text = render_markdown(sample.summary());
  EXPECT_EQ(text.substr(0, text.find("- a ± b")), R"(### MMLU, accuracy (%)

| Method | #Bit | Seeds |                STEM |                Avg. |   Ent. |
|--------|-----:|------:|--------------------:|--------------------:|-------:|
| qlora  |    4 |     2 | 26.00 ± 0.00 (0.50) | 25.00 ± 0.00 (0.40) | 3.6786 |
| icq    |    4 |     1 |        26.00 (0.50) |        25.00 (0.40) | 3.6786 |

### Multiple choice, accuracy (%)

| Method | #Bit | Seeds |                  arc |                piqa |                Avg. |
|--------|-----:|------:|---------------------:|--------------------:|--------------------:|
| qlora  |    4 |     2 | 37.50 ± 17.68 (4.00) | 75.00 ± 0.00 (3.00) | 56.25 ± 8.84 (2.50) |
| icq    |    4 |     1 |         50.00 (4.00) |        50.00 (3.00) |        50.00 (2.50) |

### Held-out loss (nats per scored token) and entropy of the codes (bits per weight)

| Method | #Bit | Seeds | Loss before |      Loss after |   Ent. |
|--------|-----:|------:|------------:|----------------:|-------:|
| qlora  |    4 |     2 |      6.5000 | 3.5000 ± 0.3536 | 3.6786 |
| icq    |    4 |     1 |      6.2500 |          3.0000 | 3.6786 |

### Sizes

| Method | #Bit | Bits per weight | Bytes of the linears | Bytes of the file | Bytes of the adapter | Bytes in memory, training |
|--------|-----:|----------------:|---------------------:|------------------:|---------------------:|--------------------------:|
| qlora  |    4 |          4.1270 |                1,000 |         1,234,567 |                4,321 |                 3,000,000 |
| icq    |    4 |          4.1270 |                1,000 |         1,234,567 |                4,321 |                 3,000,000 |

### Times (seconds)

| Method | #Bit | Seeds | Quantization | Added by ICQ (against) |     Training | Added by IEC (against) |         Both |
|--------|-----:|------:|-------------:|-----------------------:|-------------:|-----------------------:|-------------:|
| qlora  |    4 |     2 |         1.50 |                      – | 11.00 ± 1.41 |                      – | 12.50 ± 1.41 |
| icq    |    4 |     1 |         4.25 |          +2.75 (qlora) |        10.50 |                      – |        14.75 |

)");
}

TEST(TableParts, GroupsOfMmluGetStandardErrors) {
  const Report compact = compact_evaluation(
      {{"mmlu",
        {{"micro", 0.5}, {"n", 10}, {"groups", {{"STEM", 0.25}}}, {"group_n", {{"STEM", 4}}}, {"subjects", {}}}},
       {"tasks", {{"arc", {{"acc", 0.5}, {"questions", {1, 2}}}}}}});
  EXPECT_EQ(compact["mmlu"]["groups"]["STEM"]["acc"], 0.25);
  EXPECT_DOUBLE_EQ(compact["mmlu"]["groups"]["STEM"]["acc_se"], 0.25);  // sqrt(0.25 * 0.75 / 3)
  EXPECT_FALSE(compact["mmlu"].contains("subjects") || compact["tasks"]["arc"].contains("questions"));
}

// A run cut after two steps and gone on with; what is to be evaluated by what lies in the folder, and by what the log says.
TEST(TableParts, FolderOfARun) {
  const ScratchDir dir;
  EXPECT_FALSE(read_run(dir.path()).finished);
  std::string log =
      "{\"command\": \"x\", \"device\": \"CPU\", \"quantized\": \"q.irq\", \"quantize_seconds\": 1.5}\n"
      "{\"step\": 0, \"held_out_loss\": 6.5}\n{\"step\": 1, \"loss\": 3, \"seconds\": 0.5}\n"
      "{\"command\": \"x\", \"device\": \"CPU\", \"quantized\": \"q.irq\", \"quantize_seconds\": null}\n"
      "{\"step\": 2, \"loss\": 2, \"seconds\": 0.25}\n{\"step\": 2, \"held_out_loss\": 1.5}\n";
  write_bytes(dir / "log.jsonl", log + "{\"step\": 2, \"finished\": true");
  EXPECT_FALSE(read_run(dir.path()).finished);  // the line has no end
  write_bytes(dir / "log.jsonl", log +
                                     "{\"step\": 2, \"finished\": true, \"held_out_loss\": 1.5, \"peak_bytes\": 77, "
                                     "\"result\": \"adapter.lora\"}\n");
  const FinishedRun run = read_run(dir.path());
  EXPECT_TRUE(run.finished);
  EXPECT_EQ(run.steps, 2);
  EXPECT_EQ(run.loss_before, 6.5);
  EXPECT_EQ(run.loss_after, 1.5);
  EXPECT_EQ(run.train_seconds, 0.75);
  EXPECT_EQ(run.peak_bytes, 77);
  EXPECT_EQ(run.quantize_seconds, 1.5);
  EXPECT_EQ(run.model + "|" + run.adapter + "|" + run.quantized, "|adapter.lora|q.irq");
  // qlora-gptq: the adapter lies beside what came of it.
  write_bytes(dir / "adapter.lora", "");
  write_bytes(dir / "log.jsonl", log +
                                     "{\"step\": 2, \"finished\": true, \"requantize_seconds\": 1.25, "
                                     "\"result\": \"model.irq\"}\n");
  EXPECT_EQ(read_run(dir.path()).requantize_seconds, 1.25);
  EXPECT_EQ(read_run(dir.path()).model, "model.irq");
  EXPECT_EQ(read_run(dir.path()).adapter, "");
}

TEST(TableParts, GptqTakesTheTablesDataUnlessItIsGivenSome) {
  EXPECT_TRUE(make_row("gptq", "gptq").calibrates_on_data());
  EXPECT_TRUE(make_row("g", "gptq", {"--group", "32"}).calibrates_on_data());
  EXPECT_FALSE(make_row("g", "gptq", {"--calibration", "x"}).calibrates_on_data());
  EXPECT_FALSE(make_row("int", "int").calibrates_on_data());
  EXPECT_FALSE(make_row("qa-lora", "qa-lora").calibrates_on_data());  // irq_train does it by itself
}

TEST(TableParts, FlagsThatDecideWhatACellIsAreRefused) {
  const auto refused = [](const std::vector<std::string>& args, const std::string& part) {
    std::vector<std::string> all = {"missing.bin", "--data", "d.json", "--out", "t"};
    all.insert(all.end(), args.begin(), args.end());
    const CommandResult r = run_command("irq_table", all);
    EXPECT_EQ(r.status, 2) << r.err;
    EXPECT_NE(r.err.find(part), std::string::npos) << r.err;
  };
  refused({"--methods", "qlora", "--train", "--method icq"}, "--train: --method is decided by the table");
  refused({"--methods", "qlora", "--set", "qlora:--bits=2"}, "qlora: --bits is decided by the table");
  refused({"--methods", "qlora", "--set", "qlora:--seed 7"}, "--seeds 1,2,3");
  refused({"--row", "x=nf --format int"}, "x: --format would make another row of it");
  refused({"--methods", "nf", "--set", "nf:--loftq 8"}, "nf: --loftq would make another row of it");
  refused({"--methods", "nf", "--eval", "--loss d.json"}, "--eval: --loss is decided by the table");
  refused({"--methods", "full", "--row", "full-seed1=16-bit", "--seeds", "1"}, "two cells would be called full-seed1");
}

TEST(TableParts, HeldOutRecordsAreTheSameEveryTime) {
  const ScratchDir dir;
  std::string lines, array = "[";
  for (int i = 0; i < 10; ++i) {
    const std::string record = strf("{\"input\":\"%d\",\"output\":\"x\"}", i);
    lines += record + "\n", array += (i > 0 ? ",\n " : "") + record;
  }
  write_bytes(dir / "a.jsonl", lines);
  write_bytes(dir / "b.json", array + "]");
  EXPECT_EQ(split_records(dir / "a.jsonl", 3, dir / "a"), 3);
  EXPECT_EQ(split_records(dir / "b.json", 3, dir / "b"), 3);
  const std::string train = read_bytes(dir / "a/train.jsonl"), held = read_bytes(dir / "a/heldout.jsonl");
  EXPECT_EQ(read_bytes(dir / "b/train.jsonl"), train);
  EXPECT_EQ(read_bytes(dir / "b/heldout.jsonl"), held);
  EXPECT_EQ(std::count(train.begin(), train.end(), '\n'), 7);
  EXPECT_EQ(std::count(held.begin(), held.end(), '\n'), 3);
  std::string all = train + held;  // every record once
  for (int i = 0; i < 10; ++i) EXPECT_NE(all.find(strf("\"%d\"", i)), std::string::npos);
  EXPECT_EQ(split_records(dir / "a.jsonl", -1, dir / "c"), 0);  // 2 % of 10
  EXPECT_NE(error_of([&] { split_records(dir / "a.jsonl", 10, dir / "c"); }).find("takes all of the 10 records"),
            std::string::npos);
  write_bytes(dir / "text.txt", "some words");
  EXPECT_NE(error_of([&] { split_records(dir / "text.txt", 1, dir / "c"); }).find("nothing can be held out"),
            std::string::npos);
}

TEST(ChildProcess, StreamsAndStatus) {
  const ChildOptions hidden{ChildOptions::Errors::hidden, -1};
  const ChildResult r =
      run_child({"/bin/sh", "-c", "echo \"out $0\"; printf 'a\\rb\\n\\n\\033[2Kc' >&2; exit 3", "a  b"}, hidden);
  EXPECT_EQ(r.status, 3);
  EXPECT_FALSE(r.signalled);
  EXPECT_EQ(r.out, "out a  b\n");
  EXPECT_EQ(r.err, "b\nc\n");
  const ChildResult killed = run_child({"/bin/sh", "-c", "kill -9 $$"}, hidden);
  EXPECT_TRUE(killed.signalled);
  EXPECT_EQ(killed.status, 128 + 9);
  EXPECT_NE(error_of([&] {
              run_child({"/no/such/program"}, hidden);
            }).find("/no/such/program: cannot be started: No such file or directory"),
            std::string::npos);
}

TEST(ChildProcess, SeesATerminalWhereThereIsOneToShow) {
  testing::internal::CaptureStderr();
  const ChildResult r = run_child({"/bin/sh", "-c", "if [ -t 2 ]; then echo yes >&2; else echo no >&2; fi"},
                                  {ChildOptions::Errors::terminal, -1});
  EXPECT_EQ(testing::internal::GetCapturedStderr(), r.err);
  EXPECT_EQ(r.err, "yes\n");
  testing::internal::CaptureStderr();
  run_child({"/bin/sh", "-c", "printf 'line\\n  detail\\nrest' >&2"}, {});
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "line\n");  // indented and unfinished lines stay out
}

}  // namespace
}  // namespace irq
