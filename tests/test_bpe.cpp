// Byte-level BPE and LLaMA's BPE from tokenizer.json: ids against the package tokenizers and against SentencePiece.
#include <nlohmann/json.hpp>
#include <random>

#include "src/text/bpe.h"
#include "src/text/piece_model.h"
#include "src/text/tokenizer_json.h"
#include "src/text/vocabulary.h"
#include "tests/bpe_fixture.h"

namespace irq {
namespace {

// What the package tokenizers answers for hard strings, over one vocabulary and three pre-tokenizers (golden/make_bpe.py).
TEST(Bpe, EqualsTokenizersPackage) {
  const Json golden = Json::parse(read_text_file(golden_path("bpe_golden.json")));
  Vocabulary v = read_vocabulary(golden_path("bpe_tokenizer.json"));
  ASSERT_EQ(golden["ids"].size(), 3u);
  for (const auto& [pre, ids] : golden["ids"].items()) {
    v.pre = pre;
    const TempFolder folder;
    const auto tokenizer = open_tokenizer(folder.write("tokenizer.json", tokenizer_files(v, "x")[0].content));
    ASSERT_EQ(ids.size(), golden["strings"].size());
    for (size_t i = 0; i < ids.size(); ++i) {
      const std::string text = golden["strings"][i];
      const Ids expected = ids[i];
      EXPECT_EQ(tokenizer->encode_with_specials(text), expected) << pre << ": " << text;
      EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text) << pre;
    }
  }
}

// transformers' ids with the real SmolLM2: ../shared/data/golden.
TEST(Bpe, SmolLm2EqualsTransformers) {
  const char* folder = std::getenv("IRQ_SMOLLM2");
  const std::string golden_file = shared_path("golden/smollm2_transformers.json");
  const std::string path = find_tokenizer((folder != nullptr ? std::string(folder) : std::string()) + "/model.bin");
  if (folder == nullptr || path.empty() || golden_file.empty())
    GTEST_SKIP() << "$IRQ_SMOLLM2 names no folder with SmolLM2's converted tokenizer.json";
  const Json golden = Json::parse(read_text_file(golden_file));
  const auto tokenizer = open_tokenizer(path);
  for (size_t i = 0; i < golden["strings"].size(); ++i)
    EXPECT_EQ(tokenizer->encode_with_specials(golden["strings"][i].get<std::string>()), golden["ids"][i].get<Ids>());
  EXPECT_FALSE(tokenizer->adds_bos());
  EXPECT_EQ(tokenizer->end_ids(), Ids({2, 0}));  // <|im_end|> and <|endoftext|>
}

TEST(Bpe, SpecialTokensAreTextUnlessAsked) {
  const auto& t = tiny_bpe();
  const std::string text = "<|im_start|>user<|im_end|>";
  EXPECT_EQ(t.special_id("<|im_start|>"), 1);
  EXPECT_EQ(t.special_id("user"), -1);
  const Ids plain = t.encode(text), parsed = t.encode_with_specials(text);
  EXPECT_EQ(std::count(plain.begin(), plain.end(), 1), 0);
  EXPECT_EQ(t.decode(plain), text);
  EXPECT_EQ(parsed.front(), 1);
  EXPECT_EQ(parsed.back(), 2);
  EXPECT_EQ(t.decode(parsed), "user");
  EXPECT_EQ(t.bytes_of(1), "");
  EXPECT_EQ(t.bytes_of(100000), "");  // rows that a model has beyond its tokenizer
  EXPECT_EQ(t.bytes_of(-1), "");
  EXPECT_FALSE(t.has_dummy_space());
}

std::string spelled(const Tokenizer& t, const Ids& ids) {
  std::string bytes;
  for (const int32_t id : ids) bytes += t.bytes_of(id);
  return bytes;
}

TEST(Bpe, AnyBytesPassThrough) {
  std::mt19937 random(3);
  for (int round = 0; round < 300; ++round) {
    std::string text;
    for (int i = random() % 40; i > 0; --i)
      text += static_cast<char>(random() % (round % 2 == 0 ? 256 : 8) + (round % 2 == 0 ? 0 : 0xE0));
    EXPECT_EQ(spelled(tiny_bpe(), tiny_bpe().encode(text)), text);
    EXPECT_EQ(spelled(tiny_bpe(), tiny_bpe().encode("dog " + text + " dog")), "dog " + text + " dog");
  }
}

TEST(Bpe, LongTextEqualsOnePass) {
  std::string text;
  std::mt19937 random(1);
  const char* words[] = {"dog", " cat", "\n", " \n", ".\n", "a\n\n", "b\n", "  ", "123", "'s", "\xE6\x97\xA5"};
  while (text.size() < 400000) text += words[random() % 11];
  for (const char* pre : {"smollm", "llama-bpe"}) {
    const TempFolder folder;
    Vocabulary v = read_vocabulary(golden_path("bpe_tokenizer.json"));
    v.pre = pre;
    const auto t = open_tokenizer(folder.write("tokenizer.json", tokenizer_files(v, "x")[0].content));
    EXPECT_EQ(t->encode_long(text), t->encode(text)) << pre;
  }
}

// n log n, not n squared: 400 KB of each in well under a second each, where n squared would take minutes.
TEST(Bpe, MonotonousTextIsNoTrap) {
  for (const char* unit : {"a", " ", "!", "\n", "<|", "'", "ab", "\xE6\x97\xA5", "\xFF", "\xC2\xA0"}) {
    std::string text;
    while (text.size() < 400000) text += unit;
    EXPECT_EQ(spelled(tiny_bpe(), tiny_bpe().encode(text)), text);
    EXPECT_EQ(spelled(tiny_bpe(), tiny_bpe().encode_with_specials(text)), text);
  }
}

TEST(Merges, LowestRankFirstThenLeftmost) {
  //                           a a -> 10   b c -> 11   10 a -> 12
  const Merges merges({{1, 1, 10}, {2, 3, 11}, {10, 1, 12}});
  const auto applied = [&](Ids ids) {
    merges.apply(ids);
    return ids;
  };
  EXPECT_EQ(applied({}), Ids());
  EXPECT_EQ(applied({1}), Ids({1}));
  EXPECT_EQ(applied({1, 1}), Ids({10}));
  EXPECT_EQ(applied({1, 1, 1}), Ids({12}));         // the left pair, then the rest
  EXPECT_EQ(applied({1, 1, 1, 1}), Ids({10, 10}));  // rank 0 twice comes before rank 2
  EXPECT_EQ(applied({2, 3, 1, 1, 2}), Ids({11, 10, 2}));
  Ids none{5, 6};
  Merges().apply(none);
  EXPECT_EQ(none, Ids({5, 6}));
}

TEST(ByteLevel, EveryByteHasACharacter) {
  for (int b = 0; b < 256; ++b) {
    const std::string byte(1, static_cast<char>(b));
    EXPECT_EQ(byte_level_decode(byte_level_encode(byte)), byte);
  }
  EXPECT_EQ(byte_level_encode(" \n"), "\xC4\xA0\xC4\x8A");  // U+0120, U+010A
  EXPECT_EQ(byte_level_decode("\xE6\x97\xA5"), "\xE6\x97\xA5");
}

// A vocabulary of four symbols, so that ids can be told by looking.
TEST(TokenizerJson, MergesInBothForms) {
  for (const char* merges : {R"(["a b", "ab a"])", R"([["a", "b"], ["ab", "a"]])"}) {
    const auto t = open_json(small_json({{"/model/merges", Json::parse(merges)}}));
    EXPECT_EQ(t->encode("abaab"), Ids({3, 2}));
  }
}

TEST(TokenizerJson, IgnoreMergesTakesWholePieces) {
  Json vocab = Json::parse(R"({"a": 0, "b": 1, "ab": 2, "aba": 3, "bb": 4})");
  EXPECT_EQ(open_json(small_json({{"/model/vocab", vocab}}))->encode("bb"), Ids({1, 1}));
  EXPECT_EQ(open_json(small_json({{"/model/vocab", vocab}, {"/model/ignore_merges", true}}))->encode("bb"), Ids({4}));
}

TEST(TokenizerJson, BytesWithoutATokenVanishOrAreUnknown) {
  EXPECT_EQ(open_json(small_json({}))->encode("axxb"), Ids({2}));
  EXPECT_EQ(open_json(small_json({{"/model/unk_token", "b"}}))->encode("axxa"), Ids({2, 1, 0}));
  EXPECT_EQ(open_json(small_json({{"/model/unk_token", "b"}, {"/model/fuse_unk", true}}))->encode("axxa"), Ids({3}));
}

TEST(TokenizerJson, AddedTokensAndTheirFlags) {
  const auto with = [](const char* flags) {
    Json token = Json::parse(R"({"id": 9, "content": "<x>"})");
    token.update(Json::parse(flags));
    return open_json(small_json({{"/added_tokens", Json::array({token})}}));
  };
  EXPECT_EQ(with("{}")->encode("a<x>b"), Ids({0, 9, 1}));                 // not special: always a token
  EXPECT_EQ(with(R"({"special": true})")->encode("a<x>b"), Ids({0, 1}));  // text; '<', 'x' and '>' have no token here
  EXPECT_EQ(with(R"({"special": true})")->encode_with_specials("a<x>b"), Ids({0, 9, 1}));
  EXPECT_EQ(with("{}")->bytes_of(9), "<x>");
  EXPECT_EQ(with(R"({"special": true})")->bytes_of(9), "");
  EXPECT_EQ(with("{}")->vocab_size(), 10);
}

TEST(AddedTokens, LongestAtTheLeftmostPlace) {
  AddedTokens tokens;
  for (const char* content : {"<a>", "<a>b", "b", "<a", ""})
    tokens.add({content, static_cast<int32_t>(std::string(content).size())});
  tokens.prepare();
  const auto split = [&](const char* text) {
    std::string shown;
    for (const Section& s : tokens.split(text))
      shown += "[" + std::string(s.text) + (s.id < 0 ? "" : "=" + std::to_string(s.id)) + "]";
    return shown;
  };
  EXPECT_EQ(split("x<a>b<a>c<a"), "[x][<a>b=4][<a>=3][c][<a=2]");
  EXPECT_EQ(split(""), "");
  EXPECT_EQ(split("xyz"), "[xyz]");
  EXPECT_EQ(tokens.find("<a>"), 3);
  EXPECT_EQ(tokens.find("<a>bb"), -1);
  AddedTokens strips;
  AddedToken t{"|", 1};
  t.lstrip = t.rstrip = true;
  strips.add(t);
  strips.prepare();
  const std::vector<Section> parts = strips.split("a \xE3\x80\x80|\n b");
  ASSERT_EQ(parts.size(), 3u);
  EXPECT_EQ(parts[1].text, " \xE3\x80\x80|\n ");
}

TEST(AddedTokens, SingleWordWantsNoLetterBesideIt) {
  AddedTokens tokens;
  AddedToken t{"w", 1};
  t.single_word = true;
  tokens.add(t);
  tokens.prepare();
  const auto found = [&](const char* text) {
    const auto parts = tokens.split(text);
    return std::any_of(parts.begin(), parts.end(), [](const Section& s) { return s.id == 1; });
  };
  for (const char* text : {"w", " w ", "-w-", "\xC2\xBDw\xC2\xBD"})
    EXPECT_TRUE(found(text)) << text;  // one half: no letter
  for (const char* text : {"aw", "w_", "w1", "\xC3\xA9w", "w\xC3\xA9"}) EXPECT_FALSE(found(text)) << text;
}

// BOS, EOS and the rest: who says what.
TEST(TokenizerJson, BeginAndEnd) {
  const Json added =
      Json::parse(R"([{"id": 4, "content": "<s>", "special": true}, {"id": 5, "content": "</s>", "special": true}])");
  const Json post =
      Json::parse(R"({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
      {"Sequence": {"id": "A", "type_id": 0}}]})");
  const auto plain = open_json(small_json({{"/added_tokens", added}}));
  EXPECT_EQ(plain->bos(), -1);
  EXPECT_EQ(plain->eos(), -1);
  EXPECT_FALSE(plain->adds_bos());
  EXPECT_TRUE(plain->end_ids().empty());
  const auto templated = open_json(small_json({{"/added_tokens", added}, {"/post_processor", post}}));
  EXPECT_EQ(templated->bos(), 4);
  EXPECT_TRUE(templated->adds_bos());
  EXPECT_EQ(templated->encode("a", true), Ids({4, 0}));
  const char* config = R"({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": "T"})";
  const auto configured = open_json(small_json({{"/added_tokens", added}}), config);
  EXPECT_EQ(configured->bos(), 4);
  EXPECT_EQ(configured->eos(), 5);
  EXPECT_FALSE(configured->adds_bos());
  EXPECT_EQ(configured->chat_template(), "T");
  EXPECT_EQ(configured->end_ids(), Ids({5}));
  const auto off =
      open_json(small_json({{"/added_tokens", added}, {"/post_processor", post}}), R"({"add_bos_token": false})");
  EXPECT_FALSE(off->adds_bos());
  EXPECT_EQ(off->bos(), 4);
  EXPECT_TRUE(
      open_json(small_json({{"/added_tokens", added}}), R"({"bos_token": "<s>", "add_bos_token": true})")->adds_bos());
  EXPECT_CONTAINS(error_of([&] { open_json(small_json({}), R"({"eos_token": "</s>"})"); }),
                  "tokenizer_config.json: names a token that the tokenizer does not have");
  EXPECT_CONTAINS(error_of([&] { open_json(small_json({}), R"({"legacy": "yes"})"); }),
                  "\"legacy\" to be true or false");
  EXPECT_CONTAINS(error_of([&] { open_json(small_json({}), "{"); }), "tokenizer_config.json: not valid JSON");
  const std::string deep = std::string(1000000, '[') + std::string(1000000, ']');
  EXPECT_CONTAINS(error_of([&] { open_json(small_json({}), R"({"chat_template": [{"name": )" + deep + "}]}"); }),
                  "tokenizer_config.json: is nested too deeply");
}

TEST(TokenizerJson, RefusesWhatItCannotReproduce) {
  const std::tuple<const char*, Json, const char*> cases[] = {
      {"/model/type", "Unigram", "model type Unigram"},
      {"/model/vocab/a", -1, "token ids from 0"},
      {"/model/vocab/a", 1 << 30, "token ids from 0"},
      {"/model/vocab/a", "x", "token ids from 0"},
      {"/model/vocab/b", 0, "one token per id"},
      {"/model/vocab", Json::array(), "\"vocab\""},
      {"/model/merges", Json::parse(R"(["a c"])"), "'c' is not"},
      {"/model/merges", Json::parse(R"(["a"])"), "of the form"},
      {"/model/merges", Json::parse(R"([["a", 1]])"), "of the form"},
      {"/model/dropout", 0.1, "dropout"},
      {"/model/end_of_word_suffix", "</w>", "end_of_word_suffix"},
      {"/model/unk_token", "zzz", "unk_token"},
      {"/model/byte_fallback", "yes", "\"byte_fallback\" to be true or false"},
      {"/added_tokens", Json::parse(R"([{"id": 99999, "content": "z"}])"), "token ids from 0"},
      {"/added_tokens", Json::parse(R"([{"id": 2, "content": "z"}])"), "one token per id"},
      {"/added_tokens", 3, "\"added_tokens\" to be a list"},
      {"/normalizer", Json::parse(R"({"type": "NFC"})"), "normalizer NFC"},
      {"/pre_tokenizer", Json::parse(R"({"type": "Whitespace"})"), "pre-tokenizer Whitespace"},
      {"/pre_tokenizer", Json(), "neither byte-level nor LLaMA's"},
      {"/pre_tokenizer", 5, "an object with a \"type\""},
      {"/pre_tokenizer", Json::parse(R"({"type": "Sequence", "pretokenizers": [{"type": "Split", "behavior": "Isolated",
          "pattern": {"Regex": "(a"}}]})"),
       "missing closing parenthesis"},
      {"/pre_tokenizer", Json::parse(R"({"type": "Split", "behavior": "Odd", "pattern": {"Regex": "a"}})"),
       "behavior 'Odd'"},
      {"/post_processor", Json::parse(R"({"type": "BertProcessing"})"), "post-processor BertProcessing"},
      {"/post_processor", Json::parse(R"({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "q"}}]})"),
       "'q' to be an added token"},
  };
  for (const auto& [pointer, value, expected] : cases) {
    const std::string message = error_of([&] { open_json(small_json({{pointer, value}})); });
    EXPECT_CONTAINS(message, expected);
    EXPECT_CONTAINS(message, "tokenizer.json: ");
  }
  const TempFolder folder;
  for (const char* content : {"{", "{}", "{\"model\": 1}", "{\"model\": {\"vocab\": {\"a\": 0}}}"})
    EXPECT_CONTAINS(error_of([&] { open_tokenizer(folder.write("tokenizer.json", content)); }), "tokenizer.json");
  std::string deep = "{\"model\": ";
  deep.append(200000, '[');
  EXPECT_CONTAINS(error_of([&] { open_tokenizer(folder.write("tokenizer.json", deep)); }), "not a tokenizer.json");
}

// A pattern with exponentially many ways to fail ends in an error, not in a hang.
TEST(TokenizerJson, EvilPatternEndsInAnError) {
  const Json split = Json::parse(R"j({"type": "Sequence", "pretokenizers": [
      {"type": "Split", "behavior": "Isolated", "pattern": {"Regex": "(a+)+(a|b)+(?=c)"}},
      {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]})j");
  const auto t = open_json(small_json({{"/pre_tokenizer", split}}));
  EXPECT_CONTAINS(error_of([&] { t->encode(std::string(200, 'a')); }), "match limit exceeded");
}

// LLaMA's BPE, made from the demo's SentencePiece model as transformers makes it: the same ids as SentencePiece.
TEST(LlamaJson, EqualsSentencePiece) {
  const Json json = llama_json(demo_path("tokenizer.model"));
  const TempFolder folder;
  const std::string path = folder.write("tokenizer.json", json.dump());
  folder.write("tokenizer_config.json", R"({"bos_token": "<s>", "eos_token": "</s>"})");
  for (const bool legacy : {true, false}) {
    const auto ours = open_tokenizer(path, legacy), theirs = open_tokenizer(demo_path("tokenizer.model"), legacy);
    EXPECT_EQ(ours->bos(), theirs->bos());
    EXPECT_EQ(ours->eos(), theirs->eos());
    EXPECT_TRUE(ours->has_dummy_space());
    for (const char* text : kHardTexts)
      for (const Before before : {Before::nothing, Before::special, Before::text}) {
        const Ids ids = theirs->encode(text, false, before);
        EXPECT_EQ(ours->encode(text, false, before), ids) << text;
        EXPECT_EQ(ours->decode(ids), theirs->decode(ids));
        EXPECT_EQ(ours->encode_with_specials(text, before), theirs->encode_with_specials(text, before)) << text;
      }
  }
  std::string text;
  while (text.size() < 200000) text += std::string(kHardTexts[text.size() % std::size(kHardTexts)]) + "\n";
  const auto t = open_tokenizer(path);
  EXPECT_EQ(t->encode_long(text), t->encode(text));
}

}  // namespace
}  // namespace irq
