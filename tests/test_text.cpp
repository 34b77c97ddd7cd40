#include <numeric>

#include "src/text/instruct.h"
#include "src/text/token_file.h"
#include "tests/text_fixtures.h"

namespace irq {
namespace {

using Ids = std::vector<int32_t>;
const ByteTokenizer kBytes;

Ids bytes(const std::string& text) { return kBytes.encode(text); }
Ids operator+(Ids a, const Ids& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}
std::vector<uint8_t> mask(size_t source, size_t target) {
  std::vector<uint8_t> m(source, 0);
  m.resize(source + target, 1);
  return m;
}
std::string load_error(const std::string& path, const Tokenizer* tokenizer = &kBytes) {
  return error_of([&] { load_data(path, tokenizer, {}); });
}

TEST(Prompts, AlpacaWording) {
  EXPECT_EQ(
      alpaca_prompt("Name a color.", ""),
      "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
      "### Instruction:\nName a color.\n\n### Response: ");
  EXPECT_EQ(
      alpaca_prompt(" Sum. ", "1 2"),  // fields are not stripped
      "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
      "response that appropriately completes the request.\n\n### Instruction:\n Sum. \n\n### Input:\n1 2\n\n"
      "### Response: ");
}

// fidelity.md 6.5 with LLaMA's own ids: source starts 1, _Below and ends _Response : _; target starts with _ + word.
TEST(Alpaca, LlamaIds) {
  const std::string model = shared_path("tokenizer.model");
  if (model.empty()) GTEST_SKIP() << "LLaMA's tokenizer.model is not in $IRQ_SHARED_DATA or ../shared/data";
  const auto llama = open_tokenizer(model);
  const TempFolder folder;
  const auto path = folder.write("a.json", R"([{"instruction": "Name a color.", "input": "", "output": "Blue"}])");
  const LoadedData data = load_data(path, llama.get(), {});
  ASSERT_EQ(data.examples.size(), 1u);
  const Ids& ids = data.examples[0].ids;
  ASSERT_EQ(ids.size(), 42u);  // BOS, 39 of the prompt, Blue, EOS
  EXPECT_EQ(Ids(ids.begin(), ids.begin() + 3), Ids({1, 13866, 338}));
  EXPECT_EQ(Ids(ids.end() - 5, ids.end()), Ids({13291, 29901, 29871, 10924, 2}));
  EXPECT_EQ(data.examples[0].trainable, mask(40, 2));
}

TEST(Alpaca, ArrayAndLinesGiveTheSame) {
  const std::string a = R"({"instruction": "I\u00e9", "input": "x", "output": "Y"})";
  const std::string b = R"({"instruction": "J", "output": ""})";
  const TempFolder folder;
  const auto array = load_data(folder.write("a.json", "\n[\n" + a + ",\n" + b + "\n]\n"), &kBytes, {});
  const auto lines = load_data(folder.write("a.jsonl", "\xEF\xBB\xBF" + a + "\r\n\n" + b), &kBytes, {});
  for (const LoadedData* data : {&array, &lines}) {
    EXPECT_EQ(data->form, DataForm::alpaca);
    ASSERT_EQ(data->examples.size(), 2u);
    const Ids source = kBytes.encode(alpaca_prompt("I\xC3\xA9", "x"), true);
    EXPECT_EQ(data->examples[0].ids, source + bytes("Y") + Ids{2});
    EXPECT_EQ(data->examples[0].trainable, mask(source.size(), 2));
    EXPECT_EQ(data->examples[1].ids, kBytes.encode(alpaca_prompt("J", ""), true) + Ids{2});  // no answer: EOS alone
    EXPECT_EQ(data->labels, 3);
    EXPECT_EQ(data->rows, static_cast<int64_t>(source.size() + 1 + data->examples[1].ids.size() - 1));
    // Characters, not bytes: the accented letter counts once.
    EXPECT_EQ(data->chars[0], static_cast<int64_t>(alpaca_prompt("Ie", "x").size() + 1));
    EXPECT_TRUE(data->warnings.empty());
  }
}

TEST(Alpaca, NumberTooLarge) {
  const TempFolder folder;
  EXPECT_CONTAINS(load_error(folder.write("a.jsonl", "{\"instruction\": 1e999, \"output\": \"x\"}\n")),
                  "line 1: a number is too large");
}

TEST(Alpaca, Truncation) {
  const TempFolder folder;
  const auto path = folder.write("a.jsonl",
                                 "{\"input\": \"abcdef\", \"output\": \"uvwxyz\"}\n"
                                 "{\"input\": \"abc\", \"output\": \"uvw\"}\n");
  DataOptions o;
  o.source_len = 4;
  o.target_len = 4;
  const LoadedData data = load_data(path, &kBytes, o);
  EXPECT_EQ(data.form, DataForm::input_output);
  EXPECT_EQ(data.examples[0].ids, Ids{1} + bytes("abc") + bytes("uvwx"));  // BOS counts; the long answer loses EOS
  EXPECT_EQ(data.examples[1].ids, Ids{1} + bytes("abc") + bytes("uvw") + Ids{2});  // exactly fitting: nothing is cut
  EXPECT_EQ(data.examples[0].trainable, mask(4, 4));
  EXPECT_EQ(data.truncated_sources, 1);
  EXPECT_EQ(data.truncated_targets, 1);
  EXPECT_EQ(data.warnings.size(), 2u);
  EXPECT_CONTAINS(data.describe(), "1 prompts and 1 answers cut");
}

TEST(Chat, OneTurnIsTheAlpacaExample) {
  const TempFolder folder;
  const auto chat = load_data(folder.write("c.jsonl", R"({"messages": [{"role": "user", "content": "Hi"}, )"
                                                      R"({"role": "assistant", "content": "Hello"}]})"),
                              &kBytes, {});
  const auto alpaca = load_data(folder.write("a.jsonl", R"({"instruction": "Hi", "output": "Hello"})"), &kBytes, {});
  EXPECT_EQ(chat.form, DataForm::chat);
  EXPECT_EQ(chat.examples[0].ids, alpaca.examples[0].ids);
  EXPECT_EQ(chat.examples[0].trainable, alpaca.examples[0].trainable);
}

TEST(Chat, TrainsOnAssistantTurnsOnly) {
  const TempFolder folder;
  const auto path =
      folder.write("c.jsonl", R"({"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "A"}, )"
                              R"({"role": "assistant", "content": "b"}, {"role": "user", "content": "C"}, )"
                              R"({"role": "assistant", "content": "d"}, {"role": "user", "content": "left open"}]})"
                              "\n"
                              R"({"messages": [{"role": "user", "content": "nobody answers"}]})");
  const LoadedData data = load_data(path, &kBytes, {});
  const Ids first = kBytes.encode("S\n\n### Instruction:\nA\n\n### Response: ", true);
  const Ids second = bytes("\n\n### Instruction:\nC\n\n### Response: ");
  ASSERT_EQ(data.examples.size(), 1u);
  EXPECT_EQ(data.examples[0].ids, first + bytes("b") + Ids{2} + second + bytes("d") + Ids{2});
  EXPECT_EQ(data.labels, 4);
  EXPECT_EQ(data.dropped, 1);
  EXPECT_EQ(data.examples[0].trainable[first.size()], 1);
  EXPECT_EQ(data.examples[0].trainable[first.size() + 2], 0);
  DataOptions o;
  o.source_len = static_cast<int64_t>(first.size());
  o.target_len = 2;  // the conversation is cut at the sum: behind the first answer
  const LoadedData cut = load_data(path, &kBytes, o);
  EXPECT_EQ(cut.examples[0].ids, first + bytes("b") + Ids{2});
  EXPECT_EQ(cut.truncated_targets, 1);
  EXPECT_EQ(cut.truncated_sources, 0);
}

TEST(Text, EveryTokenIsScoredOnce) {
  const TempFolder folder;
  const auto path = folder.write("t.txt", "[0123456789");
  DataOptions o;
  o.window = 4;
  const LoadedData data = load_data(path, &kBytes, o);
  EXPECT_EQ(data.form, DataForm::text);
  ASSERT_EQ(data.examples.size(), 3u);
  EXPECT_EQ(data.examples[0].ids, Ids{1} + bytes("[012"));
  EXPECT_EQ(data.examples[1].ids, bytes("23456"));  // its first id is context: the row that predicts '3'
  EXPECT_EQ(data.examples[2].ids, bytes("6789"));
  EXPECT_EQ(data.labels, 11);
  EXPECT_EQ(data.rows, 11);
}

TEST(Text, StrideBelowWindowOverlapsAsContext) {
  Ids stream(23);
  std::iota(stream.begin(), stream.end(), 0);
  for (const int64_t stride : {1, 3, 7, 8}) {
    std::vector<int> scored(stream.size(), 0);
    for (const Example& e : cut_windows(stream, 8, stride)) {
      EXPECT_LE(e.ids.size(), 9u);
      for (size_t i = 1; i < e.ids.size(); ++i) scored[e.ids[i]] += e.trainable[i];
    }
    EXPECT_EQ(scored[0], 0);
    for (size_t i = 1; i < scored.size(); ++i) EXPECT_EQ(scored[i], 1) << "stride " << stride << ", id " << i;
  }
  EXPECT_TRUE(cut_windows({7}, 8, 8).empty());
}

TEST(TokenFiles, BothKindsRoundTrip) {
  const TempFolder folder;
  Ids small(1000);
  std::iota(small.begin(), small.end(), 0);
  small[5] = 65535;
  Ids large = small;
  large[7] = 128255;
  write_token_file(folder.name("16.bin"), small);
  write_token_file(folder.name("32.bin"), large);
  EXPECT_EQ(std::filesystem::file_size(folder.name("16.bin")), 1024u + 2000u);
  EXPECT_EQ(std::filesystem::file_size(folder.name("32.bin")), 1024u + 4000u);
  DataOptions o;
  o.window = 2000;
  o.vocab = 128256;
  for (const auto& [name, ids] : {std::pair{"16.bin", small}, {"32.bin", large}}) {
    const LoadedData data = load_data(folder.name(name), nullptr, o);
    EXPECT_EQ(data.form, DataForm::tokens);
    ASSERT_EQ(data.examples.size(), 1u);
    EXPECT_EQ(data.examples[0].ids, ids);
    EXPECT_EQ(data.labels, 999);
  }
  o.vocab = 32000;
  const std::string message = error_of([&] { load_data(folder.name("16.bin"), nullptr, o); });
  EXPECT_CONTAINS(message, "outside the model's vocabulary");
  EXPECT_CONTAINS(message, "65,535");
}

TEST(TokenFiles, Errors) {
  const TempFolder folder;
  write_token_file(folder.name("good.bin"), Ids(100, 7));
  std::ifstream file(folder.name("good.bin"), std::ios::binary);
  const std::string content(std::istreambuf_iterator<char>(file), {});
  EXPECT_CONTAINS(load_error(folder.write("short.bin", content.substr(0, content.size() - 1))), "cut short");
  EXPECT_CONTAINS(load_error(folder.write("header.bin", content.substr(0, 600))), "cut short");
  EXPECT_CONTAINS(load_error(folder.write("long.bin", content + "x")), "longer than its header says");
  std::string version = content;
  version[4] = 2;
  EXPECT_CONTAINS(load_error(folder.write("version.bin", version)), "version 2");
  write_token_file(folder.name("one.bin"), Ids{5});
  EXPECT_CONTAINS(load_error(folder.name("one.bin")), "no token to train on");
}

// Each malformed file gives its name, the line, what was expected and what was found.
TEST(Records, MalformedFilesNameTheLine) {
  const TempFolder folder;
  const std::string good = R"({"instruction": "a", "input": "b", "output": "c"})";
  const struct {
    const char *file, *content;
    std::vector<std::string> says;
  } cases[] = {
      {"a.jsonl",
       "\n@\n{\"instruction\": \"a\", \"response\": \"c\"}\n",
       {"a.jsonl: line 3", "no \"output\"", "\"response\""}},
      {"b.jsonl",
       "@\n{\"instruction\": \"a\", \"output\": 3}\n",
       {"b.jsonl: line 2", "\"output\" is not a string", "number"}},
      {"c.jsonl",
       "@\n{\"instruction\": \"a\", oops}\n",
       {"c.jsonl: line 2", "not valid JSON", "one JSON object per line"}},
      {"d.jsonl", "@\n{\"instruction\": \"a\",\n\"output\": \"c\"}\n", {"d.jsonl: line 2", "ends too early"}},
      {"e.json", "[\n@,\n@\n", {"e.json: line 4", "']' at the end"}},
      {"f.json", "[\n@,\n@", {"f.json: line 3", "cut short"}},
      {"g.json", "[\n@\n@\n]", {"g.json: line 3", "',' or ']'"}},
      {"h.json", "[@]\nx", {"h.json: line 2", "behind the list"}},
      {"i.json",
       "[\n@,\n{\"instruction\": \"a\",\n \"output\": \"c\",\n \"input\": nul}\n]",
       {"i.json: line 5", "not valid JSON"}},
      {"j.json", "[\n@,\n{\"instruction\": \"a\",\n\"out", {"j.json: line 4", "cut short", "line 3"}},
      {"k.json", "[\n@,\n\"text\"\n]", {"k.json: line 3", "no object"}},
      {"l.json",
       "[{\"prompt\": \"a\", \"completion\": \"b\"}]",
       {"l.json: line 1", "no form known here", "\"completion\""}},
      {"m.json", "hello", {"m.json: line 1", "not valid JSON"}},
      {"n.json", "[]", {"n.json", "no records"}},
      {"o.jsonl", "{\"messages\": []}", {"o.jsonl: line 1", "an empty list"}},
      {"p.jsonl",
       "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"tool\", \"content\": \"b\"}]}",
       {"p.jsonl: line 1", "message 2 is out of turn", "role \"tool\"", "\"assistant\""}},
      {"q.jsonl", "{\"messages\": [{\"role\": \"user\"}]}", {"q.jsonl: line 1", "no \"content\""}},
      {"r.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}", {"r.jsonl", "no token to train on"}},
      {"s.txt", " \n", {"s.txt", "empty"}},
      {"t.txt", "caf\xE9", {"t.txt", "UTF-8"}},
  };
  for (const auto& c : cases) {
    std::string content = c.content;
    for (size_t at; (at = content.find('@')) != std::string::npos;) content.replace(at, 1, good);
    const std::string message = load_error(folder.write(c.file, content));
    for (const std::string& part : c.says) EXPECT_CONTAINS(message, part);
  }
  EXPECT_CONTAINS(load_error(folder.name("none.json")), "cannot be read");
  EXPECT_CONTAINS(load_error(folder.name(".")), "a folder");
  EXPECT_CONTAINS(load_error(folder.write("u.json", "[" + good + "]"), nullptr), "need the model's tokenizer");
}

TEST(Holdout, IsASeededPartition) {
  const TempFolder folder;
  std::string lines;
  for (int i = 0; i < 50; ++i) lines += strf("{\"input\": \"q\", \"output\": \"%02d\"}\n", i);
  const LoadedData data = load_data(folder.write("h.jsonl", lines), &kBytes, {});
  const auto [rest, held] = split_holdout(data, 12, 7);
  EXPECT_EQ(rest.examples.size(), 38u);
  EXPECT_EQ(held.examples.size(), 12u);
  EXPECT_EQ(rest.labels + held.labels, data.labels);
  std::vector<Ids> all, original;
  for (const LoadedData* part : {&rest, &held})
    for (const Example& e : part->examples) all.push_back(e.ids);
  for (const Example& e : data.examples) original.push_back(e.ids);
  EXPECT_NE(all, original);
  std::sort(all.begin(), all.end());
  EXPECT_EQ(all, original);  // the file is sorted by construction
  EXPECT_EQ(split_holdout(data, 12, 7).second.examples[3].ids, held.examples[3].ids);
  const auto ids_of = [](const LoadedData& d) {
    std::vector<Ids> ids;
    for (const Example& e : d.examples) ids.push_back(e.ids);
    return ids;
  };
  EXPECT_NE(ids_of(split_holdout(data, 12, 8).second), ids_of(held));
  EXPECT_CONTAINS(error_of([&] { split_holdout(data, 50, 7); }), "cannot hold out");
}

// The files that the demo trains on: as many examples as its README says, nothing cut, no word in both.
TEST(DemoData, LoadsWithoutLoss) {
  const auto tokenizer = open_tokenizer(demo_path("tokenizer.model"));
  const LoadedData train = load_data(demo_path("train.json"), tokenizer.get(), {});
  const LoadedData held = load_data(demo_path("heldout.json"), tokenizer.get(), {});
  EXPECT_EQ(train.examples.size(), 4000u);
  EXPECT_EQ(held.examples.size(), 300u);
  for (const LoadedData* data : {&train, &held}) {
    EXPECT_EQ(data->truncated_sources + data->truncated_targets + data->dropped, 0);
    EXPECT_LT(data->labels, static_cast<int64_t>(data->examples.size()) * 16);  // short answers
  }
}

}  // namespace
}  // namespace irq
