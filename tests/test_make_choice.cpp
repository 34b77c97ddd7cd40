// tools/make_choice.py: each task's own file layout -> the questions that irq_eval --choice reads, worded exactly.
#include "src/eval/choice_task.h"
#include "tests/cli_util.h"
#include "tests/text_fixtures.h"

namespace irq {
namespace {

std::string script() {
  return (std::filesystem::path(__FILE__).parent_path().parent_path() / "tools/make_choice.py").string();
}

struct MakeChoice : testing::Test {
  TempFolder folder;
  void SetUp() override {
    if (std::system("python3 -c 'import json' >/dev/null 2>&1") != 0) GTEST_SKIP() << "python3 is not installed";
  }
  // Exit status and stderr.
  CommandResult run(const std::string& task, const std::string& content, const std::string& labels = "") {
    const std::string in = folder.write("in.jsonl", content), err = folder.name("err");
    std::filesystem::remove(folder.name("out.jsonl"));
    std::string command = "python3 " + shell_quoted(script()) + " " + task + " " + shell_quoted(in) + " " +
                          shell_quoted(folder.name("out.jsonl"));
    if (!labels.empty()) command += " --labels " + shell_quoted(folder.write("labels.lst", labels));
    const int status = std::system((command + " 2>" + shell_quoted(err)).c_str());
    return {WEXITSTATUS(status), "", read_text(err)};
  }
  void expect(const std::string& task, const std::string& content, const std::vector<ChoiceQuestion>& expected,
              const std::string& labels = "") {
    const CommandResult r = run(task, content, labels);
    ASSERT_EQ(r.status, 0) << r.err;
    const std::vector<ChoiceQuestion> questions = read_choice_file(folder.name("out.jsonl"));
    ASSERT_EQ(questions.size(), expected.size());
    for (size_t i = 0; i < questions.size(); ++i) {
      EXPECT_EQ(questions[i].query, expected[i].query);
      EXPECT_EQ(questions[i].choices, expected[i].choices);
      EXPECT_EQ(questions[i].gold, expected[i].gold);
    }
  }
};

TEST_F(MakeChoice, Wording) {
  // Titles become sentences, bracketed marks go, one pass over double spaces; the rest of ctx_b goes to lower case.
  expect("hellaswag",
         R"({"ind": 4, "activity_label": "Baking", "ctx_a": "[header] How to bake [title] Mix   it.", )"
         R"("ctx_b": "he STIRS [x]", "ctx": "", "endings": [" a  b [step]", "[substeps] c.", "d", "e"], "label": 2})",
         {{1, "Baking: How to bake. Mix  it. He stirs ", {"a b ", " c.", "d", "e"}, 2}});
  expect("piqa", R"({"goal": "Open a jar", "sol1": "twist", "sol2": "push"})",
         {{1, "Question: Open a jar\nAnswer:", {"twist", "push"}, 1}}, "1\n");
  const std::string wino =
      R"({"qID": "3-1", "sentence": "Ann saw Bo and _ left.", "option1": "Ann", "option2": "Bo", "answer": "2"})";
  expect("winogrande", wino, {{1, "Ann saw Bo and _ left.", {"Ann", "Bo"}, 1}});
  expect("winogrande", wino, {{1, "Ann saw Bo and _ left.", {"Ann", "Bo"}, 0}}, "1\n");
  const std::string choices =
      R"([{"text": "x", "label": "1"}, {"text": "y", "label": "2"}, {"text": "z", "label": "3"}])";
  expect("arc",
         R"({"id": "M", "question": {"stem": "Why?", "choices": )" + choices + R"(}, "answerKey": "3"})" + "\n" +
             R"({"question": "Why?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"})",
         {{1, "Question: Why?\nAnswer:", {"x", "y", "z"}, 2}, {2, "Question: Why?\nAnswer:", {"x", "y"}, 1}});
  expect("openbookqa", R"({"id": "7", "question": {"stem": "Frogs", "choices": )" + choices + R"(}, "answerKey": "1"})",
         {{1, "Frogs", {"x", "y", "z"}, 0}});
  expect("boolq",
         R"({"question": "is ice cold", "title": "Ice", "answer": true, "passage": "Ice -- \u00e9."})"
         "\n"
         R"({"question": "is ice hot", "label": 0, "passage": "Ice."})",
         {{1, "Ice -- \xC3\xA9.\nQuestion: is ice cold?\nAnswer:", {"no", "yes"}, 1},
          {2, "Ice.\nQuestion: is ice hot?\nAnswer:", {"no", "yes"}, 0}});
}

TEST_F(MakeChoice, SaysWhatIsWrong) {
  const auto fails = [&](const std::string& task, const std::string& content, const std::string& text,
                         const std::string& labels = "") {
    const CommandResult r = run(task, content, labels);
    EXPECT_EQ(r.status, 1) << r.err;
    EXPECT_CONTAINS(r.err, text);
    EXPECT_FALSE(std::filesystem::exists(folder.name("out.jsonl")));  // nothing half-written
    EXPECT_FALSE(std::filesystem::exists(folder.name("out.jsonl.tmp")));
  };
  const std::string piqa = "{\"goal\": \"a\", \"sol1\": \"b\", \"sol2\": \"c\"}\n";
  fails("piqa", piqa, "line 1: not a record of this task\n  expected: a label from 0 to 1");
  fails("piqa", piqa + piqa, "expected: 2 labels\n  found   : 1", "0\n");
  fails("piqa", piqa + "[3]\n", "line 2: not a record of this task\n  expected: \"goal\": str", "0\n1\n");
  fails("arc", "{\"question\": \"q\", \"choices\": {\"text\": [\"x\"], \"label\": [\"A\"]}, \"answerKey\": \"B\"}",
        "an answerKey among ['A'], not 'B'");
  fails("boolq", "{", "one JSON object per line");
  fails("hellaswag", "\n\n", "the file is empty");
  fails("hellaswag",
        "{\"activity_label\": \"a\", \"ctx_a\": \"b\", \"ctx_b\": \"c\", \"endings\": [1, 2], \"label\": 0}",
        "\"endings\": a list of texts");
  fails("winogrande", "{\"sentence\": \"x\", \"option1\": \"a\", \"option2\": \"b\", \"answer\": \"1\"}",
        "a sentence with _ in it");
}

}  // namespace
}  // namespace irq
