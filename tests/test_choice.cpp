// Multiple choice: scores against each choice alone, sharing, packing, irq_eval --choice.
#include <cmath>
#include <nlohmann/json.hpp>

#include "src/eval/choice_task.h"
#include "tests/cli_util.h"
#include "tests/eval_fixture.h"

namespace irq {
namespace {

constexpr int64_t kVocab = 259, kContext = 64;

// The definition: the whole sequence in one forward, log-softmax in double.
double score_by_hand(ModelSession& session, const Continuation& c) {
  const std::vector<float> logits = session.logits(every_position(c.ids));
  double sum = 0;
  for (size_t t = c.ids.size() - static_cast<size_t>(c.scored); t < c.ids.size(); ++t) {
    const float* row = &logits[(t - 1) * kVocab];
    double total = 0;
    for (int64_t v = 0; v < kVocab; ++v) total += std::exp(static_cast<double>(row[v]));
    sum += row[c.ids[t]] - std::log(total);
  }
  return sum;
}

std::vector<int32_t> joined(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// Sequences of every kind: endings of 1 to 9 ids, equal ones, one the beginning of another, one that shares its first ids,
// contexts that differ in their last id, contexts longer than the model's.
std::vector<std::vector<Continuation>> mixed_questions() {
  std::vector<std::vector<Continuation>> all;
  for (uint64_t i = 0; i < 12; ++i) {
    const std::vector<int32_t> context = random_ids(3 + i * 5 % 40, kVocab, i);
    std::vector<Continuation> q;
    for (uint64_t c = 0; c < 2 + i % 3; ++c) {
      const std::vector<int32_t> ending = random_ids(1 + (i + c * 2) % 9, kVocab, 100 * i + c);
      q.push_back({joined(context, ending), static_cast<int64_t>(ending.size())});
    }
    if (i == 3) q.push_back(q[0]);                                         // equal
    if (i == 4) q.push_back({joined(q[0].ids, {7, 8}), q[0].scored + 2});  // goes on
    if (i == 5) q.push_back({joined(q[1].ids, {9}), q[1].scored + 1});
    if (i == 6) q[1].ids[context.size() - 1] ^= 1;  // another last id of the context
    if (i == 7)
      for (Continuation& c : q) c.ids = joined(random_ids(60, kVocab, 7), c.ids);  // too long
    if (i == 8)
      for (Continuation& c : q) c.ids.resize(context.size() + 1), c.scored = 1;  // letters
    all.push_back(q);
  }
  return all;
}

QuestionGroup grouped(const std::vector<std::vector<Continuation>>& questions) {
  QuestionGroup group;
  for (const auto& q : questions) group.questions.push_back(share_beginning(q, kContext));
  return group;
}

std::vector<std::vector<double>> scores_of(const std::string& model, const QuestionGroup& group, int64_t max_rows,
                                           ScoringCount* count = nullptr) {
  const auto backend = eval_backend();
  ModelSession session(*backend, model);
  Workload work;
  add_scoring(work, {&group}, max_rows, Device::CPU);
  session.load({work});
  ScoringCount here;
  return score_group(session, group, max_rows, Device::CPU, count ? *count : here);
}

struct ChoiceModel : testing::Test {
  TempFolder folder;
  std::string bin = folder.name("m.bin");
  std::unique_ptr<CheckedBackend> backend = eval_backend();
  std::unique_ptr<ModelSession> session;
  void SetUp() override {
    write_weights(bin, eval_config(), random_weights(eval_config(), 1));
    session = std::make_unique<ModelSession>(*backend, bin);
    session->load({small_workload()});
  }
  // Sums of up to 9 F32 log-probabilities of size 5 to 60; keys come in other blocks, so sums in another order: 1e-5.
  void expect_by_hand(const std::vector<std::vector<double>>& scores,
                      const std::vector<std::vector<Continuation>>& questions) {
    ASSERT_EQ(scores.size(), questions.size());
    for (size_t i = 0; i < questions.size(); ++i) {
      ASSERT_EQ(scores[i].size(), questions[i].size());
      for (size_t c = 0; c < questions[i].size(); ++c) {
        Continuation whole = questions[i][c];
        if (const auto n = static_cast<int64_t>(whole.ids.size()); n > kContext + 1)
          whole.ids.erase(whole.ids.begin(), whole.ids.begin() + (n - kContext - 1));
        const double expected = score_by_hand(*session, whole);
        EXPECT_NEAR(scores[i][c], expected, 1e-5 * std::abs(expected)) << "question " << i << ", choice " << c;
      }
    }
  }
};

// A batch of fewer rows or labels may need more memory than a larger one, so that each size stands in the plan.
TEST(ChoicePlan, HoldsEverySizeOfBatch) {
  const Continuation long_context{{1, 2, 3, 4, 5, 6, 7, 8}, 1}, long_answer{{1, 2, 3, 4}, 3};
  const QuestionGroup group = grouped({{long_context}, {long_answer}, {long_context}});
  Workload work;
  add_scoring(work, {&group}, 7, Device::CPU);  // seven rows a batch: one question each
  ASSERT_EQ(work.scores.size(), 2u);
  EXPECT_EQ(work.scores[0], (StepShape{3, 3, 1}));
  EXPECT_EQ(work.scores[1], (StepShape{7, 1, 1}));
}

TEST_F(ChoiceModel, ScoresAreThoseOfEachChoiceAlone) {
  session = std::make_unique<ModelSession>(*backend, bin);
  session->load({{.evaluate = {}, .logits = {{128, 128, 8}}, .positions = 80, .cache_tokens = 0}});
  const auto questions = mixed_questions();
  const QuestionGroup group = grouped(questions);
  EXPECT_TRUE(group.questions[7].cut);
  for (const int64_t max_rows : {1, 60, 512}) expect_by_hand(scores_of(bin, group, max_rows), questions);
  // A model that knows nothing of the context would give other scores: the test can fail.
  QuestionGroup wrong = group;
  wrong.questions[0].shared[0] ^= 1;
  EXPECT_GT(std::abs(scores_of(bin, wrong, 512)[0][0] - scores_of(bin, group, 512)[0][0]), 1e-3);
}

TEST_F(ChoiceModel, PackingChangesNothing) {
  const auto questions = mixed_questions();
  const QuestionGroup group = grouped(questions);
  const auto together = scores_of(bin, group, 512);
  for (size_t i = 0; i < questions.size(); ++i) {
    QuestionGroup one;
    one.questions = {group.questions[i]};
    const std::vector<double> alone = scores_of(bin, one, 512)[0];
    for (size_t c = 0; c < alone.size();
         ++c)  // products of few rows are summed in another order: a few roundings of 6e-8
      EXPECT_NEAR(alone[c], together[i][c], 2e-6 * std::abs(alone[c])) << i << " " << c;
  }
}

TEST_F(ChoiceModel, QuestionsGoOnFromTheCachedPrefix) {
  const std::vector<int32_t> shots = random_ids(40, kVocab, 50), letters = {5, 6, 7, 8};
  std::vector<std::vector<Continuation>> questions;
  for (uint64_t i = 0; i < 9; ++i) {
    std::vector<int32_t> ids = shots;
    if (i == 2) ids.resize(20);                                    // fewer shots
    if (i == 5) ids = random_ids(4, kVocab, 51);                   // nothing in common
    ids = joined(ids, random_ids(i == 3 ? 0 : 4 + i, kVocab, i));  // number 3 is the prefix itself
    questions.emplace_back();
    for (const int32_t letter : letters) questions.back().push_back({joined(ids, {letter}), 1});
  }
  questions.push_back({{joined(shots, {1, 2, 3}), 3}, {joined(shots, {4, 5}), 2}});  // needs rows of its own
  QuestionGroup group = grouped(questions);
  const auto plain = scores_of(bin, group, 512);
  find_prefix(group);
  EXPECT_EQ(group.prefix, std::vector<int32_t>(shots.begin(), shots.end()));
  int64_t alone = 0, expected_rows = 40;
  for (const TokenQuestion& q : group.questions) alone += q.alone_rows;
  for (const int64_t own : {4, 5, 6, 1, 8, 4 + 9, 10, 11, 12, 40 + 2 + 1}) expected_rows += own;
  for (const int64_t max_rows : {1, 30, 512}) {
    ScoringCount count;
    const auto scores = scores_of(bin, group, max_rows, &count);
    EXPECT_EQ(count.computed_rows, expected_rows);
    EXPECT_EQ(count.computed_rows + count.saved_rows, alone);
    EXPECT_EQ(count.questions, 10);
    for (size_t i = 0; i < plain.size(); ++i)
      for (size_t c = 0; c < plain[i].size(); ++c)
        EXPECT_NEAR(scores[i][c], plain[i][c], 1e-5 * std::abs(plain[i][c])) << i << " " << c;  // keys in other blocks
    expect_by_hand(scores, questions);
  }
}

TEST(Choice, WhatSequencesShare) {
  const TokenQuestion q = share_beginning({{{1, 2, 3, 4}, 1}, {{1, 2, 5}, 2}, {{1, 2, 3, 4}, 1}}, 10);
  EXPECT_EQ(q.shared, (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(q.endings[0].ids, (std::vector<int32_t>{3, 4}));
  EXPECT_EQ(q.endings[1].ids, (std::vector<int32_t>{5}));
  EXPECT_EQ(q.alone_rows, 3 + 2 + 3);
  EXPECT_FALSE(q.cut);
  // Equal sequences keep their last id each; three rows suffice for both.
  EXPECT_EQ(share_beginning({{{1, 2, 3, 4}, 1}, {{1, 2, 3, 4}, 2}}, 10).shared, (std::vector<int32_t>{1, 2, 3}));
  // Three predictions keep four ids.
  const TokenQuestion cut = share_beginning({{{1, 2, 3, 4, 5}, 1}, {{1, 2, 3, 4, 6}, 1}}, 3);
  EXPECT_EQ(cut.shared, (std::vector<int32_t>{2, 3, 4}));
  EXPECT_TRUE(cut.cut);
}

TEST(Choice, AFirstTieAndStandardErrors) {
  EXPECT_EQ(first_largest({1, 3, 3, 2}), 1);
  EXPECT_EQ(first_largest({-2, -2}), 0);
  // lm-evaluation-harness: the sample's standard deviation of 0 and 1 over sqrt(n).
  Accuracy a;
  double mean = 0, squares = 0;
  for (int i = 0; i < 10; ++i) a.add(i < 3), mean += (i < 3) / 10.0;
  for (int i = 0; i < 10; ++i) squares += ((i < 3) - mean) * ((i < 3) - mean);
  EXPECT_DOUBLE_EQ(a.value(), 0.3);
  EXPECT_NEAR(a.standard_error(), std::sqrt(squares / 9) / std::sqrt(10.0), 1e-15);
  Accuracy one;
  one.add(true);
  EXPECT_TRUE(std::isnan(one.standard_error()));
}

TEST(Choice, IdsOutsideTheVocabulary) {
  QuestionGroup group = grouped({{{{1, 2, 3}, 1}, {{1, 2, 300}, 1}}});
  check_ids(group, 301, "t.jsonl");
  EXPECT_CONTAINS(error_of([&] { check_ids(group, 300, "t.jsonl"); }), "t.jsonl: token id outside");
}

// ---- the command, with the demo's model ----------------------------------------------------------------------------
const char* kTask =
    "{\"query\": \"The opposite of stable is\", \"choices\": [\"unstable.\", \"a dog.\", \"unstable, not firm.\"], "
    "\"gold\": 0}\n"
    "{\"query\": \"A dog is\", \"choices\": [\"an animal.\", \"a number.\"], \"gold\": 1}\n";

TEST(EvalChoice, ReportAndTable) {
  const TempDir dir;
  std::ofstream(dir / "opposites.jsonl") << kTask;
  std::ofstream(dir / "wino.jsonl") << "{\"query\": \"The _ barks\", \"choices\": [\"dog\", \"stone\"], \"gold\": 0}\n";
  const CommandResult r =
      run_command("irq_eval", {demo_path("model.bin"), "--choice", dir / "opposites.jsonl", dir / "wino.jsonl",
                               "--partial", "--json", dir / "out.json", "--device", "cpu"});
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_CONTAINS(r.err, "wino: 1 of 1 questions by partial scoring");
  EXPECT_CONTAINS(r.err, "saved by sharing");
  const nlohmann::json j = nlohmann::json::parse(read_text(dir / "out.json"));
  const nlohmann::json& t = j.at("tasks").at("opposites");
  EXPECT_EQ(t.at("n"), 2);
  EXPECT_EQ(t.at("questions").size(), 2u);
  const auto tokenizer = open_tokenizer(demo_path("tokenizer.model"));
  const auto backend = eval_backend();
  ModelSession session(*backend, demo_path("model.bin"));
  session.load({{.evaluate = {}, .logits = {{64, 64, 1}}, .positions = 64, .cache_tokens = 0}});
  Accuracy acc;
  const std::vector<ChoiceQuestion> questions = read_choice_file(dir / "opposites.jsonl");
  for (size_t i = 0; i < 2; ++i) {
    const nlohmann::json& q = t["questions"][i];
    EXPECT_EQ(q.at("gold"), questions[i].gold);
    EXPECT_EQ(q.at("pred"), first_largest(q.at("scores").get<std::vector<double>>()));
    acc.add(q["pred"] == q["gold"]);
    for (size_t c = 0; c < questions[i].choices.size(); ++c) {
      const Continuation whole =
          encode_continuation(*tokenizer, questions[i].query, " " + questions[i].choices[c], false);
      const std::vector<float> logits = session.logits(every_position(whole.ids));
      double sum = 0;
      for (size_t at = whole.ids.size() - static_cast<size_t>(whole.scored); at < whole.ids.size(); ++at) {
        const float* row = &logits[(at - 1) * 4096];
        double total = 0;
        for (int v = 0; v < 4096; ++v) total += std::exp(static_cast<double>(row[v]));
        sum += row[whole.ids[at]] - std::log(total);
      }
      EXPECT_NEAR(q["scores"][c].get<double>(), sum, 1e-5 * std::abs(sum));  // F32, sums in another order
    }
  }
  EXPECT_DOUBLE_EQ(t.at("acc"), acc.value());
  EXPECT_DOUBLE_EQ(t.at("acc_se"), acc.standard_error());
  EXPECT_TRUE(t.at("acc_norm").is_number() && t.at("acc_norm_se").is_number());
  EXPECT_TRUE(j["tasks"]["wino"].at("acc_norm").is_null());  // WinoGrande has acc only
  EXPECT_CONTAINS(r.out, strf("|opposites| 2|     0|acc     |%.4f|±|%.4f|", acc.value(), acc.standard_error()));
  EXPECT_CONTAINS(r.out, "|wino     | 1|     0|acc     |");
  EXPECT_CONTAINS(r.out, "|±|   N/A|");
}

// llm.c's evaluation file of the same ids gives the same scores, without any tokenizer.
TEST(EvalChoice, IdsFromAnEvaluationFile) {
  const TempDir dir;
  const std::vector<int32_t> context = {20, 30, 40, 50};
  const std::vector<std::vector<int32_t>> choices = {{60, 70}, {80}, {60, 71, 90}, {100}};
  std::vector<uint16_t> example = {65535, 0, 0, 2, 4, 4, 20, 30, 40, 50};
  for (const auto& c : choices) {
    example.push_back(static_cast<uint16_t>(c.size()));
    example.insert(example.end(), c.begin(), c.end());
  }
  example[1] = static_cast<uint16_t>(2 * example.size());
  std::vector<int32_t> header(256, 0);
  header[0] = 20240522, header[1] = 1, header[2] = 1, header[3] = example[1];
  std::ofstream file(dir / "hella.bin", std::ios::binary);
  file.write(reinterpret_cast<const char*>(header.data()), 1024);
  file.write(reinterpret_cast<const char*>(example.data()), static_cast<std::streamsize>(2 * example.size()));
  file.close();
  std::filesystem::copy_file(demo_path("model.bin"), dir / "model.bin");  // no tokenizer beside it
  const CommandResult r = run_command("irq_eval", {dir / "model.bin", "--choice", dir / "hella.bin", "--json",
                                                   dir / "out.json", "--device", "cpu", "--quiet"});
  ASSERT_EQ(r.status, 0) << r.err;
  const nlohmann::json q =
      nlohmann::json::parse(read_text(dir / "out.json")).at("tasks").at("hella").at("questions")[0];
  EXPECT_EQ(q.at("gold"), 2);
  QuestionGroup group = grouped({{{joined(context, choices[0]), 2},
                                  {joined(context, choices[1]), 1},
                                  {joined(context, choices[2]), 3},
                                  {joined(context, choices[3]), 1}}});
  EXPECT_EQ(q.at("scores").get<std::vector<double>>(),
            scores_of(demo_path("model.bin"), group, 512)[0]);  // the same work
}

TEST(EvalChoice, SaysWhatIsWrong) {
  const TempDir dir;
  std::ofstream(dir / "t.jsonl") << kTask << "oops\n";
  const auto fails = [&](std::vector<std::string> args, int status, const std::string& text) {
    args.insert(args.begin(), demo_path("model.bin"));
    args.insert(args.end(), {"--device", "cpu", "--quiet"});
    const CommandResult r = run_command("irq_eval", args);
    EXPECT_EQ(r.status, status) << r.err;
    EXPECT_CONTAINS(r.err, text);
    EXPECT_EQ(r.out, "");
  };
  fails({"--choice", dir / "t.jsonl"}, 1, "t.jsonl: line 3: not valid JSON");
  fails({"--choice", dir / "none.jsonl"}, 1, "none.jsonl");
  fails({"--choice", dir / "t.jsonl", dir.path() + "/../t.jsonl"}, 2, "two tasks are called t");
  fails({"--partial"}, 2, "nothing to evaluate");
  fails({"--logits", "1,2", dir / "x.npy", "--add-bos"}, 2, "belong to --choice");
  fails({"--choice", dir / "t.jsonl", "--shots", "3"}, 2, "belong to --mmlu");
  fails({"--choice", dir / "t.jsonl", "--csv", "raw"}, 2, "--csv has no effect here: ");
  fails({"--choice", dir / "t.jsonl", "--stride", "3"}, 2, "--stride has no effect here: ");
  fails({"--logits", "1,2", dir / "x.npy", "--partial"}, 2, "--partial has no effect here: ");
  fails({"--logits", "1,2", dir / "x.npy", "--limit", "3"}, 2, "--limit has no effect here: ");
  fails({"--logits", "1,2", dir / "x.npy", "--legacy", "on"}, 2, "--legacy has no effect here: ");
}

}  // namespace
}  // namespace irq
