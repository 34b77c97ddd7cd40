// MMLU: tables as pandas prints them, prompts word by word, letters' ids, truncation, averages, irq_eval --mmlu.
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "src/eval/mmlu.h"
#include "src/text/csv.h"
#include "tests/cli_util.h"
#include "tests/eval_fixture.h"

namespace irq {
namespace {

using Cells = std::vector<std::string>;

std::vector<Cells> cells_of(const std::string& content, size_t columns, bool pandas) {
  std::vector<CsvRow> rows = parse_csv("t.csv", content, columns);
  if (pandas) print_as_pandas(rows);
  std::vector<Cells> cells;
  for (const CsvRow& r : rows) cells.push_back(r.cells);
  return cells;
}

TEST(Csv, Quoting) {
  const auto read = [](const std::string& text) { return cells_of(text, 3, false); };
  using Table = std::vector<Cells>;
  EXPECT_EQ(read("a,b,c\nd,,f"), (Table{{"a", "b", "c"}, {"d", "", "f"}}));
  EXPECT_EQ(read("\"a,b\",\"say \"\"x\"\"\",\"two\nlines\"\r\n1,2,3\r\n"),
            (Table{{"a,b", "say \"x\"", "two\nlines"}, {"1", "2", "3"}}));
  EXPECT_EQ(read("a, \"b\",c\"d\n"), (Table{{"a", " \"b\"", "c\"d"}}));  // quotes count at a cell's beginning only
  EXPECT_EQ(read("\"a\"b,\"\",c\n"), (Table{{"ab", "", "c"}}));
  EXPECT_EQ(read("\xEF\xBB\xBF"
                 "a,b,c\n\n  \nd,e,f\n\n"),
            (Table{{"a", "b", "c"}, {"d", "e", "f"}}));
  EXPECT_EQ(parse_csv("t.csv", "\"a\nb\",2,3\n\nx,y,z\n", 3)[1].line, 4);
}

TEST(Csv, SaysWhatIsWrong) {
  const std::string few = error_of([] { parse_csv("t.csv", "a,b,c\n\"x\ny\",b\n", 3); });
  EXPECT_CONTAINS(few, "t.csv: line 2: not a row of this table");
  EXPECT_CONTAINS(few, "expected: 3 cells\n  found   : 2");
  EXPECT_CONTAINS(error_of([] { parse_csv("t.csv", "a,b,c\n\"x,b,c\n", 3); }),
                  "t.csv: line 2: a quote is never closed");
  EXPECT_TRUE(parse_csv("t.csv", "", 3).empty());
}

// Each line: a column's cells as they stand | as pandas 3.1.1 printed them with "{}".format(df.iloc[i, 0]).
TEST(Csv, ColumnsAsPandasPrintsThem) {
  struct Column {
    Cells cells, printed;
  };
  for (const Column& c : std::vector<Column>{
           {{"None", "a"}, {"nan", "a"}},
           {{"NA", "N/A", "null", "", "x"}, {"nan", "nan", "nan", "nan", "x"}},
           {{"none", "nAn"}, {"none", "nAn"}},
           {{"0.50", "3"}, {"0.5", "3.0"}},
           {{"5", "007", " 3", "+2"}, {"5", "7", "3", "2"}},
           {{"5", "NA"}, {"5.0", "nan"}},
           {{"1,000", "5"}, {"1,000", "5"}},
           {{"50%", "5"}, {"50%", "5"}},
           {{"1e5", "1E-7"}, {"100000.0", "1e-07"}},
           {{"1e16", "0.0001", "0.00001"}, {"1e+16", "0.0001", "1e-05"}},
           {{"123456.789", ".5", "5."}, {"123456.789", "0.5", "5.0"}},
           {{"-0.0", "-3"}, {"-0.0", "-3.0"}},
           {{"inf", "-Infinity"}, {"inf", "-inf"}},
           {{"TRUE", "false"}, {"True", "False"}},
           {{"TRUE", "NA"}, {"True", "nan"}},
           {{"TRUE", "no"}, {"TRUE", "no"}},
           {{"5", "+-5"}, {"5", "+-5"}},
           {{"9223372036854775807"}, {"9223372036854775807"}},
           {{"9223372036854775808", "1"}, {"9223372036854775808", "1"}},
           {{"123456789012345678901234567890", "007"}, {"123456789012345678901234567890", "007"}},
           {{"1e400", "1e-400"}, {"inf", "0.0"}},
           {{"0x10", "1"}, {"0x10", "1"}},
       }) {
    std::vector<CsvRow> rows;
    for (const std::string& cell : c.cells) rows.push_back({1, {cell}});
    int64_t changed = 0;
    for (size_t i = 0; i < c.cells.size(); ++i) changed += c.cells[i] != c.printed[i];
    EXPECT_EQ(print_as_pandas(rows), changed);
    for (size_t i = 0; i < c.cells.size(); ++i) EXPECT_EQ(rows[i].cells[0], c.printed[i]);
  }
}

TEST(Mmlu, TheSubjectsOfEachGroup) {
  std::map<std::string, int> count;
  std::set<std::string> names;
  for (const MmluSubjectName& s : kMmluSubjects) ++count[s.group], names.insert(s.name);
  EXPECT_EQ(names.size(), 57u);
  EXPECT_EQ(count,
            (std::map<std::string, int>{{"STEM", 18}, {"humanities", 13}, {"other", 14}, {"social sciences", 12}}));
}

const std::vector<Cells> kShots = {{"1+1?", "1", "2", "3", "4", "B"}, {"2+2?", "1", "2", "3", "4", "D"}};
const Cells kQuestion = {"3+0?", "1", "2", "3", "4", "C"};

TEST(Mmlu, ThePromptWordByWord) {
  EXPECT_EQ(mmlu_prompt("abstract_algebra", kShots, 1, kQuestion),
            "The following are multiple choice questions (with answers) about  abstract algebra.\n\n"
            "1+1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: B\n\n"
            "3+0?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:");
  EXPECT_EQ(mmlu_prompt("virology", kShots, 0, kQuestion),
            "The following are multiple choice questions (with answers) about  virology.\n\n"
            "3+0?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:");
}

std::string table(const std::vector<Cells>& rows) {
  std::string text;
  for (const Cells& r : rows)
    for (size_t c = 0; c < r.size(); ++c) text += "\"" + r[c] + (c + 1 < r.size() ? "\"," : "\"\n");
  return text;
}

// A folder with two subjects, each of the questions given.
struct MmluFolder : TempFolder {
  std::string dir = name("mmlu");
  MmluFolder() {
    std::vector<Cells> questions = {
        kQuestion, {"0.50?", "None", "2", "3", "4", "A"}, {"Why?", "x", "2", "3", "4", "D"}};
    for (const std::string subject : {"virology", "high_school_us_history"}) {
      write("mmlu/dev/" + subject + "_dev.csv", table(kShots));
      write("mmlu/test/" + subject + "_test.csv", table(questions));
      questions.pop_back();
    }
  }
};

TEST(Mmlu, MissingSubjectsAreListed) {
  const MmluFolder folder;
  folder.write("mmlu/test/anatomy_test.csv", table({kQuestion}));  // without its examples
  folder.write("mmlu/test/cooking_test.csv", table({kQuestion}));
  MmluOptions options;
  options.shots = 2;
  const Mmlu mmlu = load_mmlu(folder.dir, ByteTokenizer(), options);
  ASSERT_EQ(mmlu.subjects.size(), 2u);
  EXPECT_EQ(mmlu.subjects[0].name, "high_school_us_history");
  EXPECT_EQ(mmlu.subjects[0].group, "humanities");
  EXPECT_EQ(mmlu.subjects[1].gold, (std::vector<int64_t>{2, 0, 3}));
  EXPECT_EQ(mmlu.missing.size(), 55u);
  EXPECT_NE(std::find(mmlu.missing.begin(), mmlu.missing.end(), "anatomy"), mmlu.missing.end());
  EXPECT_EQ(mmlu.unknown, std::vector<std::string>{"cooking_test.csv"});
  EXPECT_EQ(mmlu.changed_cells, 3);  // two None, and a 1 that shares its column with one: 1.0
  options.shots = 0;
  EXPECT_EQ(load_mmlu(folder.dir, ByteTokenizer(), options).subjects.size(), 3u);
}

std::string text_of(const std::vector<int32_t>& ids) {
  std::string text;
  for (const int32_t id : ids) text += id < 3 ? strf("<%d>", id) : std::string(1, static_cast<char>(id - 3));
  return text;
}

TEST(Mmlu, LongPromptsLoseShotsThenTheirBeginning) {
  const MmluFolder folder;
  MmluOptions options;
  options.shots = 2;
  const std::string full = "<1>" + mmlu_prompt("virology", kShots, 2, kQuestion),
                    one = "<1>" + mmlu_prompt("virology", kShots, 1, kQuestion),
                    none = "<1>" + mmlu_prompt("virology", kShots, 0, kQuestion);
  const auto prompt = [&](int64_t max_tokens, int64_t fewer, int64_t cut) {
    options.max_tokens = max_tokens;
    options.limit = 1;
    const MmluSubject s = load_mmlu(folder.dir, ByteTokenizer(), options).subjects[1];
    EXPECT_EQ(s.fewer_shots, fewer);
    EXPECT_EQ(s.cut, cut);
    // Bytes: " A" are two ids, the space is shared. It and the letter take two predictions, one of them the last row's.
    return text_of(s.questions.questions[0].shared);
  };
  const auto tokens = [](const std::string& text) { return static_cast<int64_t>(text.size()) - 2; };  // "<1>" is one
  EXPECT_EQ(prompt(2048, 0, 0), full + " ");
  EXPECT_EQ(prompt(tokens(full) + 1, 0, 0), full + " ");
  EXPECT_EQ(prompt(tokens(full) - 1, 1, 0), one + " ");
  EXPECT_EQ(prompt(tokens(none) - 30, 1, 1),
            (none + " ").substr(none.size() + 1 - static_cast<size_t>(tokens(none)) + 30));
}

TEST(Mmlu, LettersOfLlamaAndThePrefix) {
  const std::string path = shared_path("tokenizer.model");
  if (path.empty()) GTEST_SKIP() << "LLaMA's tokenizer.model is not here";
  const MmluFolder folder;
  const auto tokenizer = open_tokenizer(path);
  MmluOptions options;
  options.shots = 2;
  const Mmlu mmlu = load_mmlu(folder.dir, *tokenizer, options);
  const int32_t expected[] = {319, 350, 315, 360};  // fidelity 7.1
  for (int i = 0; i < 4; ++i) EXPECT_EQ(mmlu.letters[i], std::vector<int32_t>{expected[i]});
  const QuestionGroup& group = mmlu.subjects[1].questions;
  const TokenQuestion& q = group.questions[0];
  EXPECT_TRUE(mmlu.bos);
  EXPECT_EQ(q.shared, tokenizer->encode(mmlu_prompt("virology", kShots, 2, kQuestion), true));
  EXPECT_EQ(q.endings[3].ids, std::vector<int32_t>{360});
  // The shots are the prefix: everything up to the last line break before the question.
  const auto shots = tokenizer->encode(mmlu_prompt("virology", kShots, 2, {"", "", "", "", ""}), true);
  EXPECT_GE(group.prefix.size() + 20, shots.size());
  EXPECT_TRUE(std::equal(group.prefix.begin(), group.prefix.end(), q.shared.begin()));
}

TEST(Mmlu, RealTables) {
  const std::string dir = shared_path("mmlu"), path = shared_path("tokenizer.model");
  if (dir.empty() || path.empty()) GTEST_SKIP() << "MMLU's tables are not here";
  MmluOptions options;
  options.limit = 2;
  const Mmlu mmlu = load_mmlu(dir, *open_tokenizer(path), options);
  EXPECT_EQ(mmlu.subjects.size(), 38u);
  EXPECT_EQ(mmlu.missing.size(), 19u);
  EXPECT_TRUE(mmlu.unknown.empty());
  int64_t questions = 0;
  for (const MmluSubjectName& s : kMmluSubjects)
    if (const std::string file = dir + "/test/" + s.name + "_test.csv"; std::filesystem::exists(file))
      questions += static_cast<int64_t>(parse_csv(file, read_text(file), 6).size());
  EXPECT_EQ(questions, 9512);
  for (const MmluSubject& s : mmlu.subjects) EXPECT_GT(s.questions.prefix.size(), 100u) << s.name;
}

TEST(Mmlu, AveragesAreOverQuestions) {
  Mmlu mmlu;
  mmlu.subjects.resize(3);
  mmlu.subjects[0].group = "STEM", mmlu.subjects[0].gold = {0, 1, 2, 3};
  mmlu.subjects[1].group = "STEM", mmlu.subjects[1].gold = {0};
  mmlu.subjects[2].group = "other", mmlu.subjects[2].gold = {3, 3};
  const std::vector<double> a = {-1, -2, -3, -4}, tie = {-2, -1, -1, -3}, d = {-2, -2, -2, -1};
  const MmluResult r = mmlu_result(mmlu, {{a, tie, tie, d}, {d}, {d, a}});
  EXPECT_EQ(r.pred, (std::vector<std::string>{"ABBD", "D", "DA"}));
  EXPECT_DOUBLE_EQ(r.subjects[0].value(), 0.75);
  EXPECT_DOUBLE_EQ(r.groups.at("STEM").value(), 3.0 / 5);
  EXPECT_DOUBLE_EQ(r.groups.at("other").value(), 0.5);
  EXPECT_DOUBLE_EQ(r.all.value(), 4.0 / 7);
  EXPECT_EQ(r.groups.count("humanities"), 0u);
}

TEST(Mmlu, SaysWhatIsWrong) {
  const MmluFolder folder;
  const auto fails = [&](const std::string& dir, int64_t shots, const std::string& text) {
    MmluOptions options;
    options.shots = shots;
    EXPECT_CONTAINS(error_of([&] { load_mmlu(dir, ByteTokenizer(), options); }), text);
  };
  fails(folder.name("none"), 2, "none: no MMLU here");
  fails(folder.dir + "/dev", 2, "a folder without test/");
  fails(folder.dir, 5, "us_history_dev.csv: too few examples for the prompt\n  expected: at least 5 rows");
  folder.write("mmlu/test/virology_test.csv", table({kQuestion, {"q", "1", "2", "3", "4", "E"}}));
  fails(folder.dir, 2,
        "virology_test.csv: line 2: no answer in the last column\n  expected: A, B, C or D\n  found   : 'E'");
  folder.write("mmlu/test/virology_test.csv", "");
  fails(folder.dir, 2, "virology_test.csv: the file holds no questions");
  std::filesystem::create_directories(folder.name("empty/data/test"));
  fails(folder.name("empty"), 2, "empty/data: none of MMLU's 57 subjects is here");
}

TEST(EvalMmlu, ReportOfTheDemoModel) {
  const MmluFolder folder;
  const std::string json = folder.name("out.json");
  const CommandResult r = run_command(
      "irq_eval", {demo_path("model.bin"), "--mmlu", folder.dir, "--shots", "2", "--json", json, "--device", "cpu"});
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_CONTAINS(r.err, "mmlu: 2 of 57 subjects, 2 shots, with BOS");
  EXPECT_CONTAINS(r.err, "abstract_algebra, anatomy");
  EXPECT_CONTAINS(r.err, "note: 3 cells are printed as pandas prints them");
  const nlohmann::json m = nlohmann::json::parse(read_text(json)).at("mmlu");
  EXPECT_EQ(m.at("n"), 5);
  EXPECT_EQ(m.at("missing").size(), 55u);
  EXPECT_EQ(m.at("groups").size(), 2u);
  const nlohmann::json& v = m.at("subjects").at("virology");
  EXPECT_EQ(v.at("n"), 3);
  EXPECT_EQ(v.at("gold"), "CAD");
  EXPECT_EQ(m.at("subjects").at("high_school_us_history").at("n"), 2);

  // One forward of the whole prompt, the last row's logits: the released code's way.
  const auto tokenizer = open_tokenizer(demo_path("tokenizer.model"));
  const auto backend = eval_backend();
  ModelSession session(*backend, demo_path("model.bin"));
  session.load({{.evaluate = {}, .logits = {{512, 512, 1}}, .positions = 512, .cache_tokens = 0}});
  const std::vector<Cells> questions = {
      kQuestion, {"0.50?", "nan", "2", "3", "4", "A"}, {"Why?", "x", "2", "3", "4", "D"}};
  std::string pred;
  for (size_t i = 0; i < 3; ++i) {
    const std::vector<float> logits =
        session.logits(every_position(tokenizer->encode(mmlu_prompt("virology", kShots, 2, questions[i]), true)));
    const float* row = &logits[logits.size() - 4096];
    std::vector<double> four;
    for (char c = 'A'; c <= 'D'; ++c) {
      const std::vector<int32_t> ids = tokenizer->encode(std::string("Answer: ") + c);
      ASSERT_EQ(ids.size(), tokenizer->encode("Answer:").size() + 1);
      four.push_back(row[ids.back()]);
    }
    pred += static_cast<char>('A' + first_largest(four));
    for (size_t c = 1; c < 4; ++c)  // logits of size 20, F32 sums in another order
      EXPECT_NEAR(v.at("scores")[i][c].get<double>() - v["scores"][i][0].get<double>(), four[c] - four[0], 1e-4);
  }
  EXPECT_EQ(v.at("pred"), pred);
  int right = 0;
  for (size_t i = 0; i < 3; ++i) right += pred[i] == "CAD"[i];
  EXPECT_DOUBLE_EQ(v.at("acc"), right / 3.0);
  EXPECT_CONTAINS(r.out, "|mmlu virology");
  EXPECT_CONTAINS(r.out, "|mmlu         | 5|     2|acc   |");
  EXPECT_CONTAINS(r.out, "| - humanities| 2|     2|acc   |");
}

}  // namespace
}  // namespace irq
