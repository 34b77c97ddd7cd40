// llama2.c and llm.c files of one small model: the tensors that come out, the logits they give, and every refusal.
#include "src/io/sequential_import.h"
#include "tests/import_files.h"

namespace irq {
namespace {

class ImportLlama2c : public Formats {};

TEST_F(ImportLlama2c, BothVersions) {
  for (const int version : {0, 1})
    for (const bool tied : {false, true}) {
      const ModelConfig& c = tied ? tied_ : config_;
      const Weights& w = tied ? tied_weights_ : weights_;
      const auto model = import_llama2c(save(llama2c_of(c, w, version)));
      EXPECT_EQ(model->config(), c) << "version " << version;
      EXPECT_EQ(model->dtype(), DType::F32);
      expect_tensors(*model, w);
      expect_logits(*model, interleaved(c, w), folder_);
      EXPECT_TRUE(notes_say(*model, "1e-5 and 10,000 are assumed"));
      EXPECT_TRUE(notes_say(*model, "put its tokenizer.model beside the model"));
      EXPECT_TRUE(model->side_files().empty());
    }
}

TEST_F(ImportLlama2c, TokenizerFilesBesideIt) {
  folder_.write("tokenizer.model", "anything");
  folder_.write("tokenizer_config.json", "{}");
  const auto model = import_llama2c(save(llama2c_of(config_, weights_, 1)));
  const std::vector<SideFile> files = model->side_files();
  ASSERT_EQ(files.size(), 2u);
  EXPECT_EQ(files[0].name, "tokenizer.model");
  EXPECT_EQ(files[0].content, "anything");
  EXPECT_EQ(files[1].name, "tokenizer_config.json");
  EXPECT_EQ(model->notes().size(), 1u);
}

TEST_F(ImportLlama2c, Refusals) {
  std::string v2 = llama2c_of(config_, weights_, 1);
  v2.replace(4, 4, raw<int32_t>(2));
  EXPECT_EQ(error(import_llama2c, v2),
            "a llama2.c checkpoint of version 2 (Q8_0), which is not supported\n"
            "  expected: version 0 or 1 (f32)\n"
            "  likely  : made with --version 2; its scales stand in two different orders under this one version\n"
            "  try     : python export.py model.bin --version 1 ...    in llama2.c, then convert again");
  v2.replace(4, 4, raw<int32_t>(9));
  EXPECT_NE(error(import_llama2c, v2).find("found   : version 9"), std::string::npos);
  std::string damaged = llama2c_of(config_, weights_, 1);
  damaged[36] = 2;
  EXPECT_NE(error(import_llama2c, damaged).find("a damaged llama2.c header"), std::string::npos);
  const auto header = [](const std::vector<int32_t>& h) { return ints(h) + std::string(100, '\0'); };
  const auto starts = [&](const std::vector<int32_t>& h, const std::string& text) {
    EXPECT_EQ(error(import_llama2c, header(h)).substr(0, text.size()), text);
  };
  starts({64, 96, 2, 0, 2, 259, 64}, "not a LLaMA this engine can run: heads = 0");
  starts({64, 96, 2, 4, 3, 259, 64}, "not a LLaMA this engine can run: 4 heads are not a multiple of 3 kv_heads");
  starts({66, 96, 2, 4, 2, 259, 64}, "not a LLaMA this engine can run");
  starts({-64, 96, 2, 4, 2, 259, 64}, "not a LLaMA this engine can run: dim = -64");
  starts({64, 96, 2, 4, 2, INT32_MIN, 64}, "not a LLaMA this engine can run: vocab = 2147483648");
  const MemoryLimit limit(512 << 20);
  starts({65536, 262144, 1024, 1024, 1024, 2000000, 16777216}, "checkpoint is cut short");  // a petabyte claimed
}

TEST_F(ImportLlama2c, WrongSizes) {
  const std::string v0 = llama2c_of(config_, weights_, 0), v1 = llama2c_of(config_, weights_, 1);
  EXPECT_EQ(
      error(import_llama2c, v1.substr(0, v1.size() - 4)),
      strf("checkpoint is cut short\n"
           "  header  : llama2.c version 1, LLaMA, 2 layers, dim 64, ffn 96, 4 heads (2 kv), vocabulary 259 -> the "
           "file must have %s bytes\n"
           "  on disk : %s bytes; first incomplete tensor: head\n"
           "  likely  : an interrupted download or conversion, or a file of another kind",
           with_commas(static_cast<int64_t>(v1.size())).c_str(),
           with_commas(static_cast<int64_t>(v1.size()) - 4).c_str()));
  EXPECT_NE(error(import_llama2c, v0 + "more").find("does not have the size its header gives"), std::string::npos);
  for (const std::string& whole : {v0, v1})
    for (size_t n = 0; n < whole.size(); n += n < 400 ? 3 : 9973)
      EXPECT_NE(error(import_llama2c, whole.substr(0, n)), "") << "cut at " << n;
}

TEST_F(ImportLlama2c, VersionWithoutMagicIsRecognised) {
  const std::string v0 = llama2c_of(config_, weights_, 0);
  EXPECT_TRUE(is_llama2c_v0(MappedFile(save(v0))));
  EXPECT_FALSE(is_llama2c_v0(MappedFile(save(v0 + "x"))));
  EXPECT_FALSE(is_llama2c_v0(MappedFile(save(llama2c_of(config_, weights_, 1)))));
  EXPECT_FALSE(is_llama2c_v0(MappedFile(save(""))));
  EXPECT_FALSE(is_llama2c_v0(MappedFile(save("{\"hidden_size\": 64, \"intermediate_size\": 96}"))));
}

// tokenizer.bin: 259 pieces. Taken where it is whole; where it is not, that is said.
TEST_F(ImportLlama2c, TokenizerBin) {
  const auto piece = [](const std::string& s) { return raw(-1.0f) + raw(static_cast<int32_t>(s.size())) + s; };
  std::string bin = raw<uint32_t>(8) + piece("<unk>") + piece("\n<s>\n") + piece("\n</s>\n");
  for (int b = 0; b < 253; ++b) bin += piece(strf("<0x%02X>", b));
  bin += piece(" a b") + piece("<0x12") + piece("\xE2\x96\x82");
  const std::string model = llama2c_of(config_, weights_, 0);
  const std::string missing = "tokenizer.bin does not have this model's 259 tokens";
  folder_.write("tokenizer.bin", bin);
  const auto whole = import_llama2c(save(model));
  EXPECT_FALSE(notes_say(*whole, missing));
  const Vocabulary v = dynamic_cast<SequentialModel&>(*whole).vocabulary().value();
  EXPECT_EQ(v.model, "llama");
  EXPECT_EQ(std::vector<std::string>(v.tokens.begin(), v.tokens.begin() + 4),
            (std::vector<std::string>{"<unk>", "<s>", "</s>", "<0x00>"}));
  EXPECT_EQ(std::vector<std::string>(v.tokens.end() - 3, v.tokens.end()),
            (std::vector<std::string>{"\xE2\x96\x81"
                                      "a\xE2\x96\x81"
                                      "b",
                                      "<0x12", "\xE2\x96\x82"}));
  std::vector<int32_t> types(259, 6);
  types[0] = 2, types[1] = types[2] = 3, types[256] = types[257] = types[258] = 1;
  EXPECT_EQ(v.types, types);
  EXPECT_EQ(v.scores, std::vector<float>(259, -1));
  std::string lying = bin;
  lying.replace(8, 4, raw<int32_t>(INT32_MAX));
  for (const std::string& bad : {bin + "x", bin.substr(0, bin.size() - 1), std::string(), lying}) {
    folder_.write("tokenizer.bin", bad);
    EXPECT_TRUE(notes_say(*import_llama2c(save(model)), missing));
  }
}

class ImportLlmc : public Formats {
 protected:
  ImportLlmc() { config_.rope_theta = 500000; }
  std::string file(int32_t version, bool floats) const { return llmc_of(config_, weights_, version, floats); }
  void expect_error_with(size_t slot, int32_t value, const std::string& part) const {
    std::string bytes = file(3, false);
    bytes.replace(4 * slot, 4, raw(value));
    const std::string e = error(import_llmc, bytes);
    EXPECT_NE(e.find(part), std::string::npos) << "expected: " << part << "\nfound: " << e;
  }
};

TEST_F(ImportLlmc, BothVersionsAndHeaders) {
  for (const bool floats : {false, true})
    for (const int32_t version : {3, 5}) {
      const Weights w = version == 3 ? weights_ : rounded(weights_, 30, true);
      const auto model = import_llmc(save(file(version, floats)));
      EXPECT_EQ(model->config(), config_);
      EXPECT_EQ(model->dtype(), version == 3 ? DType::F32 : DType::BF16);
      expect_tensors(*model, w);
      if (version == 3) expect_logits(*model, interleaved(config_, w), folder_);
      EXPECT_EQ(notes_say(*model, "its epsilon rounded to 0: 1e-5 is assumed"), !floats);
      EXPECT_TRUE(notes_say(*model, "the feed-forward width: 96, by the file's size"));
      EXPECT_TRUE(notes_say(*model, "which tokens begin and end a text: 1 and 2 are assumed"));
    }
}

TEST_F(ImportLlmc, EpsilonOfTheLaterHeader) {
  ModelConfig c = config_;
  c.norm_eps = 1e-6;
  EXPECT_EQ(import_llmc(save(llmc_of(c, weights_, 3, true)))->config().norm_eps, 1e-6);
}

TEST_F(ImportLlmc, Refusals) {
  std::string gpt2 = file(3, false);
  gpt2.replace(0, 4, raw<int32_t>(20240326));
  EXPECT_EQ(error(import_llmc, gpt2),
            "not a LLaMA this engine can run: it is an llm.c checkpoint of GPT-2\n"
            "  expected: an llm.c checkpoint of LLaMA (magic 20240803)\n"
            "  likely  : GPT-2 has learned positions, LayerNorm and biases, which LLaMA does not have");
  expect_error_with(0, 7, "not an llm.c checkpoint");
  expect_error_with(1, 4, "found   : version 4");
  expect_error_with(12, 1, "stretched as LLaMA 3.1's are (use_scaled_rope = 1; not supported)");
  expect_error_with(5, 0, "heads = 0");
  expect_error_with(5, 5, "not a LLaMA this engine can run");
  expect_error_with(7, -1, "dim = -1");
  expect_error_with(4, 3, "its feed-forward width cannot be told");
  expect_error_with(3, 2000000, "its feed-forward width cannot be told");
  EXPECT_NE(error(import_llmc, llmc_header(config_, 3, true, 1) + std::string(100, '\0')).find("use_scaled_rope"),
            std::string::npos);
}

TEST_F(ImportLlmc, WidthThatCannotBeTold) {
  const std::string whole = file(3, false);
  EXPECT_EQ(error(import_llmc, whole + std::string(4, 'x')),
            strf("its feed-forward width cannot be told\n"
                 "  expected: a multiple of 32 from 0 to 192 by its header\n"
                 "  found   : %s bytes, which would make it 96.003\n"
                 "  likely  : an interrupted download or copy, or bytes behind the end",
                 with_commas(static_cast<int64_t>(whole.size()) + 4).c_str()));
  // Cut by exactly one row of each feed-forward matrix: a width, but not one that the header's rule gives.
  const std::string cut = whole.substr(0, whole.size() - 4 * 3 * 64 * 2);
  EXPECT_NE(error(import_llmc, cut).find("which would make it 95.000"), std::string::npos);
  const std::string exact = file(3, true);  // the later header gives the width itself
  EXPECT_NE(error(import_llmc, exact.substr(0, exact.size() - 4 * 3 * 64 * 2 * 32)).find("expected: 96 by its header"),
            std::string::npos);
  for (size_t n = 0; n < whole.size(); n += n < 1200 ? 7 : 9973)
    EXPECT_NE(error(import_llmc, whole.substr(0, n)), "") << "cut at " << n;
}

}  // namespace
}  // namespace irq
