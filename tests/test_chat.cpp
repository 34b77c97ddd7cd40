// Chat forms, and what the tools make of tokenizers: --template, --specials, --legacy.
#include "src/text/chat.h"
#include "src/text/instruct.h"
#include "src/text/vocabulary.h"
#include "tests/bpe_fixture.h"
#include "tests/cli_util.h"
#include "tests/eval_fixture.h"

namespace irq {
namespace {

const char* const kChatml =
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou "
    "are a "
    "dog.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

Vocabulary tiny_vocabulary(const std::string& chat_template) {
  Vocabulary v = read_vocabulary(golden_path("bpe_tokenizer.json"));
  v.bos = 1, v.eos = 2, v.chat_template = chat_template;
  return v;
}
void write_tokenizer(const TempFolder& folder, const std::string& chat_template) {
  for (const SideFile& f : tokenizer_files(tiny_vocabulary(chat_template), "x")) folder.write(f.name, f.content);
}
std::unique_ptr<Tokenizer> tiny_with(const std::string& chat_template) {
  const TempFolder folder;
  write_tokenizer(folder, chat_template);
  return open_tokenizer(folder.name("tokenizer.json"));
}

TEST(Chat, ChatmlIsWhatItsTemplateRenders) {
  const auto t = tiny_with(kChatml);
  ChatForm form = recognise_chat(*t);
  EXPECT_EQ(form.kind, ChatKind::chatml);
  EXPECT_EQ(form.system, "You are a dog.");
  EXPECT_FALSE(form.bos);
  EXPECT_EQ(chat_turn(*t, form, "Hi", true),
            t->encode_with_specials("<|im_start|>system\nYou are a dog.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
                                    "<|im_start|>assistant\n"));
  EXPECT_EQ(end_of_answer(*t, form), 2);
  EXPECT_EQ(chat_turn(*t, form, "Hi", false),
            t->encode_with_specials("\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"));
  form.system.clear();
  EXPECT_EQ(chat_turn(*t, form, "Hi", true),
            t->encode_with_specials("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"));
  // What a user types cannot end the turn.
  const Ids ids = chat_turn(*t, form, "<|im_end|>", true);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 2), 1);
}

// transformers' own chat: ../shared/data/golden, over SmolLM2's tokenizer.
TEST(Chat, SmolLm2EqualsTransformers) {
  const char* folder = std::getenv("IRQ_SMOLLM2");
  const std::string golden_file = shared_path("golden/smollm2_transformers.json");
  const std::string path = find_tokenizer((folder != nullptr ? std::string(folder) : std::string()) + "/model.bin");
  if (folder == nullptr || path.empty() || golden_file.empty())
    GTEST_SKIP() << "$IRQ_SMOLLM2 names no folder with SmolLM2's converted tokenizer.json";
  const auto t = open_tokenizer(path);
  ChatForm form = recognise_chat(*t);
  ASSERT_EQ(form.kind, ChatKind::chatml);
  EXPECT_EQ(form.system, "You are a helpful AI assistant named SmolLM, trained by Hugging Face");
  form.system.clear();  // the golden's conversation has none
  const std::string chat = Json::parse(read_text_file(golden_file))["chat"];
  EXPECT_EQ(chat_turn(*t, form, "What is the capital of France, and what is it known for?", true),
            t->encode_with_specials(chat));
}

TEST(Chat, DefaultSystemMessages) {
  const auto system_of = [](const std::string& text) { return recognise_chat(*tiny_with(text)).system; };
  EXPECT_EQ(system_of("'<|im_start|>system\\nTwo\\nlines<|im_end|>\\n'"), "Two\nlines");  // \n spelled out
  EXPECT_EQ(system_of("'<|im_start|>system\n' + message + '<|im_end|>'"), "");            // a place for the caller's
  EXPECT_EQ(system_of("<|im_start|><|im_end|>"), "");
  EXPECT_EQ(system_of("<|im_start|>system\n<|im_end"), "");
  EXPECT_TRUE(recognise_chat(*tiny_with("{{ bos_token }}<|im_start|><|im_end|>")).bos);
}

TEST(Chat, UnknownTemplatesAreAlpaca) {
  EXPECT_EQ(recognise_chat(*tiny_with("")).kind, ChatKind::alpaca);
  EXPECT_EQ(recognise_chat(*tiny_with("<|user|>{{ x }}<|assistant|>")).kind, ChatKind::alpaca);
  EXPECT_EQ(recognise_chat(*tiny_with("<|im_start|> only")).kind, ChatKind::alpaca);
  const auto demo = open_tokenizer(demo_path("tokenizer.model"));
  EXPECT_EQ(recognise_chat(*demo).kind, ChatKind::alpaca);
  EXPECT_EQ(chat_turn(*demo, {}, "Hi", true), demo->encode(alpaca_prompt("Hi", ""), true, Before::special));
  EXPECT_EQ(chat_turn(*demo, {}, "Hi", false), demo->encode(chat_prompt("", "Hi", false), false, Before::special));
  // No BOS where the tokenizer adds none.
  EXPECT_EQ(chat_turn(tiny_bpe(), {}, "Hi", true), tiny_bpe().encode(alpaca_prompt("Hi", "")));
}

TEST(Chat, Llama2) {
  const TempFolder folder;
  std::filesystem::copy_file(demo_path("tokenizer.model"), folder.name("tokenizer.model"));
  folder.write("tokenizer_config.json", R"({"chat_template": "{{ '<<SYS>>' }} [INST] [/INST]", "legacy": false})");
  const auto t = require_tokenizer(folder.name("m.bin"));
  ChatForm form = recognise_chat(*t);
  ASSERT_EQ(form.kind, ChatKind::llama2);
  EXPECT_EQ(chat_turn(*t, form, " Hi ", true), t->encode_with_specials("<s>[INST] Hi [/INST]"));
  EXPECT_EQ(chat_turn(*t, form, "Hi", false), t->encode_with_specials("<s>[INST] Hi [/INST]"));
  form.system = "Be kind.";
  EXPECT_EQ(chat_turn(*t, form, "Hi", true),
            t->encode_with_specials("<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST]"));
  EXPECT_EQ(end_of_answer(*t, form), 2);
}

// tokenizer_config.json's "legacy" decides, an explicit choice goes before it, and nothing said means LLaMA-1.
TEST(Legacy, WhoDecides) {
  const TempFolder folder;
  std::filesystem::copy_file(demo_path("tokenizer.model"), folder.name("tokenizer.model"));
  const auto ids = [&](std::optional<bool> legacy = {}) {
    return require_tokenizer(folder.name("m.bin"), legacy)->encode("dog", true, Before::special);
  };
  const Ids on = ids(true), off = ids(false);
  EXPECT_NE(on, off);
  EXPECT_EQ(ids(), on);
  folder.write("tokenizer_config.json", R"({"legacy": false})");
  EXPECT_EQ(ids(), off);
  EXPECT_EQ(ids(true), on);
  folder.write("tokenizer_config.json", R"({"legacy": null})");
  EXPECT_EQ(ids(), on);
}

TEST(TokenizerFiles, JsonIsFoundAndCarried) {
  const TempFolder folder;
  const std::string json = folder.write("from/tokenizer.json", read_text_file(golden_path("bpe_tokenizer.json")));
  folder.write("from/tokenizer_config.json", R"({"eos_token": "<|im_end|>"})");
  EXPECT_EQ(find_tokenizer(folder.name("from/llama.bin")), json);
  folder.write("from/chat_template.jinja", "T");
  std::filesystem::create_directories(folder.name("to"));
  EXPECT_CONTAINS(carry_tokenizer(folder.name("from/llama.bin"), folder.name("to/x.irq")), "tokenizer copied to");
  EXPECT_EQ(require_tokenizer(folder.name("to/x.irq"))->eos(), 2);
  EXPECT_EQ(require_tokenizer(folder.name("to/x.irq"))->chat_template(), "T");
  EXPECT_EQ(carry_tokenizer(folder.name("from/llama.bin"), folder.name("to/x.irq")), "");
  // A tokenizer that is named after its model has a template of that name.
  folder.write("own/m.tokenizer.json", read_text_file(json));
  folder.write("own/chat_template.jinja", "another's");
  EXPECT_EQ(require_tokenizer(folder.name("own/m.bin"))->chat_template(), "");
  folder.write("own/m.chat_template.jinja", "own");
  EXPECT_EQ(require_tokenizer(folder.name("own/m.bin"))->chat_template(), "own");
  // Of the same name the SentencePiece model wins; a model's own file wins over the folder's.
  const std::string own = folder.write("from/llama.tokenizer.json", "{}");
  EXPECT_EQ(find_tokenizer(folder.name("from/llama.bits4.irq")), own);
  const std::string model = folder.write("from/tokenizer.model", "");
  EXPECT_EQ(find_tokenizer(folder.name("from/other.bin")), model);
  EXPECT_EQ(tokenizer_config_path(own), folder.name("from/llama.tokenizer_config.json"));
  EXPECT_EQ(tokenizer_config_path("a/b.model"), "");
}

std::string joined(const Ids& ids) {
  std::string line;
  for (const int32_t id : ids) line += (line.empty() ? "" : ",") + std::to_string(id);
  return line;
}

TEST(InspectCommand, EncodesWithAndWithoutSpecials) {
  const std::string path = golden_path("bpe_tokenizer.json"), text = "<|im_start|>user\nHi";
  const auto run = [&](std::vector<std::string> args) {
    args.insert(args.begin(), path);
    return run_command("irq_inspect", args);
  };
  EXPECT_EQ(run({"--encode", text}).out, joined(tiny_bpe().encode(text)) + "\n");
  EXPECT_EQ(run({"--specials", "--encode", text}).out, joined(tiny_bpe().encode_with_specials(text)) + "\n");
  EXPECT_CONTAINS(run({"--specials"}).err, "--specials has no effect here: only --encode reads a text");
  EXPECT_CONTAINS(run({"--encode", "x", "--legacy", "maybe"}).err, "--legacy: 'maybe' is not one of auto, on, off");
}

TEST(GenerateCommand, ChatInTheModelsOwnForm) {
  const TempFolder folder;
  ModelConfig c = eval_config();
  c.vocab = 959, c.max_seq = 256;
  write_weights(folder.name("m.bin"), c, random_weights(c, 1));
  write_tokenizer(folder, kChatml);
  const auto generate = [&](std::vector<std::string> args) {
    args.insert(args.begin(), {folder.name("m.bin"), "--device", "cpu", "--threads", "1", "--max-tokens", "6"});
    return run_command("irq_generate", args);
  };
  const auto t = require_tokenizer(folder.name("m.bin"));
  const auto text_behind = [&](const Ids& prompt) {
    const CommandResult r = generate({"--ids", joined(prompt)});
    EXPECT_EQ(r.status, 0) << r.err;
    Ids ids;
    std::stringstream list(r.out);
    for (std::string id; std::getline(list, id, ',');) ids.push_back(std::stoi(id));
    return t->decode(ids) + "\n";
  };
  const CommandResult own = generate({"--chat", "--prompt", "Hi"});
  EXPECT_EQ(own.out, text_behind(chat_turn(*t, recognise_chat(*t), "Hi", true))) << own.err;
  EXPECT_CONTAINS(own.err, "chat form: ChatML, the model's own");
  const CommandResult alpaca = generate({"--chat", "--prompt", "Hi", "--template", "alpaca"});
  EXPECT_EQ(alpaca.out, text_behind(t->encode(alpaca_prompt("Hi", ""))));
  EXPECT_CONTAINS(generate({"--prompt", "Hi", "--template", "model"}).err,
                  "--template has no effect here: only --chat puts a prompt into a form");
  // No BOS in front of a prompt where the tokenizer adds none, so that an empty one is nothing at all.
  EXPECT_EQ("Hi" + generate({"--prompt", "Hi"}).out, "Hi" + text_behind(t->encode("Hi")));
  EXPECT_CONTAINS(generate({"--prompt", ""}).err, "the prompt is empty");
  write_tokenizer(folder, "{{ something else }}");
  EXPECT_CONTAINS(generate({"--chat", "--prompt", "Hi", "--template", "model"}).err,
                  "its chat template is none that this engine knows");
  EXPECT_CONTAINS(generate({"--chat", "--prompt", "Hi"}).err,
                  "chat form: Alpaca's prompt; the model's chat template is");
}

// A tokenizer that adds no BOS: neither do the training examples.
TEST(TrainingData, NoBosWhereTheTokenizerAddsNone) {
  const auto t = tiny_with("");
  ASSERT_EQ(t->bos(), 1);
  const TempFolder folder;
  const auto data = load_data(folder.write("d.jsonl", "{\"input\": \"A dog\", \"output\": \" barks\"}\n"), t.get(), {});
  Ids expected = t->encode("A dog");
  for (const int32_t id : t->encode(" barks")) expected.push_back(id);
  expected.push_back(2);
  EXPECT_EQ(data.examples[0].ids, expected);
  EXPECT_EQ(load_data(folder.write("t.txt", "A dog barks"), t.get(), {}).examples[0].ids, t->encode("A dog barks"));
  EXPECT_CONTAINS(error_of([&] { load_data(folder.name("d.jsonl"), &tiny_bpe(), {}); }), "no end-of-text token");
}

}  // namespace
}  // namespace irq
