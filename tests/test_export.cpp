// Exported weights: what is in the files, and that they are the same model.
#include "src/io/adapter_fold.h"
#include "src/io/config_json.h"
#include "tests/export_fixture.h"
#include "tests/io_files.h"

namespace irq {
namespace {

class Export : public ExportTest {};

// fidelity 4.6, h = 6, r = 4, o = 10.
TEST_F(Export, FoldingGivesTheReferencesNumbers) {
  AdapterFile a;
  a.method = "ir-qlora", a.rank = 4, a.alpha = 1, a.targets = 1;
  NamedArray A{"layers.0.wq.A", 4, 6, {}}, B{"layers.0.wq.B", 10, 4, {}};
  for (int j = 0; j < 4; ++j)
    for (int i = 0; i < 6; ++i) A.data.push_back(static_cast<float>((3 * j + 5 * i) % 7 - 3) / 8);
  for (int j = 0; j < 10; ++j)
    for (int k = 0; k < 4; ++k) B.data.push_back(static_cast<float>((2 * j + 3 * k) % 5 - 2) / 4);
  a.tensors = {A, B, {"layers.0.wq.beta1", 1, 1, {0.25f}}, {"layers.0.wq.beta2", 1, 1, {-0.5f}}};
  write_adapter(dir_ / "a.lora", a);
  AdapterReader reader(dir_ / "a.lora");
  const FoldedAdapter f = fold_adapter(reader, "layers.0.wq", {"wq", 10, 6});
  const double a0[] = {-0.29166667, 0.33333333, 0.08333333, -0.25, 0.375, 0.125};
  for (size_t i = 0; i < 6; ++i) EXPECT_NEAR(f.a[i], a0[i], 2e-8);  // printed to eight digits, half an ulp of f32
  const float b0[] = {-0.75, 0, -0.25, 0.5}, b9[] = {0.25, -0.25, 0.25, -0.25};
  for (size_t k = 0; k < 4; ++k) {
    EXPECT_EQ(f.b[k], b0[k]);
    EXPECT_EQ(f.b[36 + k], b9[k]);
  }
  EXPECT_CONTAINS(error_of([&] { fold_adapter(reader, "layers.0.wk", {"wk", 10, 6}); }), "layers.0.wk.A (4, 6)");
  EXPECT_CONTAINS(error_of([&] { fold_adapter(reader, "layers.0.wq", {"wq", 10, 8}); }), "found   : (4, 6)");
}

// A + beta1 P and B + beta2 E with P and E dense, in F64, rounded once (fidelity 4.3).
TEST_F(Export, FoldingIsExact) {
  const ModelConfig c = eval_config();
  for (const bool tile : {false, true}) {
    AdapterReader reader(shared(tile ? "tile.lora" : "a.lora"));
    const AdapterFile a = read_adapter(shared("a.lora"));
    for (const LinearShape& s : layer_linears(c)) {
      const std::string name = std::string("layers.1.") + s.name;
      const FoldedAdapter f = fold_adapter(reader, name, s);
      const auto expected = [&](const NamedArray& w, double beta) {
        const int64_t g = std::gcd(w.rows, w.cols);
        std::vector<float> out;
        for (int64_t j = 0; j < w.rows; ++j)
          for (int64_t i = 0; i < w.cols; ++i) {
            const bool in = i / (w.cols / g) == (tile ? j % g : j / (w.rows / g));
            const double p = in ? static_cast<double>(g) / static_cast<double>(w.cols) : 0;
            out.push_back(static_cast<float>(w.data[static_cast<size_t>(j * w.cols + i)] + beta * p));
          }
        return out;
      };
      const auto beta = [&](const char* which) { return static_cast<double>(a.find(name + which)->data[0]); };
      EXPECT_EQ(f.a, expected(*a.find(name + ".A"), beta(".beta1"))) << name;
      EXPECT_EQ(f.b, expected(*a.find(name + ".B"), beta(".beta2"))) << name;
    }
  }
}

TEST_F(Export, PeftFolder) {
  ExportSource source(shared("m.irq"), shared("a.lora"), false);
  const ExportReport report = export_peft(source, dir_ / "peft", {.base_name = "base"});
  EXPECT_EQ(names_in(dir_ / "peft"), (std::vector<std::string>{"adapter_config.json", "adapter_model.safetensors"}));
  const nlohmann::json config = json_of(dir_ / "peft/adapter_config.json");
  EXPECT_EQ(config["peft_type"], "LORA");
  EXPECT_EQ(config["r"], 8);
  EXPECT_EQ(config["lora_alpha"], 16);
  EXPECT_EQ(config["base_model_name_or_path"], "base");
  EXPECT_EQ(config["target_modules"],
            nlohmann::json({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}));
  const SafetensorsReader r(dir_ / "peft/adapter_model.safetensors");
  EXPECT_EQ(r.entries().size(), 2u * 7 * 2);
  AdapterReader adapter(shared("a.lora"));
  for (const LinearShape& s : layer_linears(eval_config())) {
    const std::string name = std::string("layers.1.") + s.name, key = "base_model.model." + hugging_face_module(name);
    const FoldedAdapter f = fold_adapter(adapter, name, s);
    EXPECT_EQ(floats(tensor_bytes(r, key + ".lora_A.weight")), f.a);
    EXPECT_EQ(floats(tensor_bytes(r, key + ".lora_B.weight")), f.b);
    EXPECT_EQ(r.find(key + ".lora_B.weight")->shape, (std::vector<int64_t>{s.out, 8}));
  }
  const nlohmann::json betas = nlohmann::json::parse(r.metadata().at("irq.betas"));
  EXPECT_EQ(betas.size(), 28u);
  EXPECT_EQ(betas["layers.1.w_up.beta2"].get<float>(),
            read_adapter(shared("a.lora")).find("layers.1.w_up.beta2")->data[0]);
  EXPECT_EQ(r.metadata().at("irq.trained_on"), strf("%016lx", irq_hash_));
  EXPECT_EQ(r.metadata().at("irq.method"), "ir-qlora");
  EXPECT_EQ(r.metadata().at("irq.icq"), "lambda 0.1, n 100, entropy exact");
  EXPECT_NE(r.find("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"), nullptr);
  EXPECT_NE(r.find("base_model.model.model.layers.0.mlp.down_proj.lora_B.weight"), nullptr);
}

TEST_F(Export, PeftFolderOfSomeTargets) {
  const AdapterFile a = random_adapter(eval_config(), parse_targets("q_proj,down_proj"), false, true, hash_);
  write_adapter(dir_ / "a.lora", a);
  ExportSource source(shared("m.bin"), dir_ / "a.lora", false);
  export_peft(source, dir_ / "peft", {});
  const nlohmann::json config = json_of(dir_ / "peft/adapter_config.json");
  EXPECT_EQ(config["target_modules"], nlohmann::json({"q_proj", "down_proj"}));
  EXPECT_TRUE(config["base_model_name_or_path"].is_null());
  const SafetensorsReader r(dir_ / "peft/adapter_model.safetensors");
  EXPECT_EQ(r.entries().size(), 8u);
  // No beta1: A is as it was.
  EXPECT_EQ(floats(tensor_bytes(r, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight")),
            a.find("layers.0.wq.A")->data);
}

// Random bit patterns, NaNs among them: of its own type a plain base passes bit by bit, norms stay F32.
TEST_F(Export, APlainBaseKeepsItsBits) {
  for (const bool tied : {false, true})
    for (const DType dtype : {DType::F32, DType::F16, DType::BF16}) {
      const ModelConfig c = small_config(tied);
      const Contents contents = write_base(dir_ / "m.bin", c, dtype);
      ExportSource source(dir_ / "m.bin", "", false);
      export_hugging_face(source, dir_ / "hf", {.overwrite = true});
      const SafetensorsReader r(dir_ / "hf/model.safetensors");
      EXPECT_EQ(r.entries().size(), contents.size());
      for (const auto& [name, bytes] : contents)
        EXPECT_EQ(tensor_bytes(r, hugging_face_module(name) + ".weight"), bytes) << name;
      for (const SafetensorsEntry& e : r.entries())
        EXPECT_EQ(e.begin % (e.dtype == "F32" ? 4 : 2), 0) << e.name << " is not aligned";
      EXPECT_EQ(model_config_from_json(dir_ / "hf/config.json"), c);
      EXPECT_EQ(json_of(dir_ / "hf/config.json")["torch_dtype"], dtype == DType::F32   ? "float32"
                                                                 : dtype == DType::F16 ? "float16"
                                                                                       : "bfloat16");
      EXPECT_EQ(json_of(dir_ / "hf/generation_config.json")["eos_token_id"], 4);
    }
}

TEST_F(Export, NormsThatFitAreStoredInTheMatricesType) {
  ModelConfig c = small_config();
  Weights weights = random_weights(c, 3);
  for (auto& [name, w] : weights)
    if (name.ends_with("norm"))
      for (float& x : w) x = to_float(to_bf16(x));
  write_weights(dir_ / "m.bin", c, weights);
  ExportSource source(dir_ / "m.bin", "", false);
  export_hugging_face(source, dir_ / "hf", {.dtype = DType::BF16});
  const SafetensorsReader r(dir_ / "hf/model.safetensors");
  for (const SafetensorsEntry& e : r.entries()) EXPECT_EQ(e.dtype, "BF16") << e.name;
  EXPECT_EQ(r.find("model.norm.weight")->shape, (std::vector<int64_t>{c.dim}));
  const std::string got = tensor_bytes(r, "model.layers.1.mlp.up_proj.weight");
  for (size_t i = 0; i < got.size() / 2; ++i) {
    uint16_t bits = 0;
    std::memcpy(&bits, got.data() + 2 * i, 2);
    ASSERT_EQ(bits, to_bf16(weights["layers.1.w_up"][i]).bits);
  }
}

TEST_F(Export, AQuantizedBaseIsDequantizedAsTheEngineDoesIt) {
  ExportSource source(shared("m.irq"), "", false);
  export_hugging_face(source, dir_ / "f32", {.dtype = DType::F32});
  export_hugging_face(source, dir_ / "own", {});
  const SafetensorsReader wide(dir_ / "f32/model.safetensors"), own(dir_ / "own/model.safetensors");
  IrqReader irq(shared("m.irq"));
  const std::vector<float> w = dequantize_on_host(irq.matrix("layers.1.wk"));
  const std::string key = "model.layers.1.self_attn.k_proj.weight";
  EXPECT_EQ(floats(tensor_bytes(wide, key)), w);
  EXPECT_EQ(own.find(key)->dtype, "BF16");
  const std::string bytes = tensor_bytes(own, key);
  for (size_t i = 0; i < w.size(); ++i) {
    uint16_t bits = 0;
    std::memcpy(&bits, bytes.data() + 2 * i, 2);
    ASSERT_EQ(bits, to_bf16(w[i]).bits);
  }
  to_bin(dir_ / "f32", dir_ / "m.bin", eval_config());
  EXPECT_EQ(logits(dir_ / "m.bin"), logits(shared("m.irq")));  // the same weights, the same sums
}

TEST_F(Export, AMergedModelIsTheBaseWithItsAdapter) {
  for (const char* adapter : {"a.lora", "tile.lora"}) {
    ExportSource source(shared("m.irq"), shared(adapter), true);
    const ExportReport report = export_hugging_face(source, dir_ / "f32", {.dtype = DType::F32, .overwrite = true});
    to_bin(dir_ / "f32", dir_ / "m.bin", eval_config());
    const std::vector<float> want = logits(shared("m.irq"), shared(adapter));
    EXPECT_GT(relative_l2(logits(shared("m.irq")), want), 0.1);
    // W + s B~ A~ is rounded to F32 here, the engine adds two sums of F32 products: a few 1e-7 through two layers.
    EXPECT_LT(relative_l2(logits(dir_ / "m.bin"), want), 1e-5);
    EXPECT_CONTAINS(report.notes.back(), "merged into 14 matrices: relative change ");
  }
  ExportSource source(shared("m.irq"), shared("tile.lora"), true);
  export_hugging_face(source, dir_ / "bf16", {});
  const SafetensorsReader wide(dir_ / "f32/model.safetensors"), narrow(dir_ / "bf16/model.safetensors");
  for (const SafetensorsEntry& e : wide.entries()) {  // rounded once, after merging
    const std::vector<float> w = floats(tensor_bytes(wide, e.name));
    if (narrow.find(e.name)->dtype == "F32") continue;
    const std::string bytes = tensor_bytes(narrow, e.name);
    for (size_t i = 0; i < w.size(); ++i) {
      uint16_t bits = 0;
      std::memcpy(&bits, bytes.data() + 2 * i, 2);
      ASSERT_EQ(bits, to_bf16(w[i]).bits) << e.name;
    }
  }
  EXPECT_CONTAINS(narrow.metadata().at("irq.weights"), "W + (alpha / r) B~ A~ in F32, rounded once to bf16");
}

TEST_F(Export, ShardsHoldEveryTensorOnce) {
  ExportSource source(shared("m.irq"), "", false);
  export_hugging_face(source, dir_ / "one", {.dtype = DType::F16});
  const int64_t limit = 40'000;  // the embedding has 259 * 64 * 2 = 33,152 bytes, all of it about 200 thousand
  const ExportReport report = export_hugging_face(source, dir_ / "many", {.dtype = DType::F16, .shard_bytes = limit});
  const SafetensorsReader one(dir_ / "one/model.safetensors");
  const nlohmann::json index = json_of(dir_ / "many/model.safetensors.index.json");
  EXPECT_EQ(index["weight_map"].size(), one.entries().size());
  std::map<std::string, std::unique_ptr<SafetensorsReader>> shards;
  int64_t total = 0;
  for (const auto& [name, file] : index["weight_map"].items()) {
    auto& shard = shards[file];
    if (!shard) shard = std::make_unique<SafetensorsReader>(dir_ / "many/" + file.get<std::string>());
    EXPECT_EQ(tensor_bytes(*shard, name), tensor_bytes(one, name));
  }
  size_t held = 0;
  for (const auto& [file, shard] : shards) {
    int64_t bytes = 0;
    for (const SafetensorsEntry& e : shard->entries()) bytes += e.bytes;
    EXPECT_LE(bytes, limit);
    held += shard->entries().size(), total += bytes;
  }
  EXPECT_EQ(held, one.entries().size());
  EXPECT_EQ(index["metadata"]["total_size"], total);
  EXPECT_GE(shards.size(), 4u);
  EXPECT_TRUE(shards.contains(strf("model-00001-of-%05zu.safetensors", shards.size())));
  EXPECT_EQ(report.files.size(), shards.size() + 3);  // index, config, generation_config
  // A tensor larger than the limit has a shard of its own.
  export_hugging_face(source, dir_ / "many", {.dtype = DType::F16, .overwrite = true, .shard_bytes = 1000});
  EXPECT_EQ(json_of(dir_ / "many/model.safetensors.index.json")["weight_map"].size(), one.entries().size());
}

}  // namespace
}  // namespace irq
