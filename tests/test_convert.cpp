// Hugging Face folders -> .bin: every bit where types agree, one rounding where not, and what is refused.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "src/io/convert.h"
#include "tests/cli_util.h"
#include "tests/hf_files.h"

namespace irq {
namespace {

std::string value_bytes(const std::string& bytes, DType from, DType to) {
  const int64_t count = static_cast<int64_t>(bytes.size()) / size_of(from);
  std::string out;
  for (int64_t i = 0; i < count; ++i) {
    float x = 0;
    uint16_t half = 0;
    if (from == DType::F32) std::memcpy(&x, bytes.data() + 4 * i, 4);
    else std::memcpy(&half, bytes.data() + 2 * i, 2);
    if (from == DType::F16) x = to_float(F16{half});
    if (from == DType::BF16) x = to_float(Bf16{half});
    half = to == DType::F16 ? to_f16(x).bits : to_bf16(x).bits;
    if (to == DType::F32) out.append(reinterpret_cast<const char*>(&x), 4);
    else out.append(reinterpret_cast<const char*>(&half), 2);
  }
  return out;
}

// The .bin holds exactly these tensors: bits where the type is the source's, otherwise each value rounded once.
void expect_holds(const std::string& bin, const ModelConfig& c, std::vector<RawTensor> tensors, DType source,
                  DType target) {
  BaseReader r(bin);
  EXPECT_EQ(r.config(), c);
  EXPECT_EQ(r.dtype(), target);
  for (const TensorSpec& spec : r.layout().tensors())
    EXPECT_EQ(bytes_of(r.tensor(spec.name)),
              spec.dtype == source ? named(tensors, foreign_name(spec.name)).bytes
                                   : value_bytes(named(tensors, foreign_name(spec.name)).bytes, source, spec.dtype))
        << spec.name;
}

class Convert : public testing::Test {
 protected:
  ScratchDir dir;
  const ModelConfig c = small_config();
  const std::string in = dir / "hf", out = dir / "m.bin";

  ConvertSummary run(std::optional<DType> dtype = {}) {
    model = open_import(in);
    return convert(*model, out, dtype);
  }
  // What converting these tensors says.
  std::string refused(const std::vector<RawTensor>& tensors, const std::string& more = "", size_t shards = 1,
                      std::optional<DType> dtype = {}) {
    std::filesystem::remove_all(in);
    write_folder(in, config_text(c, more), tensors, shards);
    return refusal(dtype);
  }
  std::string refusal(std::optional<DType> dtype = {}) {
    const std::string error = error_of([&] { run(dtype); });
    EXPECT_FALSE(std::filesystem::exists(out) || std::filesystem::exists(out + ".tmp"));
    return error;
  }
  std::string notes() const {
    std::string text;
    for (const std::string& n : model->notes()) text += n + "\n";
    return text;
  }
  std::unique_ptr<ImportedModel> model;
};

#define EXPECT_SAYS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

TEST_F(Convert, KeepsEveryBit) {
  for (const bool tied : {false, true})
    for (const DType type : {DType::F32, DType::F16, DType::BF16}) {
      const ModelConfig config = small_config(tied);
      const std::vector<RawTensor> tensors = random_model(config, type, tied + 2);
      write_folder(in, config_text(config), tensors);
      const ConvertSummary s = run();
      EXPECT_EQ(s.dtype, type);
      EXPECT_EQ(s.tensors, tied ? 20 : 21);
      EXPECT_EQ(s.file_bytes, static_cast<int64_t>(std::filesystem::file_size(out)));
      EXPECT_EQ(s.hash, BaseReader(out).hash());
      expect_holds(out, config, tensors, type, type);
      EXPECT_EQ(notes(), "");
    }
}

TEST_F(Convert, ShardsAndOddNamesGiveTheSameFile) {
  const std::vector<RawTensor> tensors = random_model(c, DType::BF16);
  write_folder(in, config_text(c), tensors);
  run();
  const std::string whole = read_bytes(out);
  for (const size_t shards : {2u, 3u, 7u}) {
    std::filesystem::remove_all(in);
    write_folder(in, config_text(c), tensors, shards);
    run();
    EXPECT_EQ(read_bytes(out), whole) << shards;
  }
  std::filesystem::remove(in + "/model.safetensors.index.json");  // numbered names are a set without it too
  run();
  EXPECT_EQ(read_bytes(out), whole);
  std::filesystem::remove_all(in);
  std::filesystem::create_directory(in);
  write_bytes(in + "/config.json", config_text(c));
  for (const size_t odd : {0u, 1u, 3u}) {  // data that no pointer to their type may point to
    write_bytes(in + "/my llama.safetensors", safetensors_file(tensors, odd));
    run();
    EXPECT_EQ(read_bytes(out), whole) << odd;
  }
  for (const char* name : {"/my llama.safetensors", "/config.json", "/"}) {
    model = open_import(in + name);
    convert(*model, out);
    EXPECT_EQ(read_bytes(out), whole) << name;
  }
}

// Grouped-query heads, a head_dim that is not dim / heads, any theta, eps and vocabulary.
TEST_F(Convert, OtherShapes) {
  ModelConfig config = small_config();
  config.heads = 6, config.kv_heads = 2, config.head_dim = 4, config.vocab = 77, config.rope_theta = 1e6;
  config.norm_eps = 3e-7, config.layers = 3;
  const std::vector<RawTensor> tensors = random_model(config, DType::F16);
  write_folder(in, config_text(config), tensors, 2);
  run();
  expect_holds(out, config, tensors, DType::F16, DType::F16);
}

TEST_F(Convert, RoundsOnce) {
  for (const DType from : {DType::F32, DType::F16, DType::BF16})
    for (const DType to : {DType::F32, DType::F16, DType::BF16}) {
      std::vector<RawTensor> tensors = random_model(c, from);
      for (RawTensor& t : tensors)  // of a size that every type holds
        for (size_t top = static_cast<size_t>(size_of(from)) - 1; top < t.bytes.size();
             top += static_cast<size_t>(size_of(from)))
          t.bytes[top] = static_cast<char>((t.bytes[top] & 0x83) | (from == DType::F16 ? 0x20 : 0x38));
      write_folder(in, config_text(c), tensors);
      EXPECT_EQ(run(to).dtype, to);
      expect_holds(out, c, tensors, from, to);
    }
}

TEST_F(Convert, MixedTypesBecomeF32) {
  std::vector<RawTensor> tensors = random_model(c, DType::BF16), wide = random_model(c, DType::F16, 5);
  const std::string name = foreign_name("layers.1.w_up");
  named(tensors, name) = named(wide, name);
  write_folder(in, config_text(c), tensors);
  EXPECT_EQ(run().dtype, DType::F32);
  EXPECT_SAYS(notes(), "the matrices' types mix (1 f16, 15 bf16)");
  BaseReader r(out);
  EXPECT_EQ(bytes_of(r.tensor("layers.1.w_up")), value_bytes(named(wide, name).bytes, DType::F16, DType::F32));
  EXPECT_EQ(bytes_of(r.tensor("embed")),
            value_bytes(named(tensors, foreign_name("embed")).bytes, DType::BF16, DType::F32));
  // Norms do not count: they are f32 in the file anyway.
  tensors = random_model(c, DType::BF16);
  named(tensors, foreign_name("norm")) = named(wide = random_model(c, DType::F32), foreign_name("norm"));
  write_folder(in, config_text(c), tensors);
  EXPECT_EQ(run().dtype, DType::BF16);
}

TEST_F(Convert, TiedHeadInTheFile) {
  const ModelConfig tied = small_config(true);
  std::vector<RawTensor> tensors = random_model(tied, DType::F16);
  RawTensor head = named(tensors, foreign_name("embed"));
  head.name = "lm_head.weight";
  tensors.push_back(head);
  tensors.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", "F32", {4}, std::string(16, '\1')});
  tensors.push_back({"model.layers.1.self_attn.rotary_emb.inv_freq", "F32", {4}, std::string(16, '\1')});
  write_folder(in, config_text(tied), tensors);
  run();
  EXPECT_TRUE(BaseReader(out).config().tied);
  EXPECT_SAYS(notes(), "lm_head.weight equals model.embed_tokens.weight");
  EXPECT_SAYS(notes(), "2 rotary_emb.inv_freq buffers are left out");
  named(tensors, "lm_head.weight").bytes[5] ^= 1;
  write_folder(in, config_text(tied), tensors);
  run();
  EXPECT_SAYS(notes(), "lm_head.weight differs from model.embed_tokens.weight");
  BaseReader r(out);
  EXPECT_FALSE(r.config().tied);
  EXPECT_EQ(bytes_of(r.tensor("head")), named(tensors, "lm_head.weight").bytes);
}

TEST_F(Convert, RefusesByName) {
  const std::vector<RawTensor> good = random_model(c, DType::F16);
  const std::string up = foreign_name("layers.1.w_up"), k = foreign_name("layers.0.wk");
  std::vector<RawTensor> t = good;
  std::erase_if(t, [&](const RawTensor& x) { return x.name == up; });
  EXPECT_SAYS(refused(t), "hf: tensor " + up + " is missing");
  t = good;
  std::erase_if(t, [&](const RawTensor& x) { return x.name == "lm_head.weight"; });
  EXPECT_SAYS(refused(t), "tensor lm_head.weight is missing");
  EXPECT_SAYS(refused(t), "tie_word_embeddings");
  t = good;
  std::swap(named(t, up).shape[0], named(t, up).shape[1]);
  EXPECT_SAYS(refused(t), "model.safetensors: tensor " + up +
                              " has the wrong shape\n  expected: [24, 16], by config.json\n"
                              "  found   : F16 [16, 24]");
  t = good;
  named(t, up).dtype = "I16";
  EXPECT_SAYS(refused(t), "tensor " + up + " is of a type that is not read here");
  t = good;
  t.push_back({"model.layers.0.self_attn.k_proj.bias", "F16", {8}, std::string(16, '\0')});
  EXPECT_SAYS(refused(t), "tensor model.layers.0.self_attn.k_proj.bias has no place in LLaMA");
  EXPECT_SAYS(refused(t), "LLaMA's linears have no bias");
  t = good;
  t.push_back({"model.layers.2.mlp.up_proj.weight", "F16", {24, 16}, std::string(768, '\0')});
  EXPECT_SAYS(refused(t), "tensor model.layers.2.mlp.up_proj.weight has no place in LLaMA");
  t = good;
  const uint16_t nan = 0x7e01, infinite = 0xfc00;
  std::memcpy(named(t, k).bytes.data() + 2 * (3 * 16 + 5), &nan, 2);
  EXPECT_SAYS(refused(t),
              "tensor " + k + ": a weight is not a finite number\n  found   : NaN or infinity in row 3, column 5");
  std::memcpy(named(t, k).bytes.data(), &infinite, 2);
  EXPECT_SAYS(refused(t), "row 0, column 0");
  EXPECT_SAYS(refused(good, R"(, "rope_scaling": {"rope_type": "llama3", "factor": 8})"), "stretched positions");
  EXPECT_SAYS(refused(good, R"(, "model_type": "qwen2")"), "model_type is qwen2");
  EXPECT_SAYS(refused(good, R"(, "quantization_config": {"quant_method": "gptq"})"), "quant_method is gptq");
}

TEST_F(Convert, RefusesValuesThatDoNotFit) {
  std::vector<RawTensor> tensors = random_model(c, DType::F32);
  const std::string k = foreign_name("layers.0.wk");
  for (RawTensor& t : tensors) std::fill(t.bytes.begin(), t.bytes.end(), '\x3c');
  const auto with = [&](float x, DType to) {
    std::memcpy(named(tensors, k).bytes.data() + 4 * (2 * 16 + 1), &x, 4);
    return refused(tensors, "", 1, to);
  };
  const std::string big = with(65520.0f, DType::F16);
  EXPECT_SAYS(big, "tensor " + k + ": a weight is too large for f16\n  found   : 65520 in row 2, column 1");
  EXPECT_SAYS(big, "try     : --dtype bf16 or --dtype f32");
  EXPECT_SAYS(with(-3.4e38f, DType::BF16), "too large for bf16");
  EXPECT_EQ(error_of([&] {
              const float fits = 65519.99f;
              std::memcpy(named(tensors, k).bytes.data() + 4 * (2 * 16 + 1), &fits, 4);
              write_folder(in, config_text(c), tensors);
              run(DType::F16);
            }),
            "");
}

TEST_F(Convert, RefusesFoldersThatAreNotWhole) {
  const std::vector<RawTensor> good = random_model(c, DType::F16);
  write_folder(in, config_text(c), good, 3);
  const std::string second = in + "/model-00002-of-00003.safetensors", index = in + "/model.safetensors.index.json";
  const std::string shard = read_bytes(second), map = read_bytes(index);
  std::filesystem::remove(second);
  EXPECT_SAYS(refusal(), "model-00002-of-00003.safetensors: this shard is missing");
  EXPECT_SAYS(refusal(), "1 of them missing");
  write_bytes(second, shard.substr(0, shard.size() - 1));
  EXPECT_SAYS(refusal(), "model-00002-of-00003.safetensors: the file is cut short");
  std::filesystem::copy_file(in + "/model-00001-of-00003.safetensors", second,
                             std::filesystem::copy_options::overwrite_existing);
  EXPECT_SAYS(refusal(),
              "is in two files\n  found   : model-00001-of-00003.safetensors and model-00002-of-00003.safetensors");
  write_bytes(second, shard);
  std::string moved = map;
  const size_t at = moved.find("model-00001", moved.find("lm_head.weight"));
  moved.replace(at, 11, "model-00003");
  write_bytes(index, moved);
  EXPECT_SAYS(refusal(), ": has no tensor ");
  for (const char* bad :
       {"{}", "[]", R"({"weight_map":{}})", R"({"weight_map":{"a":1}})", R"({"weight_map":{"a":"../x"}})", "{"}) {
    write_bytes(index, bad);
    EXPECT_SAYS(refusal(), "model.safetensors.index.json: ");
  }
  std::filesystem::remove(index);
  write_bytes(in + "/other.safetensors", shard);
  EXPECT_SAYS(refusal(), "has several safetensors files and no model.safetensors.index.json");
  std::filesystem::remove(in + "/other.safetensors");
  std::filesystem::remove(in + "/config.json");
  EXPECT_SAYS(refusal(), "config.json: no such file");
}

TEST_F(Convert, RefusesOtherFilesWithAdvice) {
  std::filesystem::create_directory(in);
  write_bytes(in + "/config.json", config_text(c));
  EXPECT_SAYS(refusal(), "hf: has no safetensors file");
  write_bytes(in + "/pytorch_model.bin", "PK\x03\x04");
  EXPECT_SAYS(refusal(), "save_pretrained");
  std::filesystem::remove(in + "/pytorch_model.bin");
  write_bytes(in + "/adapter_model.safetensors", "x");
  EXPECT_SAYS(refusal(), "a PEFT adapter, not a model");
  const auto of_file = [&](const std::string& bytes) {
    write_bytes(dir / "file", bytes);
    return error_of([&] { open_import(dir / "file"); });
  };
  EXPECT_SAYS(of_file("PK\x03\x04"), "found   : a PyTorch file");
  EXPECT_SAYS(of_file("hello"), "found   : a file of no kind known here");
  EXPECT_SAYS(of_file("IRQQ"), "found   : a quantized base model (.irq)");
  EXPECT_SAYS(error_of([&] { open_import(dir / "nothing"); }), "no such file");
}

// ---- the tokenizer's files -------------------------------------------------------------------------------------------

TEST_F(Convert, TokenizerTravels) {
  write_folder(in, config_text(c), random_model(c, DType::F16));
  write_bytes(in + "/tokenizer.json", "{\"a\": 1}");
  write_bytes(in + "/tokenizer_config.json", "{}");
  write_bytes(in + "/special_tokens_map.json", "{}");
  write_bytes(in + "/chat_template.jinja", "T");
  run();
  EXPECT_EQ(read_bytes(dir / "tokenizer.json"), "{\"a\": 1}");
  EXPECT_EQ(read_bytes(dir / "chat_template.jinja"), "T");
  EXPECT_EQ(read_bytes(dir / "tokenizer_config.json"), "{}");
  EXPECT_FALSE(std::filesystem::exists(dir / "special_tokens_map.json"));
  EXPECT_TRUE(run().notes.empty());  // they are there already
  // Another model's tokenizer in the folder of OUT stays, and this model's goes under its own name.
  write_bytes(dir / "tokenizer.json", "{\"other\": 1}");
  run();
  EXPECT_EQ(read_bytes(dir / "tokenizer.json"), "{\"other\": 1}");
  EXPECT_EQ(read_bytes(dir / "m.tokenizer.json"), "{\"a\": 1}");
  EXPECT_EQ(read_bytes(dir / "m.tokenizer_config.json"), "{}");
  EXPECT_EQ(read_bytes(dir / "m.chat_template.jinja"), "T");
  // The own names are found first: they must be right even where the folder's agree again.
  write_bytes(dir / "tokenizer.json", "{\"a\": 2}");
  write_bytes(in + "/tokenizer.json", "{\"a\": 2}");
  run();
  EXPECT_EQ(read_bytes(dir / "m.tokenizer.json"), "{\"a\": 2}");
  write_bytes(in + "/tokenizer.json", "version https://git-lfs.github.com/spec/v1\n");
  EXPECT_SAYS(error_of([&] { run(); }), "tokenizer.json: not a tokenizer's file");
}

// A second file of another kind would change which tokenizer the other model of the folder finds.
TEST_F(Convert, TokenizerOfAnotherKindGetsItsOwnName) {
  write_bytes(dir / "tokenizer.json", "{}");
  const auto lines = write_side_files({{"tokenizer.model", "sp"}}, out);
  EXPECT_EQ(read_bytes(dir / "m.tokenizer.model"), "sp");
  EXPECT_FALSE(std::filesystem::exists(dir / "tokenizer.model"));
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_EQ(lines[0], "wrote " + (dir / "m.tokenizer.model"));
}

TEST_F(Convert, NotesOtherEndsOfText) {
  write_folder(in, config_text(c), random_model(c, DType::F16));
  write_bytes(in + "/generation_config.json", R"({"eos_token_id": [4, 7]})");
  run();
  EXPECT_SAYS(notes(), "eos_token_id [4,7]; the model's file keeps config.json's first, 4");
  write_bytes(in + "/generation_config.json", R"({"eos_token_id": 4})");
  run();
  EXPECT_EQ(notes(), "");
}

// ---- llama2.c's version 0 has no magic ---------------------------------------------------------------------------------

TEST(SniffLlama2c, BySizeAlone) {
  ScratchDir dir;
  // dim 640: the first two bytes are those of a pickle.
  const int32_t header[7] = {640, 8, 1, 10, 5, -3, 16};
  const int64_t kv = 320,
                values = 2 * 640 + 2 * 640 * 640 + 2 * 640 * kv + 3 * 640 * 8 + 640 + 2 * 16 * 32 + 2 * 3 * 640;
  std::string bytes(28 + 4 * static_cast<size_t>(values), '\0');
  std::memcpy(bytes.data(), header, 28);
  write_bytes(dir / "m", bytes);
  EXPECT_EQ(sniff(dir / "m"), FileKind::llama2c);
  write_bytes(dir / "m", bytes + "x");
  EXPECT_EQ(sniff(dir / "m"), FileKind::pytorch);
  bytes[20] = 3, bytes[21] = bytes[22] = bytes[23] = 0;  // tied: one head less
  write_bytes(dir / "m", bytes.substr(0, bytes.size() - 4 * 3 * 640));
  EXPECT_EQ(sniff(dir / "m"), FileKind::llama2c);
}

// ---- the command -----------------------------------------------------------------------------------------------------

TEST_F(Convert, Command) {
  const std::vector<RawTensor> tensors = random_model(c, DType::BF16);
  write_folder(in, config_text(c), tensors, 2);
  CommandResult r = run_command("irq_convert", {in, out});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_SAYS(r.out,
              "m.bin: matrices in bf16, norms in f32\n  model   : LLaMA, 2 layers, dim 16, ffn 24, 2 heads (1 kv)");
  EXPECT_SAYS(r.err, "warning: no tokenizer.model or tokenizer.json found");
  expect_holds(out, c, tensors, DType::BF16, DType::BF16);
  const std::string before = read_bytes(out);
  r = run_command("irq_convert", {in, out, "--dtype", "f32", "--quiet"});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_EQ(r.err, "");
  EXPECT_SAYS(r.out, "matrices in f32 (from bf16)");
  expect_holds(out, c, tensors, DType::BF16, DType::F32);
  EXPECT_EQ(run_command("irq_convert", {in, out, "--dtype", "f8"}).status, 2);
  EXPECT_SAYS(run_command("irq_convert", {in, dir / "m.irq"}).err, "irq_quantize");
  EXPECT_SAYS(run_command("irq_convert", {in, dir.path()}).err, "is a folder");
  r = run_command("irq_convert", {out, out});
  EXPECT_EQ(r.status, 2);
  EXPECT_SAYS(r.err, "would destroy an input of this command");
  r = run_command("irq_convert", {in, in + "/config.json"});  // what is there already and is no base model stays
  EXPECT_SAYS(r.err, "config.json: is there already, and is not a base model (.bin)\n  found   : a JSON file\n");
  write_bytes(in + "/model-00001-of-00002.safetensors", "short");
  r = run_command("irq_convert", {in, dir / "new.bin"});
  EXPECT_EQ(r.status, 1);
  EXPECT_SAYS(r.err, "irq_convert: ");
  EXPECT_FALSE(std::filesystem::exists(dir / "new.bin"));
}

}  // namespace
}  // namespace irq
