// Multiple-choice tasks from files: lines, wording, which ids are scored, lengths in characters.
#include "src/eval/choice_task.h"
#include "tests/text_fixtures.h"

namespace irq {
namespace {

std::string text_of(const std::vector<int32_t>& ids) {
  std::string text;
  for (const int32_t id : ids) text += id < 3 ? strf("<%d>", id) : std::string(1, static_cast<char>(id - 3));
  return text;
}

TEST(ChoiceTask, ContextAndContinuation) {
  const ByteTokenizer t;
  const auto expect = [&](const std::string& context, const std::string& continuation, bool bos,
                          const std::string& text, int64_t scored) {
    const Continuation c = encode_continuation(t, context, continuation, bos);
    EXPECT_EQ(text_of(c.ids), text);
    EXPECT_EQ(c.scored, scored) << text;
  };
  expect("ab", " cd", false, "ab cd", 3);
  expect("ab", " cd", true, "<1>ab cd", 3);
  expect("ab \n", " cd", false, "ab \n cd", 5);  // white space at the end counts to the continuation
  expect("", " cd", false, "<2> cd", 3);         // the end of another text stands before it
  expect("", " cd", true, "<1> cd", 3);
  expect("  ", "x", false, "<2>  x", 3);
}

TEST(ChoiceTask, LlamaTokensBehindTheContext) {
  const std::string path = shared_path("tokenizer.model");
  if (path.empty()) GTEST_SKIP() << "LLaMA's tokenizer.model is not here";
  const auto t = open_tokenizer(path);
  const Continuation c = encode_continuation(*t, "Question: x\nAnswer:", " A", false);
  EXPECT_EQ(c.scored, 1);
  EXPECT_EQ(c.ids.back(), 319);
  EXPECT_EQ(c.ids[c.ids.size() - 2], 29901);
}

TEST(ChoiceTask, LengthsAreCharacters) {
  // Bytes would say: -4 / 4 and -3 / 2. Characters say: -4 / 2 and -3 / 2.
  const ChoiceTask task =
      make_choice_task("t", "t.jsonl", {{1, "q", {"\xC3\xA9\xC3\xA9", "ab"}, 0}}, ByteTokenizer(), {});
  EXPECT_EQ(task.lengths, (std::vector<std::vector<double>>{{2, 2}}));
  const ChoiceResult r = choice_result(task, {{-4, -3}});
  EXPECT_EQ(r.pred[0], 1);
  EXPECT_EQ(r.pred_norm[0], 1);
  const ChoiceTask longer = make_choice_task("t", "t.jsonl", {{1, "q", {"abcd", "ab"}, 0}}, ByteTokenizer(), {});
  const ChoiceResult n = choice_result(longer, {{-4, -3}});
  EXPECT_EQ(n.pred[0], 1);
  EXPECT_EQ(n.pred_norm[0], 0);
  EXPECT_EQ(n.acc.right, 0);
  EXPECT_EQ(n.acc_norm.right, 1);
}

TEST(ChoiceTask, PartialScoring) {
  const std::vector<ChoiceQuestion> q = {{1, "So _ was  late_. ", {"Ann", "Bo"}, 1}};
  ChoiceOptions options;
  options.partial = true;
  const ChoiceTask task = make_choice_task("w", "w.jsonl", q, ByteTokenizer(), options);
  const TokenQuestion& t = task.group.questions[0];
  EXPECT_EQ(task.partial, 1);
  EXPECT_EQ(text_of(t.shared) + text_of(t.endings[0].ids), "So Ann was  late_.");  // the first blank; the rest stripped
  EXPECT_EQ(text_of(t.shared) + text_of(t.endings[1].ids), "So Bo was  late_.");
  EXPECT_EQ(t.endings[0].scored, 12);
  EXPECT_EQ(t.endings[1].scored, 12);
  EXPECT_EQ(choice_result(task, {{-4, -3}}).acc_norm.n, 0);
  options.partial = false;
  EXPECT_EQ(text_of(make_choice_task("w", "w.jsonl", q, ByteTokenizer(), options).group.questions[0].shared),
            "So _ was  late_.  ");
}

TEST(ChoiceTask, EncodedQuestions) {
  const ChoiceTask task = make_choice_task("h", "h.bin", {EncodedQuestion{{1, 2}, {{3}, {4, 5}}, 1}}, 64);
  EXPECT_EQ(task.lengths[0], (std::vector<double>{1, 2}));
  EXPECT_EQ(task.group.questions[0].shared, (std::vector<int32_t>{1, 2}));
  EXPECT_CONTAINS(error_of([] {
                    make_choice_task("h", "h.bin", {EncodedQuestion{{}, {{3}, {4}}, 0}}, 64);
                  }),
                  "h.bin: question 1 cannot be scored");
}

TEST(ChoiceTask, BadLines) {
  const TempFolder folder;
  const auto fails = [&](const std::string& content, const std::string& what, const std::string& detail) {
    const std::string path = folder.write("t.jsonl", content);
    const std::string text = error_of([&] { read_choice_file(path); });
    EXPECT_CONTAINS(text, path + ": " + what);
    EXPECT_CONTAINS(text, detail);
  };
  const std::string good = "{\"query\": \"q\", \"choices\": [\"a\", \"b\"], \"gold\": 1, \"more\": 3}\n";
  EXPECT_EQ(read_choice_file(folder.write("g.jsonl", good + "\n" + good)).size(), 2u);
  EXPECT_EQ(read_choice_file(folder.name("g.jsonl"), 1).size(), 1u);
  EXPECT_EQ(read_choice_file(folder.name("g.jsonl"))[1].line, 3);
  fails("", "the file holds no questions", "expected");
  fails(good + "{\"query\": \"q\"\n", "line 2: not valid JSON", "found   : the end of the line");
  fails(good + "\n[1]\n", "line 3: no \"query\"", "found   : [1]");
  fails("{\"query\": 5, \"choices\": [], \"gold\": 1}", "line 1: \"query\" is no text", "found   : 5");
  fails("{\"query\": \"\", \"choices\": [\"a\"], \"gold\": 0}", "line 1: \"choices\" is no list",
        "at least two strings");
  fails("{\"query\": \"\", \"choices\": [\"a\", \"\"], \"gold\": 0}", "line 1: choice 1 is no text", "not empty");
  fails("{\"query\": \"\", \"choices\": [\"a\", \"b\"], \"gold\": 2}", "line 1: \"gold\" is no",
        "an integer from 0 to 1");
  fails("{\"query\": \"\", \"choices\": [\"a\", \"b\"], \"gold\": \"A\"}", "line 1: \"gold\" is no", "found   : \"A\"");
  fails("{\"query\": \"\", \"choices\": [\"a\", \"b\"]}", "line 1: no \"gold\"", "found");
  fails(good + R"({"query": 6E077777, "choices": ["a", "b"], "gold": 0})", "line 2: not valid JSON",
        "a number beyond every floating-point type");  // found by fuzzing
  fails(std::string(100000, '['), "line 1: not valid JSON", "expected");
  fails(std::string(1000000, '[') + std::string(1000000, ']'), "line 1: is nested too deeply", "expected");
  ChoiceOptions tight;
  tight.max_tokens = 5;
  const std::string text = error_of([&] {
    make_choice_task("t", "t.jsonl", {{4, "q", {"abcdefgh", "b"}, 0}}, ByteTokenizer(), tight);
  });
  EXPECT_CONTAINS(text, "t.jsonl: line 4: choice 0 cannot be scored");
  EXPECT_CONTAINS(text, "found   : 9 tokens");
}

}  // namespace
}  // namespace irq
