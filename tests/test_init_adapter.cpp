// irq_train --init-adapter: PEFT folders read, refused, and trained on.
#include "src/io/adapter_fold.h"
#include "src/io/initial_adapter.h"
#include "tests/export_fixture.h"
#include "tests/io_files.h"
#include "tests/train_fixture.h"

namespace irq {
namespace {

constexpr const char* kPrefix = "base_model.model.model.";

// A PEFT folder written part by part.
class InitAdapter : public ExportTest {
 protected:
  struct Part {
    std::string key, dtype = "F32";
    std::vector<int64_t> shape;
    std::vector<float> values;
  };

  void SetUp() override { std::filesystem::create_directories(folder_); }
  static std::string bytes_of_part(const Part& p) {
    std::string bytes;
    for (const float x : p.values) {
      const uint16_t half = p.dtype == "F16" ? to_f16(x).bits : to_bf16(x).bits;
      if (p.dtype == "F32") bytes.append(reinterpret_cast<const char*>(&x), 4);
      else bytes.append(reinterpret_cast<const char*>(&half), 2);
    }
    return bytes;
  }
  void write_weights_file(const std::vector<Part>& parts) const {
    std::vector<SafetensorsEntry> entries;
    for (const Part& p : parts) entries.push_back({p.key, p.dtype, p.shape});
    SafetensorsWriter w(folder_ + "/adapter_model.safetensors", entries, {{"format", "pt"}});
    for (const Part& p : parts) {
      const std::string bytes = bytes_of_part(p);
      w.write(p.key, bytes.data(), static_cast<int64_t>(bytes.size()));
    }
    w.finish();
  }
  void write_config(const nlohmann::json& changes = {}) const {
    nlohmann::json j = {
        {"peft_type", "LORA"}, {"r", 8}, {"lora_alpha", 16}, {"target_modules", {"q_proj", "down_proj"}}};
    if (changes.is_object()) j.update(changes);
    write_bytes(folder_ + "/adapter_config.json", j.dump());
  }
  // q_proj and down_proj of both layers with the given suffixes and prefix.
  static std::vector<Part> lora_parts(const std::string& dtype = "F32", const std::string& prefix = kPrefix) {
    std::vector<Part> parts;
    const ModelConfig c = eval_config();
    float x = 0.5f;
    for (int64_t l = 0; l < c.layers; ++l)
      for (const auto& [module, out, in] :
           {std::tuple{"self_attn.q_proj", c.q_width(), c.dim}, std::tuple{"mlp.down_proj", c.dim, c.ffn}}) {
        const std::string key = prefix + strf("layers.%ld.%s.", l, module);
        Part a{key + "lora_A.weight", dtype, {8, in}, {}}, b{key + "lora_B.weight", dtype, {out, 8}, {}};
        for (int64_t i = 0; i < 8 * in; ++i) a.values.push_back(x = x * -0.99f + 0.001f);
        for (int64_t i = 0; i < 8 * out; ++i) b.values.push_back(x = x * 0.97f - 0.01f);
        parts.push_back(a), parts.push_back(b);
      }
    return parts;
  }
  InitialAdapter read() const { return read_initial_adapter(folder_, eval_config()); }
  std::string refusal() const {
    return error_of([&] { read(); });
  }

  const std::string folder_ = dir_ / "peft";
};

TEST_F(InitAdapter, AnExportComesBackFolded) {
  ExportSource source(shared("m.irq"), shared("tile.lora"), false);
  export_peft(source, dir_ / "own", {});
  const InitialAdapter i = read_initial_adapter(dir_ / "own", eval_config());
  EXPECT_EQ(i.adapter.rank, 8);
  EXPECT_EQ(i.adapter.alpha, 16);
  EXPECT_EQ(i.adapter.targets, kAllTargets);
  EXPECT_TRUE(i.knows_base);
  EXPECT_EQ(i.adapter.base_hash, irq_hash_);
  EXPECT_FALSE(i.uses_beta1 || i.uses_beta2);
  EXPECT_EQ(i.adapter.tensors.size(), 28u);
  AdapterReader reader(shared("tile.lora"));
  for (const LinearShape& s : layer_linears(eval_config())) {
    const std::string name = std::string("layers.0.") + s.name;
    const FoldedAdapter f = fold_adapter(reader, name, s);
    EXPECT_EQ(i.adapter.find(name + ".A")->data, f.a);
    EXPECT_EQ(i.adapter.find(name + ".B")->data, f.b);
  }
  // The same adapter as a .lora of no betas gives the same logits.
  AdapterFile plain = i.adapter;
  plain.method = "qlora";
  write_adapter(dir_ / "plain.lora", plain);
  // A~ and B~ are what the engine folds by itself, F64 rounded once against F32 arithmetic: 1e-7 per weight.
  EXPECT_LT(relative_l2(logits(shared("m.irq"), dir_ / "plain.lora"), logits(shared("m.irq"), shared("tile.lora"))),
            1e-5);
}

TEST_F(InitAdapter, TypesAndReleasedKeys) {
  for (const char* dtype : {"F32", "F16", "BF16"}) {
    std::vector<Part> parts = lora_parts(dtype);
    parts.insert(parts.begin(),
                 {"base_model.model.model.layers.1.self_attn.q_proj.lora_default_A_scale", "F32", {1}, {0.25f}});
    parts.push_back({"base_model.model.model.layers.0.mlp.down_proj.lora_default_B_scale", dtype, {1}, {-0.5f}});
    const std::vector<Part> once = parts;
    for (Part p : once) {  // the released code saves every key a second time
      p.key = "model." + p.key;
      parts.push_back(p);
    }
    write_weights_file(parts), write_config();
    const InitialAdapter i = read();
    EXPECT_EQ(i.adapter.targets, parse_targets("wq,w_down"));
    EXPECT_EQ(i.adapter.tensors.size(), 16u);  // every linear has both betas where one has
    EXPECT_TRUE(i.uses_beta1 && i.uses_beta2 && !i.knows_base);
    EXPECT_EQ(i.adapter.find("layers.1.wq.beta1")->data, std::vector<float>{0.25f});
    EXPECT_EQ(i.adapter.find("layers.0.wq.beta1")->data, std::vector<float>{0.0f});
    EXPECT_EQ(i.adapter.find("layers.0.w_down.beta2")->data, std::vector<float>{-0.5f});
    const NamedArray* b = i.adapter.find("layers.1.w_down.B");
    const std::vector<float>& given = once[once.size() - 2].values;
    ASSERT_EQ(b->data.size(), given.size());
    for (size_t k = 0; k < given.size(); ++k) {
      const float want = dtype[0] == 'B'   ? to_float(to_bf16(given[k]))
                         : dtype[1] == '1' ? to_float(to_f16(given[k]))
                                           : given[k];
      ASSERT_EQ(b->data[k], want);
    }
    parts.back().values[0] = 1;  // the copies disagree
    write_weights_file(parts);
    EXPECT_CONTAINS(refusal(), "two keys for one weight that differ");
  }
}

TEST_F(InitAdapter, OtherRanksArePaddedWithZeros) {
  std::vector<Part> parts = lora_parts();
  for (Part& p : parts) {
    const bool is_a = p.shape[0] == 8;
    p.shape[is_a ? 0 : 1] = 3;
    p.values.resize(static_cast<size_t>(p.shape[0] * p.shape[1]));
  }
  write_weights_file(parts), write_config({{"r", 3}, {"lora_alpha", 12}});
  const AdapterFile a = read().adapter;
  EXPECT_EQ(a.rank, 8);
  EXPECT_EQ(a.alpha, 32);  // 12 / 3 = 32 / 8
  const NamedArray *wide_a = a.find("layers.0.wq.A"), *wide_b = a.find("layers.0.wq.B");
  ASSERT_EQ(wide_a->rows, 8);
  ASSERT_EQ(wide_b->cols, 8);
  for (int64_t i = 0; i < 8 * wide_a->cols; ++i)
    ASSERT_EQ(wide_a->data[i], i < 3 * wide_a->cols ? parts[0].values[i] : 0.0f) << i;
  for (int64_t i = 0; i < wide_b->rows * 8; ++i)
    ASSERT_EQ(wide_b->data[i], i % 8 < 3 ? parts[1].values[i / 8 * 3 + i % 8] : 0.0f) << i;
  parts.push_back({"base_model.model.model.layers.0.mlp.down_proj.lora_default_B_scale", "F32", {1}, {-0.5f}});
  write_weights_file(parts);
  EXPECT_CONTAINS(refusal(), "an adapter with betas has a rank that does not fit");
}

TEST_F(InitAdapter, WhatThisEngineCannotTrainIsRefused) {
  write_weights_file(lora_parts());
  const std::vector<std::pair<nlohmann::json, std::string>> cases = {
      {{{"use_rslora", true}}, "use_rslora divides alpha"},
      {{{"use_dora", true}}, "(DoRA)"},
      {{{"fan_in_fan_out", true}}, "fan_in_fan_out"},
      {{{"lora_bias", true}}, "lora_bias"},
      {{{"bias", "lora_only"}}, "bias is \"lora_only\""},
      {{{"modules_to_save", {"lm_head"}}}, "modules_to_save"},
      {{{"rank_pattern", {{"q_proj", 4}}}}, "rank_pattern"},
      {{{"alpha_pattern", {{"q_proj", 4}}}}, "alpha_pattern"},
      {{{"layers_to_transform", {0}}}, "layers_to_transform"},
      {{{"init_lora_weights", "pissa_niter_4"}}, "weights were changed"},
      {{{"peft_type", "LOHA"}}, "its peft_type is LOHA"},
      {{{"target_modules", {"q_proj", "lm_head"}}}, "it adapts lm_head"},
      {{{"target_modules", {"q_proj", "v_proj"}}}, "its two files do not belong together"},
      {{{"r", 8.5}}, "not a whole number"},
      {{{"r", "8"}}, "r to be a number"},
      {{{"r", 1e30}}, "r to be a number"},
      {{{"lora_alpha", nullptr}}, "lora_alpha to be a number"},
      {{{"r", 16}}, "(16, 64)"}};
  for (const auto& [changes, part] : cases) {
    write_config(changes);
    EXPECT_CONTAINS(refusal(), part);
  }
  write_bytes(folder_ + "/adapter_config.json", "{\"r\": ");
  EXPECT_CONTAINS(refusal(), "is not an adapter's configuration");
  const std::string deep = std::string(1000000, '[') + std::string(1000000, ']');
  write_bytes(folder_ + "/adapter_config.json", "{\"r\": 8, \"rank_pattern\": " + deep + "}");
  EXPECT_CONTAINS(refusal(), "is nested too deeply");
  // Off, empty or unknown keys do no harm; a regular expression is left to the keys of the file.
  write_config({{"use_dora", false},
                {"modules_to_save", nullptr},
                {"rank_pattern", nlohmann::json::object()},
                {"init_lora_weights", "gaussian"},
                {"new_key", 1},
                {"target_modules", ".*(q|down)_proj"}});
  EXPECT_EQ(read().adapter.targets, parse_targets("wq,w_down"));
}

TEST_F(InitAdapter, FilesThatDoNotFit) {
  EXPECT_CONTAINS(refusal(), "has no adapter_model.safetensors");
  write_bytes(folder_ + "/adapter_model.bin", "PK");
  EXPECT_CONTAINS(refusal(), "a Python pickle");
  write_config();
  const auto with = [&](const std::function<void(std::vector<Part>&)>& change) {
    std::vector<Part> parts = lora_parts();
    change(parts);
    write_weights_file(parts);
    return refusal();
  };
  EXPECT_CONTAINS(with([](auto& p) { p.erase(p.begin() + 5); }),
                  "expected: base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight");
  EXPECT_CONTAINS(with([](auto& p) { p[0].shape = {64, 8}; }), "expected: (8, 64)");
  EXPECT_CONTAINS(with([](auto& p) { p[0].shape = {512}; }), "does not fit the model");
  EXPECT_CONTAINS(with([](auto& p) { p[0].values[3] = std::nanf(""); }), "is not finite");
  EXPECT_CONTAINS(with([](auto& p) { p[0].key = "base_model.model.lm_head.lora_A.weight"; }), "holds what is no LoRA");
  EXPECT_CONTAINS(with([](auto& p) { p[0].key = std::string(kPrefix) + "layers.2.self_attn.q_proj.lora_A.weight"; }),
                  "in layers 0 to 1");
  EXPECT_CONTAINS(with([](auto& p) { p[0].key = std::string(kPrefix) + "layers.0.self_attn.q_proj.lora_magnitude"; }),
                  "holds what is no LoRA");
  EXPECT_CONTAINS(with([](auto& p) { p.clear(); }), "holds no adapter");
  EXPECT_CONTAINS(error_of([&] { read_initial_adapter(folder_ + "/adapter_model.safetensors", eval_config()); }),
                  "name its folder");
}

// ---- training --------------------------------------------------------------------------------------------------------
class InitTrain : public Train {
 protected:
  static Args without_rank(const Args& more) {
    Args a = command(more);
    const auto at = std::find(a.begin(), a.end(), "--rank");
    if (at != a.end()) a.erase(at, at + 2);
    return a;
  }
  static CommandResult start(const Args& more) { return run_command("irq_train", without_rank(more)); }
  static void expect_part(const CommandResult& r, const std::string& part, int status) {
    EXPECT_EQ(r.status, status) << r.err;
    EXPECT_NE(complaint(r).find(part), std::string::npos) << r.err;
  }
  static double first_loss(const std::string& out) { return held_out_losses(out + "/log.jsonl").at(0).second; }
  static double last_loss(const std::string& out) {
    for (const nlohmann::json& line : read_log(out + "/log.jsonl"))
      if (line.contains("finished")) return line["held_out_loss"];
    return -1;
  }
};

TEST_F(InitTrain, GoesOnWhereTheAdapterEnded) {
  const std::string a = dir_ / "a", lora = a + "/adapter.lora", peft = dir_ / "peft";
  trained({"--steps", "3", "--out", a, "--alpha", "24"});
  std::string irq;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::filesystem::path(shared("model.bin")).parent_path()))
    if (entry.path().extension() == ".irq") irq = entry.path();
  ASSERT_EQ(run_command("irq_export", {irq, "--adapter", lora, "--peft", peft}).status, 0);

  const std::string b = dir_ / "b", c = dir_ / "c";
  CommandResult r = start({"--steps", "2", "--out", b, "--init-adapter", lora});
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.err.find("starts from " + lora + ": an adapter of ir-qlora, rank 8, alpha 24, on "), std::string::npos)
      << r.err;
  EXPECT_EQ(first_loss(b), last_loss(a));  // the same bits
  ASSERT_EQ(start({"--steps", "2", "--out", c, "--init-adapter", peft}).status, 0);
  EXPECT_NEAR(first_loss(c), last_loss(a), 1e-5);  // folded in F64 and rounded, against F32: 1e-7 per weight
  EXPECT_NE(last_loss(b), first_loss(b));
  // The log's command does the same run again.
  const std::string again = read_log(b + "/log.jsonl").at(0)["command"];
  EXPECT_NE(again.find("--init-adapter " + lora + " --rank 8 --alpha 24.0"), std::string::npos) << again;

  // Resumed = uninterrupted; another start is another run.
  const std::string d = dir_ / "d";
  ASSERT_EQ(start({"--steps", "1", "--out", d, "--init-adapter", lora}).status, 0);
  ASSERT_EQ(start({"--steps", "2", "--out", d, "--init-adapter", lora, "--resume"}).status, 0);
  EXPECT_EQ(read_bytes(d + "/adapter.lora"), read_bytes(b + "/adapter.lora"));
  expect_part(start({"--steps", "4", "--out", d, "--init-adapter", peft, "--resume"}), "now     : init-adapter ", 1);
  expect_part(start({"--steps", "4", "--out", d, "--rank", "8", "--alpha", "24", "--resume"}),
              "then    : init-adapter ", 1);
}

TEST_F(InitTrain, FlagsMustAgree) {
  const std::string a = dir_ / "a", lora = a + "/adapter.lora", out = dir_ / "out";
  trained({"--steps", "1", "--out", a});
  const Args base = {"--steps", "1", "--out", out, "--init-adapter", lora};
  expect_part(start(base + Args{"--rank", "16"}), "--rank 16: " + lora + " has rank 8", 2);
  expect_part(start(base + Args{"--alpha", "8"}), "--alpha 8: " + lora + " has alpha 16", 2);
  expect_part(start(base + Args{"--target-modules", "wq"}), "has adapters on wq,wk,wv,wo,w_gate,w_up,w_down", 2);
  expect_part(start(base + Args{"--iec-expand", "tile"}), "betas trained with interleave", 2);
  expect_part(start(base + Args{"--method", "full"}), "--method full has no adapter", 2);
  expect_part(start(base + Args{"--method", "icq"}), "has IEC's betas, which --method icq has no place for", 1);
  expect_part(start(base + Args{"--bits", "3"}), "this adapter was trained on another base", 1);
  EXPECT_FALSE(std::filesystem::exists(out + "/adapter.lora"));
  EXPECT_EQ(start(base + Args{"--rank", "8", "--alpha", "16", "--target-modules", "all"}).status, 0);
}

}  // namespace
}  // namespace irq
