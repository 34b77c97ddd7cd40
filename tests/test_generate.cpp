// Generation: the cache, the choice of a token, stop strings, streaming, and irq_generate.
#include <cmath>
#include <set>

#include "src/text/instruct.h"
#include "tests/cli_util.h"
#include "tests/eval_fixture.h"

namespace irq {
namespace {

// A session on a random model.
struct Model {
  TempFolder folder;
  std::string path = folder.name("m.bin");
  std::unique_ptr<CheckedBackend> backend = eval_backend();
  std::unique_ptr<ModelSession> session;
  explicit Model(uint64_t seed = 1) {
    write_weights(path, eval_config(), random_weights(eval_config(), seed));
    session = std::make_unique<ModelSession>(*backend, path);
    session->load({small_workload()});
  }
  // The next token without a cache: a forward pass over the whole sequence.
  int32_t next(const std::vector<int32_t>& ids) {
    const int64_t vocab = session->config().vocab;
    const std::vector<float> logits = session->logits(every_position(ids));
    return argmax(&logits[(ids.size() - 1) * static_cast<size_t>(vocab)], vocab);
  }
  std::vector<int32_t> greedy_without_cache(std::vector<int32_t> ids, size_t count) {
    const size_t begin = ids.size();
    while (ids.size() < begin + count) ids.push_back(next(ids));
    return {ids.begin() + static_cast<int64_t>(begin), ids.end()};
  }
  Generated greedy(Generator& g, const std::vector<int32_t>& context, int64_t count) {
    Sampler sampler({});
    return g.run(context, sampler, {.max_tokens = count, .end_ids = {}});
  }
};

TEST(Generate, GreedyWithCacheIsTheArgmaxWithout) {
  for (const uint64_t seed : {1, 2, 3}) {
    Model m(seed);
    for (const size_t length : {size_t{1}, size_t{2}, size_t{17}}) {
      const std::vector<int32_t> prompt = random_ids(length, 259, seed + length);
      const std::vector<int32_t> expected = m.greedy_without_cache(prompt, 40);
      EXPECT_GT(std::set<int32_t>(expected.begin(), expected.end()).size(), 3u)
          << "a loop of few tokens would prove little";
      for (const int64_t prefill_rows : {1, 5, 1024}) {  // a prompt in pieces is the same prompt
        Generator g(*m.session, prefill_rows);
        EXPECT_EQ(m.greedy(g, prompt, 40).ids, expected) << "prompt of " << length;
      }
    }
  }
}

// Rows of a packed batch do not see each other, so that what else is in a batch changes only the order of sums, which a
// GEMM may choose by the number of rows.
TEST(Generate, LogitsDoNotDependOnTheRestOfTheBatch) {
  Model m;
  std::vector<Example> examples;
  for (const size_t n : {12, 3, 25}) examples.push_back({random_ids(n, 259, n), std::vector<uint8_t>(n, 1)});
  const std::vector<float> packed = m.session->logits(pack_range(examples, {0, 3}));
  size_t at = 0;
  for (const Example& e : examples) {
    std::vector<int32_t> ids = e.ids;
    ids.pop_back();
    const std::vector<float> alone = m.session->logits(every_position(ids));
    for (size_t i = 0; i < ids.size(); ++i) {
      const float *x = &packed[at + i * 259], *y = &alone[i * 259];
      EXPECT_EQ(argmax(x, 259), argmax(y, 259));
      for (size_t v = 0; v < 259; ++v) EXPECT_NEAR(x[v], y[v], 1e-4);  // logits of size 5 after two layers in F32
    }
    at += alone.size();
  }
  EXPECT_EQ(at, packed.size());
}

TEST(Generate, AConversationGoesOnFromTheCache) {
  Model m;
  const std::vector<int32_t> prompt = random_ids(10, 259, 1);
  Generator g(*m.session);
  const Generated first = m.greedy(g, prompt, 6);
  EXPECT_EQ(first.prefilled, 10);
  std::vector<int32_t> longer = prompt;
  longer.insert(longer.end(), first.ids.begin(), first.ids.end());
  for (const int32_t id : {7, 8, 9}) longer.push_back(id);
  const Generated second = m.greedy(g, longer, 6);
  EXPECT_EQ(second.prefilled, 4);  // the last token of the answer was never run, and three new ones
  EXPECT_EQ(second.ids, m.greedy_without_cache(longer, 6));
  // Another beginning, and a shorter one: nothing stale is read.
  for (std::vector<int32_t> other :
       {random_ids(8, 259, 2), std::vector<int32_t>(prompt.begin(), prompt.begin() + 4), prompt})
    EXPECT_EQ(m.greedy(g, other, 6).ids, m.greedy_without_cache(other, 6));
  EXPECT_EQ(m.greedy(g, prompt, 1).prefilled, 1);  // all known, but the last row's logits are needed
}

TEST(Generate, Ends) {
  Model m;
  const std::vector<int32_t> prompt = random_ids(10, 259, 1);
  const std::vector<int32_t> all = m.greedy_without_cache(prompt, 20);
  Generator g(*m.session);
  Sampler greedy({});
  // At an end-of-text token, which is no part of the completion. The first token that did not occur before:
  size_t end = 1;
  while (std::find(all.begin(), all.begin() + static_cast<int64_t>(end), all[end]) !=
         all.begin() + static_cast<int64_t>(end))
    ++end;
  Generated r = g.run(prompt, greedy, {.max_tokens = 20, .end_ids = {all[end]}});
  EXPECT_EQ(r.reason, StopReason::end_of_text);
  EXPECT_EQ(r.ids, std::vector<int32_t>(all.begin(), all.begin() + static_cast<int64_t>(end)));
  // When the caller has enough: the token it saw last belongs to the completion.
  int seen = 0;
  r = g.run(prompt, greedy, {.max_tokens = 20, .end_ids = {}}, [&](int32_t) { return ++seen < 4; });
  EXPECT_EQ(r.reason, StopReason::stopped);
  EXPECT_EQ(r.ids.size(), 4u);
  r = g.run(prompt, greedy, {.max_tokens = 5, .end_ids = {}});
  EXPECT_EQ(r.reason, StopReason::max_tokens);
  EXPECT_EQ(r.ids.size(), 5u);
  // 64 positions hold the prompt and all but the last token, which is not run.
  r = g.run(prompt, greedy, {.max_tokens = 1000, .end_ids = {}});
  EXPECT_EQ(r.reason, StopReason::context_full);
  EXPECT_EQ(r.ids.size(), 64u - 10 + 1);
}

// ---- the choice of a token -----------------------------------------------------------------------------------------
constexpr int kDraws = 40000;

std::vector<double> frequencies(const SamplingOptions& o, const std::vector<float>& logits,
                                const std::vector<int32_t>& context = {}) {
  Sampler sampler(o);
  std::vector<double> count(logits.size(), 0);
  for (int i = 0; i < kDraws; ++i) ++count[static_cast<size_t>(sampler.pick(logits, context))];
  for (double& c : count) c /= kDraws;
  return count;
}

// Five standard deviations of a frequency among kDraws draws: one wrong alarm in a million per token, and the seed is fixed.
void expect_distribution(const std::vector<double>& found, std::vector<double> expected) {
  const double sum = std::accumulate(expected.begin(), expected.end(), 0.0);
  for (size_t i = 0; i < expected.size(); ++i) {
    const double p = expected[i] / sum;
    EXPECT_NEAR(found[i], p, 5 * std::sqrt(p * (1 - p) / kDraws)) << "token " << i;  // never drawn where p = 0
  }
}

const std::vector<float> kLogits = {0.5f, 2.0f, -1.0f, 1.0f, 2.0f, -30.0f};

std::vector<double> weights(double temperature) {
  std::vector<double> w;
  for (const float x : kLogits) w.push_back(std::exp(x / temperature));
  return w;
}

TEST(Sampler, TemperatureIsTheSoftmaxOfScaledLogits) {
  for (const double t : {0.5, 1.0, 2.0}) expect_distribution(frequencies({.temperature = t}, kLogits), weights(t));
}

TEST(Sampler, TopKKeepsTheLargest) {
  std::vector<double> w = weights(1);
  w[0] = w[2] = w[5] = 0;
  expect_distribution(frequencies({.temperature = 1, .top_k = 3}, kLogits), w);
  w[3] = w[4] = 0;  // of two equal ones the lower id stays
  expect_distribution(frequencies({.temperature = 1, .top_k = 1}, kLogits), w);
  expect_distribution(frequencies({.temperature = 1, .top_k = 100}, kLogits), weights(1));
}

TEST(Sampler, TopPKeepsTheFewestThatReachIt) {
  // Probabilities 0.5, 0.25, 0.125, 0.125: all sums are exact in binary up to the rounding of log.
  const std::vector<float> logits = {std::log(0.125f), std::log(0.5f), std::log(0.125f), std::log(0.25f)};
  const auto check = [&](double p, std::vector<double> expected) {
    expect_distribution(frequencies({.temperature = 1, .top_p = p}, logits), std::move(expected));
  };
  check(0.01, {0, 1, 0, 0});
  check(0.49, {0, 1, 0, 0});
  check(0.51, {0, 2, 0, 1});
  check(0.74, {0, 2, 0, 1});
  check(0.76, {1, 4, 0, 2});  // the token that crosses p belongs to it
  check(0.9, {1, 4, 1, 2});
  check(1, {1, 4, 1, 2});
  // top-k first, then top-p of what is left: two thirds of {0.5, 0.25} is the first alone.
  expect_distribution(frequencies({.temperature = 1, .top_p = 0.66, .top_k = 2}, logits), {0, 1, 0, 0});
  // Temperature first: at 0.5 the probabilities are 16, 4, 1, 1 of 22, and 0.7 is reached by the first.
  expect_distribution(frequencies({.temperature = 0.5, .top_p = 0.7}, logits), {0, 1, 0, 0});
}

TEST(Sampler, RepetitionPenaltyDividesAndMultiplies) {
  std::vector<double> w = weights(1);
  w[1] = std::exp(2.0 / 1.5), w[2] = std::exp(-1.0 * 1.5);
  expect_distribution(frequencies({.temperature = 1, .repetition_penalty = 1.5}, kLogits, {1, 2, 1, 1}),
                      w);  // once per token
  Sampler greedy({.repetition_penalty = 1.5});
  EXPECT_EQ(greedy.pick(kLogits, {}), 1);
  EXPECT_EQ(greedy.pick(kLogits, {1}), 4);
  EXPECT_EQ(greedy.pick(kLogits, {1, 4}), 1);  // both at 1.33, above 1.0
  EXPECT_EQ(greedy.pick(kLogits, {-1, 1, 999}), 4);
}

TEST(Sampler, FollowsTheSeed) {
  const auto draw = [](uint64_t seed) {
    Sampler sampler({.temperature = 1, .seed = seed});
    std::vector<int32_t> ids;
    for (int i = 0; i < 50; ++i) ids.push_back(sampler.pick(kLogits, {}));
    return ids;
  };
  EXPECT_EQ(draw(1), draw(1));
  EXPECT_NE(draw(1), draw(2));
}

TEST(Sampler, RefusesWhatIsNoNumber) {
  const float nan = std::nanf("");
  Sampler greedy({}), warm({.temperature = 1});
  EXPECT_EQ(greedy.pick({nan, 1, 2, nan}, {}), 2);
  EXPECT_NE(warm.pick({nan, 1, 2, nan}, {}) % 3, 0);
  EXPECT_CONTAINS(error_of([&] { greedy.pick({nan, nan}, {}); }), "not a number");
  EXPECT_CONTAINS(error_of([&] { greedy.pick({1, INFINITY}, {}); }), "not a number");
}

// ---- text ----------------------------------------------------------------------------------------------------------
// What each push shows, joined by '|', then '/' and what finish() shows.
std::string shown(StopFilter filter, const std::vector<std::string>& pieces) {
  std::string all;
  for (const std::string& p : pieces) all += filter.push(p) + "|";
  return all + "/" + filter.finish() + (filter.stopped() ? "!" : "");
}

TEST(StopFilter, AcrossTokenBorders) {
  EXPECT_EQ(shown(StopFilter({"END"}), {"abEN", "D", "xyz"}), "ab|||/!");
  EXPECT_EQ(shown(StopFilter({"END"}), {"abE", "NX"}), "ab|ENX|/");
  EXPECT_EQ(shown(StopFilter({"END"}), {"abEN"}), "ab|/EN");
  EXPECT_EQ(shown(StopFilter({"END"}), {"E", "E", "N", "D"}), "|E|||/!");
  EXPECT_EQ(shown(StopFilter({"aab"}), {"a", "a", "a", "a", "b"}), "||a|a||/!");  // a false start inside a true one
  EXPECT_EQ(shown(StopFilter({"yz", "xyz"}), {"w", "x", "yz"}), "w|||/!");        // the one that begins first
  EXPECT_EQ(shown(StopFilter({}), {"a", "b"}), "a|b|/");
  EXPECT_EQ(shown(StopFilter({"x"}), {"abxcdx"}), "ab|/!");
}

std::string streamed(const Tokenizer& tokenizer, const std::string& bytes, std::vector<std::string> stops,
                     std::string* parts = nullptr) {
  TextStream stream(tokenizer, std::move(stops));
  std::string all;
  for (const char c : bytes) {
    const std::string piece = stream.push(3 + static_cast<uint8_t>(c));
    EXPECT_TRUE(is_utf8(piece));
    if (parts) *parts += piece + "|";
    all += piece;
  }
  return all + stream.finish();
}

TEST(TextStream, CharactersSplitOverTokensStayWhole) {
  const ByteTokenizer bytes;
  std::string parts;
  EXPECT_EQ(streamed(bytes, "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80z", {}, &parts),
            "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80z");
  EXPECT_EQ(parts, "a||\xC3\xA9|||\xE2\x82\xAC||||\xF0\x9F\x98\x80|z|");
  EXPECT_EQ(streamed(bytes, "a\xE2\x82", {}), "a\xEF\xBF\xBD\xEF\xBF\xBD");  // it never ended: U+FFFD for each byte
  EXPECT_EQ(streamed(bytes, "x\xE2\x82\xAC stop", {"\xE2\x82\xAC s"}), "x");
  EXPECT_EQ(streamed(bytes, "one\ntwo\n\nthree", {"\n\n"}), "one\ntwo");
  EXPECT_EQ(streamed(bytes, "one\ntwo\n", {"\n\n"}), "one\ntwo\n");
}

// Every text begins with a space that is no part of it.
class DummySpaceTokenizer final : public Tokenizer {
 public:
  std::string bytes_of(int32_t id) const override { return id < 3 ? "" : std::string(1, static_cast<char>(id)); }
  bool has_dummy_space() const override { return true; }
  int32_t bos() const override { return 1; }
  int32_t eos() const override { return 2; }
  int64_t vocab_size() const override { return 256; }
  std::string describe() const override { return "bytes after a space"; }

 protected:
  std::vector<int32_t> encode_text(std::string_view, Before) const override { return {}; }
  bool splits_at_newline() const override { return true; }
};

TEST(TextStream, AContinuationKeepsItsFirstSpace) {
  const DummySpaceTokenizer tokenizer;
  TextStream answer(tokenizer, {}), goes_on(tokenizer, {}, {1, ' ', 'H', 'i'}), after_bos(tokenizer, {}, {1});
  EXPECT_EQ(answer.push(' '), "");
  EXPECT_EQ(answer.push(' '), " ");
  EXPECT_EQ(goes_on.push(' '), " ");
  EXPECT_EQ(after_bos.push(' '), "");
}

// ---- the command ---------------------------------------------------------------------------------------------------
std::string joined(const std::vector<int32_t>& ids) {
  std::string text;
  for (const int32_t id : ids) text += (text.empty() ? "" : ",") + std::to_string(id);
  return text;
}

CommandResult generate(std::vector<std::string> args) {
  args.insert(args.end(), {"--device", "cpu", "--quiet"});
  return run_command("irq_generate", args);
}

TEST(GenerateCommand, IdsWithoutATokenizer) {
  Model m;
  const std::vector<int32_t> expected = m.greedy_without_cache({5, 6, 7}, 12);
  ASSERT_EQ(std::count(expected.begin(), expected.end(), 2), 0) << "the end-of-text id would cut the comparison short";
  const CommandResult r = generate({m.path, "--ids", "5,6,7", "--max-tokens", "12"});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_EQ(r.out, joined(expected) + "\n");
  EXPECT_EQ(r.err, "");
  const std::vector<std::string> warm = {m.path, "--ids",         "5,6,7", "--max-tokens",
                                         "12",   "--temperature", "2",     "--seed"};
  const auto with_seed = [&](const char* seed) {
    std::vector<std::string> args = warm;
    args.push_back(seed);
    return generate(args).out;
  };
  EXPECT_EQ(with_seed("1"), with_seed("1"));
  EXPECT_NE(with_seed("1"), with_seed("2"));
}

TEST(GenerateCommand, TextWithTheTokenizerBesideTheModel) {
  const TempFolder folder;
  ModelConfig c = eval_config();
  const auto tokenizer = open_tokenizer(demo_path("tokenizer.model"));
  c.vocab = tokenizer->vocab_size(), c.max_seq = 256;
  write_weights(folder.name("m.bin"), c, random_weights(c, 1));
  std::filesystem::copy_file(demo_path("tokenizer.model"), folder.name("tokenizer.model"));

  const CommandResult text = generate({folder.name("m.bin"), "--prompt", "A cat", "--max-tokens", "12"});
  ASSERT_EQ(text.status, 0) << text.err;
  const CommandResult ids =
      generate({folder.name("m.bin"), "--ids", joined(tokenizer->encode("A cat", true)), "--max-tokens", "12"});
  ASSERT_EQ(ids.status, 0) << ids.err;
  // The completion goes on in the prompt's text: decoded with it, less the prompt.
  std::vector<int32_t> all = tokenizer->encode("A cat", true);
  std::stringstream list(ids.out);
  for (std::string id; std::getline(list, id, ',');) all.push_back(std::stoi(id));
  EXPECT_EQ("A cat" + text.out, tokenizer->decode(all) + "\n");
  EXPECT_TRUE(is_utf8(text.out));
  // A stop string from the middle of what comes.
  ASSERT_GT(text.out.size(), 12u);
  const std::string stop = text.out.substr(6, 4);
  const CommandResult cut = generate({folder.name("m.bin"), "--prompt", "A cat", "--max-tokens", "12", "--stop", stop});
  EXPECT_EQ(cut.out, text.out.substr(0, text.out.find(stop)) + "\n");
  // The same with ids: the token that completes the stop string is the last one.
  const CommandResult cut_ids = generate(
      {folder.name("m.bin"), "--ids", joined(tokenizer->encode("A cat", true)), "--max-tokens", "12", "--stop", stop});
  EXPECT_EQ(cut_ids.status, 0) << cut_ids.err;
  ASSERT_LT(cut_ids.out.size(), ids.out.size());
  std::string prefix = cut_ids.out;
  prefix.pop_back();
  EXPECT_EQ(ids.out.substr(0, prefix.size()), prefix);
  all = tokenizer->encode("A cat", true);
  std::stringstream cut_list(prefix);
  for (std::string id; std::getline(cut_list, id, ',');) all.push_back(std::stoi(id));
  EXPECT_CONTAINS(tokenizer->decode(all), stop);
  all.pop_back();
  EXPECT_EQ(tokenizer->decode(all).find(stop, 5), std::string::npos);
  // --chat is the Alpaca prompt, spelled out.
  const CommandResult chat = generate({folder.name("m.bin"), "--chat", "--prompt", "Say hello.", "--max-tokens", "8"});
  const CommandResult spelled = generate(
      {folder.name("m.bin"), "--ids", joined(tokenizer->encode(alpaca_prompt("Say hello.", ""), true, Before::special)),
       "--max-tokens", "8"});
  all.clear();
  std::stringstream chat_list(spelled.out);
  for (std::string id; std::getline(chat_list, id, ',');) all.push_back(std::stoi(id));
  EXPECT_EQ(chat.status, 0) << chat.err;
  EXPECT_EQ(chat.out, tokenizer->decode(all) + "\n");
}

TEST(GenerateCommand, SaysWhatIsWrong) {
  Model m;
  const auto fails = [&](std::vector<std::string> args, int status, const std::string& text) {
    args.insert(args.begin(), m.path);
    const CommandResult r = generate(std::move(args));
    EXPECT_EQ(r.status, status) << r.err;
    EXPECT_EQ(r.out, "");
    EXPECT_CONTAINS(r.err, text);
  };
  fails({}, 2, "nothing to continue: give --prompt, --chat or --ids");
  fails({"--prompt", "a", "--ids", "1"}, 2, "--ids stands alone");
  fails({"--ids", "1", "--top-p", "0.9"}, 2, "--top-p has no effect here: without --temperature");
  fails({"--ids", "1", "--seed", "7"}, 2, "--seed has no effect here: without --temperature");
  fails({"--ids", "1,259"}, 2, "ids from 0 to 258");
  fails({"--ids", " "}, 2, "the list is empty");
  fails({"--prompt", "a"}, 1, "no tokenizer beside it");
  fails({"--ids", "1", "--stop", "x"}, 1, "no tokenizer beside it");
  fails({"--ids", joined(random_ids(65, 259, 1))}, 1, "the prompt is too long for this model");
  fails({"--ids", "1", "--temperature", "-1"}, 2, "--temperature");
}

}  // namespace
}  // namespace irq
