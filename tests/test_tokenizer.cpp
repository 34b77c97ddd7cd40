#include <random>

#include "src/text/instruct.h"
#include "tests/text_fixtures.h"

namespace irq {
namespace {

using Ids = std::vector<int32_t>;

// LLaMA's own tokenizer, or null where it is not at hand.
const Tokenizer* llama(bool legacy = true) {
  static const std::string path = shared_path("tokenizer.model");
  static const auto both = path.empty() ? std::pair<std::unique_ptr<Tokenizer>, std::unique_ptr<Tokenizer>>{}
                                        : std::pair{open_tokenizer(path, true), open_tokenizer(path, false)};
  return legacy ? both.first.get() : both.second.get();
}
#define NEED_LLAMA() \
  if (llama() == nullptr) GTEST_SKIP() << "LLaMA's tokenizer.model is not in $IRQ_SHARED_DATA or ../shared/data"

const Tokenizer& demo(bool legacy = true) {
  static const auto yes = open_tokenizer(demo_path("tokenizer.model"), true);
  static const auto no = open_tokenizer(demo_path("tokenizer.model"), false);
  return legacy ? *yes : *no;
}

// fidelity.md 8.2: goldens of LLaMA's vocabulary.
TEST(Tokenizer, LlamaVocabulary) {
  NEED_LLAMA();
  EXPECT_EQ(llama()->vocab_size(), 32000);
  EXPECT_EQ(llama()->bos(), 1);
  EXPECT_EQ(llama()->eos(), 2);
  EXPECT_TRUE(llama()->has_dummy_space());
  EXPECT_EQ(llama()->bytes_of(13), "\n");
  EXPECT_EQ(llama()->bytes_of(3 + 0xE2), "\xE2");
  EXPECT_EQ(llama()->bytes_of(259), "  ");
  EXPECT_EQ(llama()->bytes_of(29871), " ");
  EXPECT_EQ(llama()->bytes_of(1), "");
  EXPECT_EQ(llama()->bytes_of(32000), "");  // a [PAD] row has no text
}

TEST(Tokenizer, LlamaGoldens) {
  NEED_LLAMA();
  const Ids alpaca = {13866, 338,  385,  15278, 393,  16612, 263,   3414, 29889, 14350, 263,   2933,  393,
                      7128,  2486, 1614, 2167,  278,  2009,  29889, 13,   13,    2277,  29937, 2799,  4080,
                      29901, 13,   1170, 263,   2927, 29889, 13,    13,   2277,  29937, 13291, 29901, 29871};
  EXPECT_EQ(llama()->encode(alpaca_prompt("Name a color.", "")), alpaca);
  EXPECT_EQ(llama()->encode("Blue"), Ids({10924}));
  EXPECT_EQ(llama()->encode("Answer:"), Ids({673, 29901}));
  const Ids after_newline = llama()->encode("\nAnswer:");
  EXPECT_EQ(Ids(after_newline.end() - 2, after_newline.end()), Ids({22550, 29901}));
  const Ids head =
      llama()->encode("The following are multiple choice questions (with answers) about  abstract algebra.");
  EXPECT_EQ(Ids(head.end() - 5, head.end()), Ids({1048, 29871, 9846, 9623, 29889}));
  EXPECT_EQ(llama()->encode(" B\n\n", false, Before::text), Ids({350, 13, 13}));
  EXPECT_EQ(llama()->encode(""), Ids());
  EXPECT_EQ(llama()->encode("", true), Ids({1}));
  EXPECT_EQ(llama()->encode("Blue", true), Ids({1, 10924}));
  EXPECT_EQ(llama()->encode("2026"), Ids({29871, 29906, 29900, 29906, 29953}));  // digits stay single
}

// legacy = false: no dummy space behind a special token, one at the start of a string all the same.
TEST(Tokenizer, LlamaNotLegacy) {
  NEED_LLAMA();
  EXPECT_EQ(llama(true)->encode("Below", true, Before::special), llama()->encode("Below", true));
  const Ids bare = llama(false)->encode("Below", true, Before::special);
  EXPECT_EQ(bare[0], 1);
  EXPECT_NE(bare[1], 13866);  // "_Below"
  EXPECT_EQ(llama(false)->decode({bare.begin() + 1, bare.end()}), "Below");
  EXPECT_EQ(llama(false)->encode("Blue"), Ids({10924}));
}

TEST(Tokenizer, DemoVocabularyHasLlamasSettings) {
  EXPECT_EQ(demo().vocab_size(), 4096);
  EXPECT_EQ(demo().bos(), 1);
  EXPECT_EQ(demo().eos(), 2);
  EXPECT_TRUE(demo().has_dummy_space());
  EXPECT_EQ(demo().bytes_of(13), "\n");
  EXPECT_EQ(demo().encode("\n").back(), 13);
  EXPECT_EQ(demo().encode("123").size(), 4u);  // the dummy space and single digits
}

const char* const kTexts[] = {"A dog is a kind of animal.",
                              " leading and  double   spaces ",
                              "line\nbreak\n\nend\n",
                              "caf\xC3\xA9 \xE6\x97\xA5\xE6\x9C\xAC \xF0\x9F\x98\x80!",
                              "\ttabs\t",
                              "1999, 3.14",
                              "<s> is text</s>"};

TEST(Tokenizer, DecodeRestoresTheText) {
  for (const char* text : kTexts) {
    EXPECT_EQ(demo().decode(demo().encode(text)), text);
    EXPECT_EQ(demo().decode(demo().encode(text, true)), text);
    EXPECT_EQ(ByteTokenizer().decode(ByteTokenizer().encode(text, true)), text);
  }
}

// Text that goes on has no dummy space: behind any first part its ids are a cut of some tokenization of the whole.
TEST(Tokenizer, ContinuedTextHasNoDummySpace) {
  for (const char* text : kTexts) {
    for (const bool legacy : {true, false}) {
      Ids ids = demo(legacy).encode("x");
      const Ids more = demo(legacy).encode(text, false, Before::text);
      ids.insert(ids.end(), more.begin(), more.end());
      EXPECT_EQ(demo().decode(ids), "x" + std::string(text));
    }
  }
  EXPECT_EQ(demo(false).encode("dog", false, Before::special), demo(false).encode("dog", false, Before::text));
  EXPECT_EQ(demo(true).encode("dog", false, Before::special), demo().encode("dog"));
}

// 300 KB are cut into five chunks; the ids are those of one pass.
TEST(Tokenizer, LongTextEqualsOnePass) {
  std::string text = "The start";
  std::mt19937 random(1);
  while (text.size() < 300000) text += std::string(" ") + kTexts[random() % 7] + (random() % 3 == 0 ? "\n" : "");
  EXPECT_EQ(demo().encode_long(text, true), demo().encode(text, true));
}

TEST(Tokenizer, StreamGivesWholeCharactersOnly) {
  const ByteTokenizer bytes;
  StreamDecoder decoder(bytes);
  EXPECT_EQ(decoder.push(3 + 0xF0), "");
  EXPECT_EQ(decoder.push(3 + 0x9F), "");
  EXPECT_EQ(decoder.push(3 + 0x98), "");
  EXPECT_EQ(decoder.push(2), "");  // a special token in between changes nothing
  EXPECT_EQ(decoder.push(3 + 0x80), "\xF0\x9F\x98\x80");
  EXPECT_EQ(decoder.push(3 + 'a'), "a");
  EXPECT_EQ(decoder.push(3 + 0xE6), "");
  EXPECT_EQ(decoder.push(3 + 'b'),
            "\xEF\xBF\xBD"
            "b");                                     // the character never ended
  EXPECT_EQ(decoder.push(3 + 0x80), "\xEF\xBF\xBD");  // a continuation byte on its own
  EXPECT_EQ(decoder.push(3 + 0xE6), "");
  EXPECT_EQ(decoder.push(3 + 0x97), "");
  EXPECT_EQ(decoder.finish(), "\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(decoder.finish(), "");
}

TEST(Tokenizer, Utf8) {
  EXPECT_TRUE(is_utf8("plain \xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80"));
  for (const char* bad :
       {"\x80", "\xC0\x80", "\xC1\xBF", "\xE0\x80\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xFF", "a\xE2\x82"})
    EXPECT_FALSE(is_utf8(bad));
  EXPECT_EQ(count_code_points("a\xC3\xA9\xF0\x9F\x98\x80"), 3);
}

TEST(Tokenizer, FoundBesideTheModel) {
  const TempFolder folder;
  EXPECT_EQ(find_tokenizer(folder.name("llama.bin")), "");
  const std::string shared = folder.write("tokenizer.model", "");
  EXPECT_EQ(find_tokenizer(folder.name("llama.bin")), shared);
  EXPECT_EQ(find_tokenizer(folder.name("config.json")), shared);
  const std::string own = folder.write("llama.tokenizer.model", "");
  EXPECT_EQ(find_tokenizer(folder.name("llama.bin")), own);
  EXPECT_EQ(find_tokenizer(folder.name("llama.bits4.irq")), own);
  EXPECT_EQ(find_tokenizer(folder.name("other.bin")), shared);
}

TEST(Tokenizer, ErrorsNameTheFile) {
  const TempFolder folder;
  EXPECT_CONTAINS(error_of([&] { open_tokenizer(folder.name("none.model")); }), "none.model: cannot be read");
  const std::string broken = folder.write("broken.model", "version https://git-lfs.github.com/spec/v1\n");
  EXPECT_CONTAINS(error_of([&] { open_tokenizer(broken); }), "not a SentencePiece model");
  const std::string empty = folder.write("empty.model", "");
  EXPECT_CONTAINS(error_of([&] { open_tokenizer(empty); }), "not a SentencePiece model");
  const std::string json = folder.write("tokenizer.json", "{\"version\": \"1.0\"}");
  EXPECT_CONTAINS(error_of([&] { open_tokenizer(json); }), "an object \"model\"");
  const std::string message = error_of([&] { require_tokenizer(folder.name("sub/llama.bin")); });
  EXPECT_CONTAINS(message, "no tokenizer beside it");
  EXPECT_CONTAINS(message, "llama.tokenizer.model");
}

}  // namespace
}  // namespace irq
