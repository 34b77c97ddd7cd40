// llm.c's evaluation files.
#include <array>
#include <cstring>

#include "src/text/eval_file.h"
#include "tests/text_fixtures.h"

namespace irq {
namespace {

using Ids = std::vector<int32_t>;
using Words = std::vector<uint16_t>;

// 65535, bytes, index, label, number of choices, context length, context, then length and ids of each choice.
Words example(uint16_t index, uint16_t label, const Words& context, const std::vector<Words>& choices) {
  Words words{65535, 0, index, label, static_cast<uint16_t>(choices.size()), static_cast<uint16_t>(context.size())};
  words.insert(words.end(), context.begin(), context.end());
  for (const Words& c : choices) {
    words.push_back(static_cast<uint16_t>(c.size()));
    words.insert(words.end(), c.begin(), c.end());
  }
  words[1] = static_cast<uint16_t>(words.size() * 2);
  return words;
}

std::string file_of(const Words& body, int32_t count, int32_t version = 1, int32_t magic = 20240522) {
  const std::array<int32_t, 256> head{magic, version, count, 1000};
  return std::string(reinterpret_cast<const char*>(head.data()), 1024) +
         std::string(reinterpret_cast<const char*>(body.data()), body.size() * 2);
}

Words two_examples() {
  Words body = example(7, 2, {50000, 11}, {{1}, {2, 3}, {4}, {65535}});
  const Words second = example(8, 0, {}, {{1}, {2}});
  body.insert(body.end(), second.begin(), second.end());
  return body;
}

TEST(EvalFile, Parses) {
  const std::string content = file_of(two_examples(), 2);
  EXPECT_TRUE(is_eval_file(content));
  EXPECT_FALSE(is_eval_file("abc"));
  const auto questions = parse_eval_file("x.bin", content);
  ASSERT_EQ(questions.size(), 2u);
  EXPECT_EQ(questions[0].index, 7);
  EXPECT_EQ(questions[0].label, 2);
  EXPECT_EQ(questions[0].context, Ids({50000, 11}));
  EXPECT_EQ(questions[0].choices, (std::vector<Ids>{{1}, {2, 3}, {4}, {65535}}));
  EXPECT_EQ(questions[1].index, 8);
  EXPECT_TRUE(questions[1].context.empty());
  EXPECT_EQ(questions[1].choices, (std::vector<Ids>{{1}, {2}}));
}

TEST(EvalFile, CutAnywhereIsAnError) {
  const std::string content = file_of(two_examples(), 2);
  for (size_t n = 0; n < content.size(); ++n) {
    const std::string message = error_of([&] { parse_eval_file("x.bin", content.substr(0, n)); });
    EXPECT_CONTAINS(message, n < 4 ? "not an llm.c evaluation file" : "cut short");
  }
  EXPECT_CONTAINS(error_of([&] { parse_eval_file("x.bin", content + "ab"); }), "longer than its header says");
}

TEST(EvalFile, WrongCounts) {
  const auto error = [](size_t at, uint16_t value) {
    Words body = two_examples();
    body[at] = value;
    return error_of([&] { parse_eval_file("x.bin", file_of(body, 2)); });
  };
  EXPECT_CONTAINS(error(0, 1), "the mark of an example, 65535");
  EXPECT_CONTAINS(error(1, 8), "an example of 8 bytes");
  EXPECT_CONTAINS(error(3, 4), "a right choice below the number of choices");
  EXPECT_CONTAINS(error(4, 0), "1 to 64 choices");
  EXPECT_CONTAINS(error(4, 65535), "1 to 64 choices");
  EXPECT_CONTAINS(error(5, 65535), "cut short");
  EXPECT_CONTAINS(error(8, 0), "a choice of at least one token");
  const Words body = two_examples();
  EXPECT_CONTAINS(error_of([&] { parse_eval_file("x.bin", file_of(body, 2, 2)); }), "unknown version");
  EXPECT_CONTAINS(error_of([&] { parse_eval_file("x.bin", file_of(body, 0)); }), "without an example");
  EXPECT_CONTAINS(error_of([&] { parse_eval_file("x.bin", file_of(body, -1)); }), "without an example");
  EXPECT_CONTAINS(error_of([&] { parse_eval_file("x.bin", file_of(body, INT32_MAX)); }), "cut short");
  EXPECT_CONTAINS(error_of([&] { parse_eval_file("x.bin", file_of(body, 2, 1, 20240520)); }),
                  "not an llm.c evaluation");
}

}  // namespace
}  // namespace irq
