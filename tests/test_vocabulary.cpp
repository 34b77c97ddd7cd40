// Vocabularies in GGUF's form <-> tokenizer files.
#include <random>

#include "src/text/regex.h"
#include "src/text/vocabulary.h"
#include "tests/bpe_fixture.h"

namespace irq {
namespace {

// The files of a vocabulary, in a folder.
std::string write_files(const TempFolder& folder, const Vocabulary& v) {
  for (const SideFile& f : tokenizer_files(v, "x.gguf")) folder.write(f.name, f.content);
  return find_tokenizer(folder.name("model.bin"));
}

void expect_equal(const Vocabulary& a, const Vocabulary& b) {
  EXPECT_EQ(a.model, b.model);
  EXPECT_EQ(a.pre, b.pre);
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_EQ(a.scores, b.scores);
  EXPECT_EQ(a.types, b.types);
  EXPECT_EQ(a.merges, b.merges);
  EXPECT_EQ(a.bos, b.bos);
  EXPECT_EQ(a.eos, b.eos);
  EXPECT_EQ(a.unknown, b.unknown);
  EXPECT_EQ(a.padding, b.padding);
  EXPECT_EQ(a.add_bos, b.add_bos);
  EXPECT_EQ(a.add_space_prefix, b.add_space_prefix);
  EXPECT_EQ(a.chat_template, b.chat_template);
}

TEST(Vocabulary, ByteLevelRoundTrip) {
  Vocabulary v = read_vocabulary(golden_path("bpe_tokenizer.json"));
  EXPECT_EQ(v.model, "gpt2");
  EXPECT_EQ(v.pre, "smollm");
  EXPECT_EQ(v.types[1], 3);
  EXPECT_EQ(v.types[3], 1);
  EXPECT_EQ(v.bos, -1);
  for (const bool add_bos : {false, true})
    for (const char* pre : {"smollm", "gpt-2", "llama-bpe"}) {
      v.bos = 1, v.eos = 2, v.padding = 2, v.add_bos = add_bos, v.pre = pre;
      v.chat_template = "{{ '<|im_start|>' + \"\n\xC3\xA9\" }}";
      const TempFolder folder;
      const std::string path = write_files(folder, v);
      ASSERT_EQ(base_name(path), "tokenizer.json");
      expect_equal(read_vocabulary(path), v);
      const auto t = open_tokenizer(path);
      EXPECT_EQ(t->bos(), 1);
      EXPECT_EQ(t->eos(), 2);
      EXPECT_EQ(t->adds_bos(), add_bos);
      EXPECT_EQ(t->chat_template(), v.chat_template);
      EXPECT_EQ(t->special_id("<|im_end|>"), 2);
    }
}

void expect_sentencepiece_round_trip(const std::string& model) {
  const Vocabulary v = read_vocabulary(model);
  EXPECT_EQ(v.model, "llama");
  EXPECT_EQ(v.bos, 1);
  EXPECT_EQ(v.eos, 2);
  EXPECT_EQ(v.unknown, 0);
  EXPECT_TRUE(v.add_bos);
  EXPECT_TRUE(v.add_space_prefix);
  EXPECT_EQ(std::count(v.types.begin(), v.types.end(), 6), 256);
  const TempFolder folder;
  const std::string path = write_files(folder, v);
  ASSERT_EQ(base_name(path), "tokenizer.model");
  expect_equal(read_vocabulary(path), v);
  for (const bool legacy : {true, false}) {
    const auto ours = open_tokenizer(path, legacy), theirs = open_tokenizer(model, legacy);
    EXPECT_EQ(ours->bos(), theirs->bos());
    EXPECT_EQ(ours->eos(), theirs->eos());
    EXPECT_TRUE(ours->adds_bos());
    for (const char* text : kHardTexts)
      for (const Before before : {Before::nothing, Before::special, Before::text})
        EXPECT_EQ(ours->encode(text, false, before), theirs->encode(text, false, before)) << text;
    for (int32_t id = 0; id < ours->vocab_size(); ++id) ASSERT_EQ(ours->bytes_of(id), theirs->bytes_of(id));
  }
}

TEST(Vocabulary, SentencePieceRoundTripDemo) { expect_sentencepiece_round_trip(demo_path("tokenizer.model")); }
TEST(Vocabulary, SentencePieceRoundTripLlama) {
  const std::string path = shared_path("tokenizer.model");
  if (path.empty()) GTEST_SKIP() << "LLaMA's tokenizer.model is not in $IRQ_SHARED_DATA or ../shared/data";
  expect_sentencepiece_round_trip(path);
}

TEST(Vocabulary, NoSpacePrefix) {
  Vocabulary v = read_vocabulary(demo_path("tokenizer.model"));
  v.add_space_prefix = false, v.add_bos = false;
  const TempFolder folder;
  const auto t = open_tokenizer(write_files(folder, v));
  EXPECT_FALSE(t->has_dummy_space());
  EXPECT_FALSE(t->adds_bos());
  EXPECT_EQ(t->encode("dog"), open_tokenizer(demo_path("tokenizer.model"))->encode("dog", false, Before::text));
}

// LLaMA's tokenizer.json -> scores that make SentencePiece merge in the same order.
TEST(Vocabulary, LlamaJsonBecomesSentencePiece) {
  const auto original = open_tokenizer(demo_path("tokenizer.model"));
  std::string path;
  Vocabulary v;
  {
    const TempFolder folder;
    folder.write("tokenizer_config.json", R"({"bos_token": "<s>", "eos_token": "</s>"})");
    v = read_vocabulary(folder.write("tokenizer.json", llama_json(demo_path("tokenizer.model")).dump()));
  }
  EXPECT_EQ(v.model, "llama");
  const TempFolder folder;
  const auto t = open_tokenizer(write_files(folder, v));
  for (const char* text : kHardTexts) EXPECT_EQ(t->encode(text), original->encode(text)) << text;
  const std::string train = read_text_file(demo_path("heldout.json"));
  EXPECT_EQ(t->encode_long(train), original->encode_long(train));
}

TEST(Vocabulary, Refuses) {
  const Vocabulary gpt2 = read_vocabulary(golden_path("bpe_tokenizer.json"));
  const Vocabulary llama = read_vocabulary(demo_path("tokenizer.model"));
  const auto refused = [](Vocabulary v, const std::function<void(Vocabulary&)>& change) {
    change(v);
    const std::string message = error_of([&] { tokenizer_files(v, "x.gguf"); });
    EXPECT_CONTAINS(message, "x.gguf: ");
    return message;
  };
  EXPECT_CONTAINS(refused(gpt2, [](auto& v) { v.pre = "qwen2"; }), "does not know: qwen2");
  EXPECT_CONTAINS(refused(gpt2, [](auto& v) { v.model = "bert"; }), "does not know: bert");
  EXPECT_CONTAINS(refused(gpt2, [](auto& v) { v.tokens.clear(); }), "tokens");
  EXPECT_CONTAINS(refused(gpt2, [](auto& v) { v.types.pop_back(); }), "a type for each");
  EXPECT_CONTAINS(refused(gpt2, [](auto& v) { v.tokens[9] = v.tokens[10]; }), "twice");
  EXPECT_CONTAINS(refused(gpt2, [](auto& v) { v.tokens[9] = ""; }), "none empty");
  EXPECT_CONTAINS(refused(gpt2, [](auto& v) { v.tokens[9] = "\xFF"; }), "in UTF-8");
  EXPECT_CONTAINS(refused(gpt2, [](auto& v) { v.merges[0] = "no pair of this"; }), "of the form");
  EXPECT_CONTAINS(refused(gpt2, [](auto& v) { v.merges[0] = "\xFF a"; }), "merges in UTF-8");
  EXPECT_CONTAINS(refused(gpt2, [](auto& v) { v.eos = 959; }), "ids below 959");
  EXPECT_CONTAINS(refused(llama, [](auto& v) { v.scores.pop_back(); }), "a score for each");
  EXPECT_CONTAINS(refused(llama, [](auto& v) { v.types[7] = 9; }), "token types from 1 to 6");
  EXPECT_CONTAINS(refused(llama, [](auto& v) { v.types[0] = 1, v.unknown = -1; }), "of the type unknown");
  EXPECT_CONTAINS(refused(llama, [](auto& v) { v.types[300] = 2; }), "of the type unknown");
  EXPECT_CONTAINS(refused(llama, [](auto& v) { v.types[7] = 1; }), "256 byte tokens or none");
  EXPECT_CONTAINS(refused(llama, [](auto& v) { v.tokens[7] = "<0xZZ>"; }), "not a SentencePiece model");
  const TempFolder folder;
  const auto file = [&](const Json& change) {
    return folder.write("tokenizer.json", small_json({{"/pre_tokenizer", change}}).dump());
  };
  EXPECT_CONTAINS(
      error_of([&] { read_vocabulary(file(Json::parse(R"({"type": "ByteLevel", "add_prefix_space": true})"))); }),
      "GGUF cannot express");
}

// A SentencePiece file that is cut or damaged anywhere: an error or some vocabulary, never more.
TEST(Vocabulary, DamagedModelsAreErrors) {
  const std::string model = read_text_file(demo_path("tokenizer.model"));
  std::mt19937 random(2);
  int errors = 0;
  for (int round = 0; round < 200; ++round) {
    std::string damaged = model.substr(0, round % 2 == 0 ? random() % model.size() : model.size());
    for (int i = 0; i < 3 && !damaged.empty(); ++i) damaged[random() % damaged.size()] = static_cast<char>(random());
    try {
      read_piece_model("x.model", damaged);
    } catch (const Error&) { ++errors; }
  }
  EXPECT_GT(errors, 50);
}

TEST(Regex, MatchesAndLimits) {
  const Regex words("\\w+\\s?", "test");
  Regex::Matches m(words);
  size_t begin = 0, end = 0;
  const std::string text = "a\xC3\xA9 \xE6\x97\xA5!b";
  m.start(text);
  ASSERT_TRUE(m.next(begin, end));
  EXPECT_EQ(text.substr(begin, end - begin), "a\xC3\xA9 ");
  ASSERT_TRUE(m.next(begin, end));
  EXPECT_EQ(text.substr(begin, end - begin), "\xE6\x97\xA5");
  ASSERT_TRUE(m.next(begin, end));
  EXPECT_EQ(begin, text.size() - 1);
  EXPECT_FALSE(m.next(begin, end));
  EXPECT_FALSE(m.next(begin, end));
  const Regex empty("x*", "test");  // matches nothing everywhere: no match, and an end
  Regex::Matches e(empty);
  e.start(text);
  EXPECT_FALSE(e.next(begin, end));
  const Regex space("^\\s$|[\\S]", "test");  // U+180E was a space in older Unicode
  Regex::Matches s(space);
  s.start("\xE1\xA0\x8E");
  ASSERT_TRUE(s.next(begin, end));
  EXPECT_EQ(end, 3u);
  EXPECT_CONTAINS(error_of([] { Regex("(", "file.json"); }), "file.json: a regular expression");
  EXPECT_CONTAINS(error_of([] { Regex(std::string(20000, 'a'), "file.json"); }), "longer than 16 KiB");
  EXPECT_CONTAINS(error_of([] { Regex("\\C", "file.json"); }), "PCRE2");
}

}  // namespace
}  // namespace irq
