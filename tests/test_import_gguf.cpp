// GGUF files of one small model: the tensors that come out, the logits they give, and every refusal.
#include "src/core/file.h"
#include "src/io/ggml_blocks.h"
#include "src/io/gguf_keys.h"
#include "tests/import_files.h"

namespace irq {
namespace {

class ImportGguf : public Formats {
 protected:
  ImportGguf() { config_.rope_theta = tied_.rope_theta = 12345.5; }
  std::string error_in(const std::function<void(GgufBytes&)>& change) const {
    GgufBytes g = gguf_of(config_, weights_);
    change(g);
    return error(import_gguf, g.bytes());
  }
};

TEST_F(ImportGguf, F32) {
  for (const bool tied : {false, true}) {
    const ModelConfig& c = tied ? tied_ : config_;
    const Weights& w = tied ? tied_weights_ : weights_;
    const auto model = import_gguf(save(gguf_of(c, w).bytes()));
    EXPECT_EQ(model->config(), c);
    EXPECT_EQ(model->dtype(), DType::F32);
    expect_tensors(*model, w);
    expect_logits(*model, interleaved(c, w), folder_);
  }
}

TEST_F(ImportGguf, HalfTypes) {
  for (const uint32_t type : {1u, 30u}) {
    const auto model = import_gguf(save(gguf_of(config_, rounded(weights_, type), type).bytes()));
    EXPECT_EQ(model->dtype(), type == 1 ? DType::F16 : DType::BF16);
    expect_tensors(*model, rounded(weights_, type));
  }
}

TEST_F(ImportGguf, MixedTypesAreF32) {
  GgufBytes g = gguf_of(config_, rounded(weights_, 1), 1, {{"output.weight", 30u}});
  const auto model = import_gguf(save(g.bytes()));
  EXPECT_EQ(model->dtype(), DType::F32);
}

// Quantized rows: random blocks; every tensor's row is the decoded row of the place that its reordering gives.
TEST_F(ImportGguf, QuantizedRows) {
  for (const uint32_t type : {2u, 3u, 8u}) {
    std::map<std::string, std::string> blocks;
    const auto model = import_gguf(save(quantized_gguf(config_, weights_, type, &blocks).bytes()));
    EXPECT_EQ(model->dtype(), DType::F32);
    const int64_t d = config_.head_dim;
    for (const char* name : {"embed", "layers.0.wq", "layers.1.wk", "layers.1.wv", "layers.0.w_down", "head"}) {
      const Tensor t = model->tensor(name);
      const std::string& bytes = blocks.at(name);
      const size_t row_bytes = bytes.size() / static_cast<size_t>(t.rows);
      const bool rotary =
          std::string(name).find(".wq") != std::string::npos || std::string(name).find(".wk") != std::string::npos;
      for (int64_t r = 0; r < t.rows; ++r) {
        const int64_t j = r % d % (d / 2), p = r % d / (d / 2), from = rotary ? r / d * d + 2 * j + p : r;
        std::vector<float> row(static_cast<size_t>(t.cols));
        const char* at = bytes.data() + static_cast<size_t>(from) * row_bytes;
        decode_ggml_row(static_cast<GgmlType>(type), reinterpret_cast<const unsigned char*>(at), t.cols, row.data());
        const float* got = t.row<float>(r);
        ASSERT_EQ(row, std::vector<float>(got, got + t.cols)) << name << " row " << r;
      }
    }
  }
}

TEST_F(ImportGguf, OtherShapesOfHeads) {
  ModelConfig c = config_;
  c.head_dim = 24;  // heads wider than dim / heads
  const Weights w = random_weights(c, 3);
  const auto model = import_gguf(save(gguf_of(c, w).bytes()));
  EXPECT_EQ(model->config(), c);
  expect_tensors(*model, w);
}

TEST_F(ImportGguf, Refusals) {
  EXPECT_EQ(error_in([](GgufBytes& g) {
              g.rename("general.architecture", "general.architecturx"), g.string("general.architecture", "qwen2");
            }),
            "not a LLaMA this engine can run: its architecture is qwen2\n"
            "  expected: LLaMA's architecture: RMSNorm, plain rotary positions, SwiGLU, linears without bias");
  const auto has = [&](const std::function<void(GgufBytes&)>& change, const std::string& part) {
    const std::string e = error_in(change);
    EXPECT_NE(e.find(part), std::string::npos) << "expected: " << part << "\nfound: " << e;
  };
  has(
      [](GgufBytes& g) {  // nothing in a file speaks to the terminal
        g.rename("general.architecture", "general.architecturx"), g.string("general.architecture", "\x1b[2J");
      },
      "its architecture is ?[2J\n");
  has([](GgufBytes& g) { g.pair("split.count", 2, raw<uint16_t>(3)); }, "is one part of a model");
  has(
      [](GgufBytes& g) {  // nothing in a file speaks to the terminal
        g.rename("general.architecture", "general.architecturx"), g.string("general.architecture", "\x1b[2J");
      },
      "its architecture is ?[2J\n");
  has([](GgufBytes& g) { g.pair("split.count", 2, raw<uint16_t>(3)); }, "llama-gguf-split --merge");
  has([](GgufBytes& g) { g.string("general.type", "adapter"); }, "it is no model but of type adapter");
  has([](GgufBytes& g) { g.u32("llama.expert_count", 8); }, "it is a mixture of 8 experts");
  has([](GgufBytes& g) { g.flag("llama.attention.causal", false); }, "its attention is not causal");
  has([](GgufBytes& g) { g.f32("llama.logit_scale", 2); }, "llama.logit_scale is set");
  has([](GgufBytes& g) { g.u32("llama.attention.sliding_window", 16); }, "a window of 16 positions only");
  has([](GgufBytes& g) { g.string("llama.rope.scaling.type", "yarn"); }, "llama.rope.scaling.type is yarn");
  has([](GgufBytes& g) { g.f32("llama.rope.scaling.factor", 4); }, "llama.rope.scaling.factor is 4");
  has([](GgufBytes& g) { g.f32("llama.rope.scale_linear", 2); }, "llama.rope.scale_linear is 2");
  has([](GgufBytes& g) { g.u32("llama.rope.dimension_count", 8); }, "rotary positions on 8 of 16 values of a head");
  has([](GgufBytes& g) { g.u32("llama.attention.value_length", 8); }, "its keys have 16 values per head, its values 8");
  has([](GgufBytes& g) { g.tensor("blk.0.attn_q.bias", {64}, 0, std::string(256, 'x')); },
      "it has a bias, blk.0.attn_q.bias");
  has([](GgufBytes& g) { g.tensor("blk.0.ffn_gate_inp.weight", {64}, 0, std::string(256, 'x')); },
      "it is a mixture of experts: blk.0.ffn_gate_inp.weight");
  has([](GgufBytes& g) { g.tensor("blk.0.attn_q_norm.weight", {16}, 0, std::string(64, 'x')); },
      "it has a tensor that LLaMA does not have, blk.0.attn_q_norm.weight");
  has(
      [](GgufBytes& g) {
        g.tensor("rope_freqs.weight", {8}, 0, raw(std::vector<float>{1, 1, 1, 1, 1, 2, 8, 8}));
      },
      "rope_freqs.weight stretches its positions, as LLaMA 3.1 and later do");
  has([](GgufBytes& g) { g.strings("tokenizer.ggml.tokens", {"a"}), g.u32("tokenizer.ggml.model", 1); },
      "tokenizer.ggml.model to be a text");
  has([](GgufBytes& g) { g.strings("tokenizer.ggml.tokens", std::vector<std::string>(300, "t")); },
      "it has 300 tokens but only 259 rows of embedding");
  has(
      [](GgufBytes& g) {
        g.strings("tokenizer.ggml.tokens", {"a", "b"}), g.array("tokenizer.ggml.scores", 6, 1, raw(1.0f));
      },
      "expected: tokenizer.ggml.scores to be one number for each of 2 tokens\n  found   : an array of 1");
  has([](GgufBytes& g) { g.array("tokenizer.ggml.tokens", 5, 1, raw(1)); }, "to be an array of texts");
  has([](GgufBytes& g) { g.rename("llama.block_count", "llama.block_coumt"); },
      "expected: llama.block_count to be a whole number\n  found   : no such key");
  has([](GgufBytes& g) { g.rename("blk.1.ffn_up.weight", "blk.1.ffn_uq.weight"); },
      "there is no tensor blk.1.ffn_up.weight");
  has([](GgufBytes& g) { g.rename("token_embd.weight", "token_emb_.weight"); }, "there is no tensor token_embd.weight");
  has(
      [](GgufBytes& g) {
        g.rename("llama.attention.layer_norm_rms_epsilon", "llama.attention.layer_norm_rms_epsilom");
      },
      "layer_norm_rms_epsilon to be a number");
}

TEST_F(ImportGguf, WrongShapesAndTypes) {
  Weights w = weights_;
  ModelConfig wide = config_;
  wide.ffn = 128;
  GgufBytes g = gguf_of(wide, random_weights(wide, 1), 0, {}, 96);  // the header says 96
  EXPECT_EQ(error(import_gguf, g.bytes()),
            "blk.0.ffn_gate.weight has the wrong shape\n"
            "  expected: 96 x 64\n"
            "  found   : 128 x 64\n"
            "  likely  : a damaged file, or a model of another architecture");
  g = gguf_of(config_, weights_, 0, {{"blk.1.attn_v.weight", 12u}});
  EXPECT_NE(error(import_gguf, g.bytes()).find("  found   : Q4_K\n"), std::string::npos);
}

TEST_F(ImportGguf, WhatStretchesNothingIsTaken) {
  GgufBytes g = gguf_of(config_, weights_);
  g.string("llama.rope.scaling.type", "none"), g.f32("llama.rope.scaling.factor", 8);
  g.tensor("rope_freqs.weight", {8}, 0, raw(std::vector<float>(8, 1.0f)));
  g.u32("llama.expert_count", 0), g.u32("llama.vocab_size", 259), g.pair("split.count", 2, raw<uint16_t>(1));
  const auto model = import_gguf(save(g.bytes()));
  expect_tensors(*model, weights_);
  EXPECT_TRUE(notes_say(*model, "the file has no vocabulary"));
  EXPECT_TRUE(notes_say(*model, "tokenizer.ggml.eos_token_id is not in the file: 2 is assumed"));
  EXPECT_TRUE(model->side_files().empty());
}

TEST_F(ImportGguf, CutAnywhere) {
  const std::string whole = gguf_of(config_, weights_).bytes();
  for (size_t n = 0; n < whole.size() - 32; n += n < 4000 ? 61 : 10007)
    EXPECT_NE(error(import_gguf, whole.substr(0, n)).find("\n  expected: "), std::string::npos) << "cut at " << n;
}

TEST_F(ImportGguf, Vocabulary) {
  const auto vocabulary = [&](const std::function<void(GgufBytes&)>& fill) {
    GgufBytes g;
    fill(g);
    return gguf_vocabulary(GgufReader(save(g.bytes())));
  };
  EXPECT_EQ(vocabulary([](GgufBytes&) {}).model, "");
  Vocabulary v = vocabulary([](GgufBytes& g) {  // what llama.cpp assumes where a SentencePiece vocabulary says nothing
    g.string("tokenizer.ggml.model", "llama"), g.strings("tokenizer.ggml.tokens", {"<unk>", "<s>", "</s>", "a"});
    g.array("tokenizer.ggml.scores", 6, 4, raw(std::vector<float>{0, 0, 0, -1.5f}));
    g.array("tokenizer.ggml.token_type", 5, 4, raw(std::vector<int32_t>{2, 3, 3, 1}));
  });
  EXPECT_EQ(v.model, "llama");
  EXPECT_EQ(v.tokens, (std::vector<std::string>{"<unk>", "<s>", "</s>", "a"}));
  EXPECT_EQ(v.scores, (std::vector<float>{0, 0, 0, -1.5f}));
  EXPECT_EQ(v.types, (std::vector<int32_t>{2, 3, 3, 1}));
  EXPECT_EQ((std::vector<int32_t>{v.bos, v.eos, v.unknown, v.padding}), (std::vector<int32_t>{1, 2, 0, -1}));
  EXPECT_TRUE(v.add_bos && v.add_space_prefix);
  v = vocabulary([](GgufBytes& g) {
    g.string("tokenizer.ggml.model", "gpt2"), g.string("tokenizer.ggml.pre", "smollm");
    g.strings("tokenizer.ggml.tokens", {"<|end|>", "a", "b", "ab"}), g.strings("tokenizer.ggml.merges", {"a b"});
    g.u32("tokenizer.ggml.bos_token_id", 0), g.u32("tokenizer.ggml.eos_token_id", 3);
    g.u32("tokenizer.ggml.padding_token_id", 0xffffffffu), g.flag("tokenizer.ggml.add_bos_token", true);
    g.string("tokenizer.chat_template", "{{x}}");
  });
  EXPECT_EQ(v.pre, "smollm");
  EXPECT_EQ(v.merges, std::vector<std::string>{"a b"});
  EXPECT_EQ((std::vector<int32_t>{v.bos, v.eos, v.unknown, v.padding}), (std::vector<int32_t>{0, 3, -1, -1}));
  EXPECT_TRUE(v.add_bos && !v.add_space_prefix);
  EXPECT_EQ(v.chat_template, "{{x}}");
}

// SmolLM2-135M-Instruct (Q4_1, Q8_0): three tensors against the gguf Python package, rows reordered as transformers does it.
// FNV-1a over their floats, f32.
TEST(ImportGgufReal, SmolLm2) {
  const char* given = std::getenv("IRQ_SMOLLM2");
  const std::string path = given ? given : "../smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
  if (!file_exists(path)) GTEST_SKIP() << "SmolLM2's GGUF file is not at $IRQ_SMOLLM2 or in ../smollm2";
  const auto model = import_gguf(path);
  const ModelConfig& c = model->config();
  EXPECT_EQ(describe(c), "LLaMA, 30 layers, dim 576, ffn 1536, 9 heads (3 kv), vocabulary 49152");
  EXPECT_TRUE(c.tied);
  EXPECT_EQ(c.rope_theta, 100000.0);
  EXPECT_EQ(c.norm_eps, 1e-5);
  EXPECT_EQ(c.max_seq, 8192);
  EXPECT_EQ(c.bos, 1);
  EXPECT_EQ(c.eos, 2);
  EXPECT_TRUE(model->notes().empty());
  const std::pair<const char*, uint64_t> hashes[] = {{"layers.0.wk", 0xb4fbce04947b99da},
                                                     {"layers.13.w_down", 0x72e08b72f40b7e7c},
                                                     {"layers.29.wq", 0x79e00de42ce5876d}};
  for (const auto& [name, hash] : hashes) EXPECT_EQ(fnv(values_of(model->tensor(name))), hash) << name;
  EXPECT_EQ(model->tensor("embed").rows, 49152);
}

}  // namespace
}  // namespace irq
