// Inspection and dumps, .npy, config.json.
#include <gtest/gtest.h>

#include <bitset>
#include <cmath>

#include "kernels/nf_codebook.h"
#include "src/io/config_json.h"
#include "src/io/inspect.h"
#include "src/io/npy.h"
#include "tests/io_files.h"

namespace irq {
namespace {

// ---- .npy ------------------------------------------------------------------------------------------------------------

TEST(Npy, RoundTrip) {
  ScratchDir dir;
  const std::string path = dir / "a.npy";
  Rng rng(1);
  const std::string bytes = random_string(rng, 8 * 24);
  for (const NpyType type : {NpyType::f32, NpyType::u8, NpyType::i32, NpyType::i64, NpyType::f64, NpyType::f16})
    for (const std::vector<int64_t>& shape : {std::vector<int64_t>{24}, {4, 6}, {2, 3, 4}, {}, {0, 5}}) {
      write_npy(path, type, shape, bytes.data());
      const Npy a = read_npy(path);
      EXPECT_EQ(a.type, type);
      EXPECT_EQ(a.shape, shape);
      EXPECT_EQ(std::string(a.bytes.begin(), a.bytes.end()), bytes.substr(0, a.bytes.size()));
    }
  write_npy(path, {3}, {1.5f, -2.0f, 1e30f});
  EXPECT_EQ(read_npy(path).as<float>()[1], -2.0f);
  EXPECT_EQ(read_npy(path).as_f64(), (std::vector<double>{1.5, -2.0, static_cast<double>(1e30f)}));
}

// Byte for byte: format 1.0's header as numpy.save lays it out (dictionary with a trailing comma, padded to 64).
TEST(Npy, IsWhatNumpyWrites) {
  ScratchDir dir;
  const int32_t values[3] = {0, 1, 2};
  write_npy(dir / "a.npy", NpyType::i32, {3}, values);
  std::string expected("\x93NUMPY\x01\x00\x76\x00", 10);
  expected += "{'descr': '<i4', 'fortran_order': False, 'shape': (3,), }";
  expected.resize(127, ' ');
  expected += '\n' + std::string("\0\0\0\0\1\0\0\0\2\0\0\0", 12);
  EXPECT_EQ(read_bytes(dir / "a.npy"), expected);
}

TEST(Npy, BrokenFilesAreErrors) {
  ScratchDir dir;
  const std::string path = dir / "a.npy";
  write_npy(path, {3}, {1, 2, 3});
  const std::string whole = read_bytes(path);
  for (size_t n = 0; n < whole.size(); ++n) {
    write_bytes(path, whole.substr(0, n));
    EXPECT_THROW(read_npy(path), Error) << n;
  }
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = whole;
    text.replace(text.find(from), from.size(), to);
    write_bytes(path, text);
    return error_of([&] { read_npy(path); });
  };
  EXPECT_NE(with("(3,)", "(4,)").find("wrong size"), std::string::npos);
  EXPECT_NE(with("<f4", ">f4").find("unsupported type"), std::string::npos);
  EXPECT_NE(with("False", "True ").find("Fortran"), std::string::npos);
  EXPECT_NE(with("(3,), }         ", "(999999999999,),}").find("wrong size"), std::string::npos);
  EXPECT_NE(with("(3,), }                       ", "(1125899906842624,8192,8),}   ").find("impossible shape"),
            std::string::npos);
}

// ---- config.json -----------------------------------------------------------------------------------------------------

const std::string kConfig = R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
  "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
  "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192, "rms_norm_eps": 1e-05,
  "rope_theta": 100000, "rope_scaling": null, "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": [2, 3])";

std::string config_error(const std::string& text) {
  ScratchDir dir;
  write_bytes(dir / "config.json", text);
  const std::string message = error_of([&] { model_config_from_json(dir / "config.json"); });
  const size_t at = message.find("config.json: ");
  return at == std::string::npos ? message : message.substr(at + 13);
}

TEST(ConfigJson, ReadsLlama) {
  ScratchDir dir;
  write_bytes(dir / "config.json", kConfig + "}");
  ModelConfig c = model_config_from_json(dir / "config.json");
  ModelConfig want;
  want.dim = 576, want.ffn = 1536, want.layers = 30, want.heads = 9, want.kv_heads = 3, want.head_dim = 64;
  want.vocab = 49152, want.max_seq = 8192, want.rope_theta = 1e5, want.norm_eps = 1e-5, want.tied = true;
  want.bos = 1, want.eos = 2;
  EXPECT_EQ(c, want);
  // LLaMA-1's own, with everything that has a default left out.
  write_bytes(dir / "config.json", R"({"architectures": ["LLaMAForCausalLM"], "hidden_size": 4096, "vocab_size": 32000,
    "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 32, "rms_norm_eps": 1e-06,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}})");
  c = model_config_from_json(dir / "config.json");
  want = preset_config("7b");
  want.rope_theta = 5000;
  EXPECT_EQ(c, want);
}

TEST(ConfigJson, RefusesWhatItWouldRunWrongly) {
  const std::string refused = "not a LLaMA this engine can run: ";
  const std::map<std::string, std::string> cases = {
      {R"("model_type": "gemma")", refused + "model_type is gemma"},
      {R"("architectures": ["Qwen2ForCausalLM"])", refused + "its architecture is Qwen2ForCausalLM"},
      {R"("architectures": ["LlamaForSequenceClassification"])",
       refused + "its architecture is LlamaForSequenceClassification"},
      {R"("architectures": "x")", refused + "its architecture is \"x\""},
      {R"("embedding_multiplier": 12)", refused + "embedding_multiplier is not 1"},
      {R"("sliding_window": 4096)", refused + "sliding_window is set"},
      {R"("attention_bias": true)", refused + "attention_bias is set"},
      {R"("mlp_bias": true)", refused + "mlp_bias is set"},
      {R"("hidden_act": "gelu")", refused + "hidden_act is gelu"},
      {R"("rope_interleaved": true)", refused + "rope_interleaved is set"},
      {R"("partial_rotary_factor": 0.5)", refused + "partial_rotary_factor is not 1"},
      {R"("rope_scaling": {"type": "linear", "factor": 2.0})",
       refused + R"(rope_scaling = {"factor":2.0,"type":"linear"})"},
      {R"("rope_scaling": {"rope_type": "llama3", "factor": 8})", refused + "rope_scaling = "},
      {R"("rope_parameters": {"rope_type": "yarn"})", refused + "rope_parameters = "},
      {R"("quantization_config": {})", refused + "it is quantized already (quant_method is unknown)"},
      {R"("quantization_config": {"quant_method": "gptq", "bits": 4})",
       refused + "it is quantized already (quant_method is gptq)"},
      {R"("quantization_config": {"load_in_8bit": true, "quant_method": "bitsandbytes"})",
       refused + "it is quantized already (bitsandbytes with 8 bits)"},
      {R"("quantization_config": {"load_in_4bit": true, "bnb_4bit_quant_type": "nf4"})",
       refused + "it is quantized already (bitsandbytes, NF4)"},
      {R"("num_attention_heads": 7)", refused + "hidden_size 576 is not a multiple of 7 heads"},
      {R"("num_key_value_heads": 2)", refused + "9 heads are not a multiple of 2 kv_heads"},
      {R"("num_hidden_layers": 0)", refused + "layers = 0"},
      {R"("hidden_size": 900000)", refused + "dim = 900000"},
      {R"("eos_token_id": 49152)", refused + "bos_token_id 1 or eos_token_id 49152 is outside"},
      {R"("hidden_size": "576")", "cannot be understood\n  expected: hidden_size to be a whole number"},
      {R"("hidden_size": -5)", "cannot be understood\n  expected: hidden_size to be a sensible size"},
      {R"("rms_norm_eps": [])", "cannot be understood\n  expected: rms_norm_eps to be a number"},
      {R"("tie_word_embeddings": 1)", "cannot be understood\n  expected: tie_word_embeddings to be true or false"},
      {R"("bos_token_id": "x")", "cannot be understood\n  expected: bos_token_id to be a token id"},
      {R"("vocab_size": null)", "has no vocab_size"}};
  for (const auto& [entry, says] : cases)  // of two equal keys the last one counts
    EXPECT_EQ(config_error(kConfig + ", " + entry + "}").find(says), 0u) << entry << "\n"
                                                                         << config_error(kConfig + ", " + entry + "}");
  EXPECT_EQ(config_error(kConfig).find("is not valid JSON"), 0u);
  EXPECT_EQ(config_error("[1]").find("is not a model's config.json"), 0u);
  EXPECT_EQ(config_error("{}").find("has no hidden_size"), 0u);
  EXPECT_EQ(config_error("{\"a\": 1e999}").find("is not valid JSON"), 0u);
  EXPECT_EQ(config_error(std::string(1000000, '[')).find("is nested too deeply"), 0u);
  EXPECT_EQ(config_error(kConfig + ", \"rope_scaling\": " + std::string(1000000, '[') + std::string(1000000, ']') + "}")
                .find("is nested too deeply"),
            0u);
  EXPECT_EQ(config_error(std::string(5 << 20, ' ')).find("too large for a text file of its kind"), 0u);
}

// What is no file of these tools: the advice is never to inspect it, which has just been done.
TEST(Inspect, AdviceForOtherFiles) {
  const ScratchDir dir;
  const std::string convert = "./irq_convert ", none = "not a model, adapter or training state of these tools\n";
  const std::pair<std::string, std::string> cases[] = {
      {"GGUF\x03", convert},
      {"PK\x03\x04zip", convert},
      {"hello", convert},
      {"", "download or copy it again"},
      {"<!DOCTYPE html>", "open it in a browser"},
      {"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"},
      {"[{\"instruction\": \"Say hello.\", \"output\": \"Hello.\"}]", convert}};
  for (const auto& [bytes, advice] : cases) {
    write_bytes(dir / "f", bytes);
    for (const std::string& text :
         {error_of([&] { inspect_summary(dir / "f"); }), error_of([&] { inspect_tensors(dir / "f"); }),
          error_of([&] { dump_tensor(dir / "f", "embed", dir / "o.npy"); })}) {
      EXPECT_EQ(text.find((dir / "f") + ": " + none), 0u) << text;
      EXPECT_NE(text.find("  try     : "), std::string::npos) << text;
      EXPECT_NE(text.find(advice), std::string::npos) << text;
      EXPECT_EQ(text.find("irq_inspect"), std::string::npos) << text;
    }
  }
}

TEST(Inspect, JsonLines) {
  const ScratchDir dir;
  write_bytes(dir / "log.jsonl", "{\"command\": \"./irq_train\", \"trained_parameters\": 5}\n{\"step\": 1}\n");
  std::string text = error_of([&] { inspect_summary(dir / "log.jsonl"); });
  EXPECT_NE(text.find("found   : JSON lines: the log of a run of irq_train\n"), std::string::npos) << text;
  EXPECT_NE(text.find("./irq_inspect " + (dir / "adapter.lora")), std::string::npos) << text;
  write_bytes(dir / "d.json", "{\"input\": \"a\", \"output\": \"b\"}\n{\"input\": \"a\", \"output\": \"b\"}\n");
  text = error_of([&] { inspect_summary(dir / "d.json"); });
  EXPECT_NE(text.find("try     : ./irq_train BASE --data " + (dir / "d.json")), std::string::npos) << text;
}

TEST(Inspect, CountsWhatIsNotFinite) {
  const ScratchDir dir;
  for (const DType dtype : {DType::F32, DType::F16, DType::BF16}) {
    BaseWriter w(dir / "m.bin", small_config(), dtype);
    while (const TensorSpec* t = w.next()) {
      std::vector<unsigned char> bytes(static_cast<size_t>(t->bytes()));  // zeros; all bits set is NaN in each type
      if (t->name == "layers.1.wk") std::fill_n(bytes.begin() + 3 * size_of(t->dtype), 2 * size_of(t->dtype), 0xff);
      if (t->name == "norm") std::fill_n(bytes.end() - size_of(t->dtype), size_of(t->dtype), 0xff);
      w.write(std::string(t->name), bytes.data(), t->bytes());
    }
    w.finish();
    const std::string text = inspect_summary(dir / "m.bin");
    EXPECT_NE(text.find("  values   : 3 are NaN or infinite, the first in layers.1.wk: "), std::string::npos) << text;
  }
}

// ---- dumps -----------------------------------------------------------------------------------------------------------

class Dump : public ::testing::Test {
 protected:
  Npy dump(const std::string& name) {
    dump_tensor(path_, name, dir_ / "out.npy");
    return read_npy(dir_ / "out.npy");
  }
  std::vector<float> floats(const std::string& name) {
    const Npy a = dump(name);
    return std::vector<float>(a.as<float>(), a.as<float>() + a.count());
  }
  ScratchDir dir_;
  std::string path_ = dir_ / "m";
};

TEST_F(Dump, PlainTensorsAreWidened) {
  for (const DType dtype : {DType::F32, DType::F16, DType::BF16}) {
    const Contents contents = write_base(path_, small_config(), dtype);
    const Npy a = dump("layers.0.wk");
    EXPECT_EQ(a.type, NpyType::f32);
    EXPECT_EQ(a.shape, (std::vector<int64_t>{8, 16}));
    const std::string& bytes = contents.at("layers.0.wk");
    for (size_t i = 0; i < 128; ++i) {
      uint32_t word = 0;
      std::memcpy(&word, bytes.data() + i * static_cast<size_t>(size_of(dtype)), static_cast<size_t>(size_of(dtype)));
      const uint16_t half = static_cast<uint16_t>(word);
      const float want = dtype == DType::F32    ? std::bit_cast<float>(word)
                         : dtype == DType::BF16 ? std::bit_cast<float>(word << 16)
                                                : to_float(F16{half});
      EXPECT_EQ(std::bit_cast<uint32_t>(a.as<float>()[i]), std::bit_cast<uint32_t>(want));
    }
    EXPECT_EQ(dump("norm").shape, (std::vector<int64_t>{16}));
    EXPECT_NE(error_of([&] { dump("layers.9.wk"); }).find("has no tensor layers.9.wk"), std::string::npos);
  }
}

// Everything recomputed here from the raw bytes by other means: codes through a string of bits, entropy from p log2 p.
TEST_F(Dump, QuantizedMatrix) {
  for (const int bits : {2, 3, 4}) {
    const Contents contents = write_irq(path_, small_info(bits));
    const std::string name = "layers.1.w_gate";  // 24 x 16: six blocks of 64
    std::string stream;
    for (const char c : contents.at(name + ".codes"))
      stream += std::bitset<8>(static_cast<unsigned char>(c)).to_string();
    std::vector<size_t> codes;
    for (size_t i = 0; i < 384; ++i)
      codes.push_back(std::stoul(stream.substr(i * static_cast<size_t>(bits), static_cast<size_t>(bits)), nullptr, 2));

    const Npy got = dump(name + ".codes");
    EXPECT_EQ(got.type, NpyType::u8);
    EXPECT_EQ(got.shape, (std::vector<int64_t>{24, 16}));
    for (size_t i = 0; i < 384; ++i) ASSERT_EQ(got.as<uint8_t>()[i], codes[i]) << i;

    const std::vector<float> groups = floats(name + ".scale_groups"), tau_groups = floats(name + ".tau_groups");
    const float offset = floats(name + ".scale_offset").at(0);
    const std::vector<float> scales = floats(name + ".scales"), tau = floats(name + ".tau");
    const std::vector<float> entropy = floats(name + ".entropy"), dequant = floats(name + ".dequant");
    ASSERT_EQ(groups.size(), 1u);
    ASSERT_EQ(scales.size(), 6u);
    const auto map = [](char code) { return (static_cast<float>(static_cast<unsigned char>(code)) - 127) / 128; };
    for (size_t b = 0; b < 6; ++b) {
      const float scaled = map(contents.at(name + ".scale_codes")[b]) * groups[0];
      EXPECT_EQ(scales[b], scaled + offset);
      EXPECT_EQ(tau[b], map(contents.at(name + ".tau_codes")[b]) * tau_groups[0]);
      double h = 0, count[16] = {};
      for (size_t i = 64 * b; i < 64 * b + 64; ++i) {
        ++count[codes[i]];
        const float product = nf_codebook(bits).level[codes[i]] * scales[b];
        ASSERT_EQ(dequant[i], product + tau[b]);
      }
      for (const double n : count) h -= n > 0 ? n / 64 * std::log2(n / 64) : 0;
      EXPECT_NEAR(entropy[b], h, 1e-6);  // one fp32 rounding of a number below 4: 1.2e-7
    }
    EXPECT_EQ(dump(name + ".scale_codes").type, NpyType::u8);
    EXPECT_EQ(dump(name + ".tau_codes").shape, (std::vector<int64_t>{6}));
    EXPECT_NE(error_of([&] { dump(name); }).find("is a quantized matrix: name a part of it"), std::string::npos);
    EXPECT_NE(error_of([&] { dump(name + ".what"); }).find("has no tensor"), std::string::npos);
  }
}

TEST_F(Dump, WithoutTau) {
  write_irq(path_, small_info(4, ShiftKind::none, ScaleKind::f32));
  const std::vector<float> scales = floats("layers.0.wo.scales"), dequant = floats("layers.0.wo.dequant");
  const Npy codes = dump("layers.0.wo.codes");
  for (size_t i = 0; i < dequant.size(); ++i)
    ASSERT_EQ(dequant[i], nf_codebook(4).level[codes.as<uint8_t>()[i]] * scales[i / 64]);
  EXPECT_NE(error_of([&] { dump("layers.0.wo.tau"); }).find("has no tensor"), std::string::npos);
}

TEST_F(Dump, AdapterAndState) {
  const AdapterFile a = small_adapter();
  write_adapter(path_, a);
  EXPECT_EQ(floats("layers.0.wq.A"), a.tensors[0].data);
  EXPECT_EQ(dump("layers.0.wq.beta1").shape, (std::vector<int64_t>{1, 1}));
  const Contents contents = write_small_state(path_);
  EXPECT_EQ(dump("m").bytes.size(), contents.at("m").size());
}

// A short last block: 5 x 13 = 65 weights are one block of 64 and one of 1.
TEST(Decode, ShortLastBlock) {
  QuantizedMatrix q;
  q.rows = 5, q.cols = 13, q.format.bits = 3, q.format.scale = ScaleKind::f32, q.format.shift = ShiftKind::none;
  std::vector<uint8_t> codes(static_cast<size_t>(q.code_bytes()), 0xff);
  std::vector<float> scales = {2, 3};
  q.codes = make_view(codes.data(), DType::U8, 1, q.code_bytes(), "codes");
  q.scales = make_view(scales.data(), DType::F32, 1, 2, "scales");
  ASSERT_EQ(q.code_bytes(), 25);  // 195 bits
  EXPECT_EQ(unpack_codes(q), std::vector<uint8_t>(65, 7));
  EXPECT_EQ(block_entropies(q), (std::vector<float>{0, 0}));
  EXPECT_EQ(dequantize_on_host(q).front(), 2);
  EXPECT_EQ(dequantize_on_host(q).back(), 3);
}

// ---- summaries -------------------------------------------------------------------------------------------------------

TEST(Inspect, Summaries) {
  ScratchDir dir;
  const std::string path = dir / "f";
  write_base(path, small_config(), DType::BF16);  // random bytes, NaN among them: that row is left out here
  const std::string hash = strf("%016lx", BaseReader(path).hash());
  std::string summary = inspect_summary(path);
  const size_t values = summary.find("  values   : ");
  ASSERT_NE(values, std::string::npos) << summary;
  summary.erase(values, summary.find('\n', values) + 1 - values);
  EXPECT_EQ(summary, path +
                         ": a base model (.bin)\n"
                         "  model    : LLaMA, 2 layers, dim 16, ffn 24, 2 heads (1 kv), vocabulary 50\n"
                         "  size     : 5,520 parameters, 3,840 in linears\n"
                         "  heads    : 2 of width 8, 1 key/value heads\n"
                         "  positions: 64, RoPE theta 12345.5\n"
                         "  norm eps : 1e-05\n"
                         "  tokens   : bos 3, eos 4\n"
                         "  head     : its own matrix\n"
                         "  weights  : bf16, norms f32\n"
                         "  tensors  : 21\n"
                         "  file     : 13,632 bytes (13.6 kB)\n"
                         "  hash     : " +
                         hash + "\n  contents : whole; 3 checksums agree\n");
  write_irq(path, small_info(3));
  const std::string irq = inspect_summary(path);
  EXPECT_NE(irq.find("  linears  : NF3, blocks of 64, scales 8-bit, shift tau (ICQ)\n"), std::string::npos) << irq;
  EXPECT_NE(irq.find("  ICQ      : lambda 0.25, n 50, entropy fp32\n"), std::string::npos) << irq;
  EXPECT_NE(irq.find("  source   : hash 0123456789abcdef\n"), std::string::npos) << irq;
  EXPECT_NE(inspect_tensors(path).find("layers.1.w_down.codes            u8                  (1, 144) "),
            std::string::npos)
      << inspect_tensors(path);
  const std::string entropy = inspect_entropy(path);
  EXPECT_NE(entropy.find("layers.0.wk                  1.1250     1.6250 "), std::string::npos) << entropy;
  write_adapter(path, small_adapter());
  const std::string adapter = inspect_summary(path);
  EXPECT_NE(adapter.find("  method   : ir-qlora\n  rank     : 4, alpha 16, dropout 0.05\n"
                         "  targets  : wq wk wv wo w_gate w_up w_down\n"),
            std::string::npos)
      << adapter;
  write_small_state(path);
  EXPECT_NE(inspect_summary(path).find(kStateText), std::string::npos);
  write_bytes(path, kConfig + "}");
  EXPECT_NE(inspect_summary(path).find("30 layers"), std::string::npos);
  write_bytes(path, "what is this");
  EXPECT_NE(error_of([&] { inspect_summary(path); }).find("a file of no kind known here"), std::string::npos);
}

}  // namespace
}  // namespace irq
