// Folders that bitsandbytes quantized to NF4 -> .irq: its codes and scales, bit for bit.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/nf_codebook.h"
#include "src/io/bitsandbytes.h"
#include "src/io/inspect.h"
#include "tests/cli_util.h"
#include "tests/golden_data.h"
#include "tests/hf_files.h"

namespace irq {
namespace {

constexpr const char* kQuantization =
    R"(, "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4"})";

template <class T>
std::string raw(const std::vector<T>& v) {
  return std::string(reinterpret_cast<const char*>(v.data()), v.size() * sizeof(T));
}
std::string raw(const float* p, size_t n) { return std::string(reinterpret_cast<const char*>(p), 4 * n); }

// The numbers of one linear, as the quantizer left them.
struct Nf4 {
  std::vector<uint8_t> packed, absmax8;
  std::vector<float> absmax2, absmax;  // nested | plain
  float offset = 0;
};

Nf4 random_nf4(Rng& rng, int64_t weights, bool nested) {
  Nf4 q;
  const int64_t blocks = weights / 64;
  for (int64_t i = 0; i < weights / 2; ++i) q.packed.push_back(static_cast<uint8_t>(rng.next_u32()));
  for (int64_t i = 0; i < blocks && nested; ++i) q.absmax8.push_back(static_cast<uint8_t>(rng.next_u32()));
  for (int64_t i = 0; i < (blocks + 255) / 256 && nested; ++i)
    q.absmax2.push_back(0.01f + 0.001f * static_cast<float>(rng.normal()));
  for (int64_t i = 0; i < blocks && !nested; ++i) q.absmax.push_back(0.04f + 0.003f * static_cast<float>(rng.normal()));
  q.offset = 0.043f + 0.001f * static_cast<float>(rng.normal());
  return q;
}

struct Folder {
  ModelConfig c;
  bool nested = true;
  std::vector<float> map;
  std::map<std::string, Nf4> linears;  // by this engine's name
  std::vector<RawTensor> tensors;

  Folder(const ModelConfig& config, bool is_nested, std::vector<float> table)
      : c(config), nested(is_nested), map(std::move(table)) {
    Rng rng(3);
    for (RawTensor& t : random_model(c, DType::BF16)) tensors.push_back(t);
    const Layout layout = base_layout(c, DType::BF16, "test");
    for (const TensorSpec& spec : layout.tensors())
      if (linear_index(c, spec.name) >= 0) set(spec.name, random_nf4(rng, spec.rows * spec.cols, nested));
  }
  // Replaces a linear's tensors.
  void set(const std::string& name, const Nf4& q) {
    linears[name] = q;
    const std::string weight = foreign_name(name);
    std::erase_if(tensors, [&](const RawTensor& t) { return t.name.rfind(weight, 0) == 0; });
    LinearShape shape{};
    linear_index(c, name, &shape);
    const auto count = [](size_t n) { return std::vector<int64_t>{static_cast<int64_t>(n)}; };
    std::string state =
        strf(R"({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [%ld, %ld])", shape.out, shape.in);
    if (nested)
      state += strf(R"(, "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": %.17g)",
                    static_cast<double>(q.offset));
    state += "}";
    tensors.push_back({weight, "U8", {static_cast<int64_t>(q.packed.size()), 1}, raw(q.packed)});
    tensors.push_back({weight + ".quant_map", "F32", {16}, raw(nf_codebook(4).level, 16)});
    tensors.push_back({weight + ".quant_state.bitsandbytes__nf4", "U8", count(state.size()), state});
    if (nested) {
      tensors.push_back({weight + ".absmax", "U8", count(q.absmax8.size()), raw(q.absmax8)});
      tensors.push_back({weight + ".nested_absmax", "F32", count(q.absmax2.size()), raw(q.absmax2)});
      tensors.push_back({weight + ".nested_quant_map", "F32", {256}, raw(map)});
    } else {
      tensors.push_back({weight + ".absmax", "F32", count(q.absmax.size()), raw(q.absmax)});
    }
  }
  void write(const std::string& folder, size_t shards = 1) const {
    write_folder(folder, config_text(c, kQuantization), tensors, shards);
  }
  // level[code] * (map[absmax8] * absmax2 + offset), each operation rounded.
  std::vector<float> dequantized(const std::string& name) const {
    const Nf4& q = linears.at(name);
    std::vector<float> w;
    for (size_t i = 0; i < 2 * q.packed.size(); ++i) {
      const size_t block = i / 64;
      const int code = i % 2 ? q.packed[i / 2] & 15 : q.packed[i / 2] >> 4;
      const float scaled = nested ? map[q.absmax8[block]] * q.absmax2[block / 256] : 0;
      w.push_back(nf_codebook(4).level[code] * (nested ? scaled + q.offset : q.absmax[block]));
    }
    return w;
  }
};

ModelConfig nf4_config() {
  ModelConfig c = small_config();
  c.dim = 64, c.heads = 4, c.kv_heads = 2, c.head_dim = 16, c.ffn = 320;  // w_up: 320 blocks, a second group of scales
  return c;
}
std::vector<float> canonical_map() { return {dynamic_map().begin(), dynamic_map().end()}; }

std::string refused(const ScratchDir& dir, const Folder& folder, const std::string& more = kQuantization) {
  std::filesystem::remove_all(dir / "hf");
  write_folder(dir / "hf", config_text(folder.c, more), folder.tensors);
  const std::string error = error_of([&] { BitsandbytesFolder(dir / "hf").write(dir / "m.irq"); });
  EXPECT_FALSE(std::filesystem::exists(dir / "m.irq"));
  return error;
}

#define EXPECT_SAYS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

TEST(Bitsandbytes, NothingIsRoundedAgain) {
  ScratchDir dir;
  for (const bool nested : {true, false}) {
    Folder folder(nf4_config(), nested, canonical_map());
    folder.write(dir / "hf");
    EXPECT_TRUE(is_bitsandbytes(dir / "hf"));
    BitsandbytesFolder in(dir / "hf");
    const ConvertSummary s = in.write(dir / "m.irq");
    EXPECT_EQ(in.nested(), nested);
    IrqReader r(dir / "m.irq");
    EXPECT_EQ(r.config(), folder.c);
    EXPECT_EQ(r.info().dtype, DType::BF16);
    EXPECT_EQ(s.tensors, 21);
    EXPECT_NE(r.source_hash(), 0u);
    double sum = 0, weights = 0;
    for (const auto& [name, q] : folder.linears) {
      const QuantizedMatrix m = r.matrix(name);
      EXPECT_EQ(bytes_of(m.codes), raw(q.packed)) << name;
      EXPECT_EQ(raw(dequantize_on_host(m)), raw(folder.dequantized(name))) << name;
      double mean = 0;
      for (const float h : block_entropies(m)) mean += static_cast<double>(h) / static_cast<double>(m.blocks());
      EXPECT_NEAR(r.entropy(name)[0], mean, 1e-6) << name;  // a float in the file
      EXPECT_EQ(r.entropy(name)[0], r.entropy(name)[1]);
      sum += mean * static_cast<double>(m.numel()), weights += static_cast<double>(m.numel());
    }
    EXPECT_NEAR(s.code_entropy, sum / weights, 1e-9);
    EXPECT_EQ(bytes_of(r.tensor("embed")), named(folder.tensors, foreign_name("embed")).bytes);
    EXPECT_EQ(bytes_of(r.tensor("head")), named(folder.tensors, foreign_name("head")).bytes);
    r.verify_all();
    // The hash is of the content, not of the files.
    const uint64_t hash = r.source_hash();
    const std::string whole = read_bytes(dir / "m.irq");
    std::filesystem::remove_all(dir / "hf");
    folder.write(dir / "hf", 3);
    BitsandbytesFolder(dir / "hf").write(dir / "m.irq");
    EXPECT_EQ(read_bytes(dir / "m.irq"), whole);
    named(folder.tensors, foreign_name("layers.1.w_down")).bytes[7] ^= 1;
    std::filesystem::remove_all(dir / "hf");
    folder.write(dir / "hf");
    BitsandbytesFolder(dir / "hf").write(dir / "m.irq");
    EXPECT_NE(IrqReader(dir / "m.irq").source_hash(), hash);
    std::filesystem::remove_all(dir / "hf");
    std::filesystem::remove(dir / "m.irq");
  }
}

// Codes, scales and dequantized weights that bitsandbytes itself computed on a GPU, with PyTorch's own 8-bit table.
TEST(Bitsandbytes, RealOutput) {
  const std::filesystem::path golden = shared_golden_folder();
  if (golden.empty()) GTEST_SKIP() << "no released outputs (IRQ_SHARED_DATA or ../shared/data)";
  ModelConfig c = small_config();
  c.dim = 512, c.heads = 8, c.kv_heads = 2, c.head_dim = 64, c.ffn = 64, c.layers = 1;  // wk, wv: 128 x 512
  Folder folder(c, true, read_npy<float>(golden / "dynamic_map_torch.npy"));
  const std::map<std::string, std::string> sources = {{"layers.0.wk", "gauss.icq"}, {"layers.0.wv", "heavy.icq"}};
  for (const auto& [name, file] : sources) {
    Nf4 q;
    q.packed = read_npy<uint8_t>(golden / (file + ".packed.npy"));
    q.absmax8 = read_npy<uint8_t>(golden / (file + ".absmax8.npy"));
    q.absmax2 = read_npy<float>(golden / (file + ".absmax2.npy"));
    q.offset = read_npy<float>(golden / (file + ".offset.npy")).at(0);
    folder.set(name, q);
  }
  ScratchDir dir;
  folder.write(dir / "hf", 2);
  BitsandbytesFolder(dir / "hf").write(dir / "m.irq");
  IrqReader r(dir / "m.irq");
  for (const auto& [name, file] : sources) {
    EXPECT_EQ(raw(dequantize_on_host(r.matrix(name))), raw(read_npy<float>(golden / (file + ".deq.npy")))) << file;
    double mean = 0;
    const std::vector<float> entropy = read_npy<float>(golden / (file + ".entropy.npy"));
    for (const float h : entropy) mean += static_cast<double>(h) / static_cast<double>(entropy.size());
    EXPECT_NEAR(r.entropy(name)[1], mean, 1e-5) << file;  // fp32 sums there
  }
}

TEST(Bitsandbytes, RefusesWhatAnIrqCannotSay) {
  ScratchDir dir;
  const Folder good(nf4_config(), true, canonical_map());
  const std::string up = foreign_name("layers.1.w_up");
  const auto changed = [&](auto&& change) {
    Folder f = good;
    change(f);
    return refused(dir, f);
  };
  const auto state = [&](const std::string& from, const std::string& to) {
    return changed([&](Folder& f) {
      RawTensor& t = named(f.tensors, up + ".quant_state.bitsandbytes__nf4");
      t.bytes.replace(t.bytes.find(from), from.size(), to);
      t.shape = {static_cast<int64_t>(t.bytes.size())};
    });
  };
  EXPECT_SAYS(state("\"nf4\"", "\"fp4\""), "expected: quant_type \"nf4\"\n  found   : \"fp4\"");
  EXPECT_SAYS(state("64", "128"), "expected: blocksize 64\n  found   : 128");
  EXPECT_SAYS(state("256", "512"), "expected: nested_blocksize 256");
  EXPECT_SAYS(state("[320, 64]", "[64, 320]"), "expected: shape [320,64]");
  EXPECT_SAYS(state("\"nested_offset\": ", "\"nested_offset\": \"x\", \"n\": "), "nested_offset to be a number");
  EXPECT_SAYS(state("{", "["), "is not valid JSON");
  EXPECT_SAYS(state("{", "{\"deep\":" + std::string(60000, '[')), "nf4: is nested too deeply");
  EXPECT_SAYS(changed([&](Folder& f) { named(f.tensors, up + ".quant_map").bytes[4] ^= 1; }),
              "these are not NF4's 16 levels");
  EXPECT_SAYS(changed([&](Folder& f) { named(f.tensors, up + ".nested_quant_map").bytes[4] ^= 1; }),
              up + ".nested_quant_map differs from ");
  EXPECT_SAYS(changed([&](Folder& f) {
                const float nan = std::nanf("");
                std::memcpy(named(f.tensors, up + ".nested_absmax").bytes.data(), &nan, 4);
              }),
              up + ".nested_absmax: a scale is not a finite number");
  EXPECT_SAYS(changed([&](Folder& f) {
                RawTensor& t = named(f.tensors, up + ".absmax");
                t.bytes.pop_back(), t.shape[0] -= 1;
              }),
              up + ".absmax is not what bitsandbytes writes\n  expected: U8, 320 elements\n  found   : U8 [319]");
  EXPECT_SAYS(changed([&](Folder& f) {
                RawTensor& t = named(f.tensors, up);
                t.bytes.pop_back(), t.shape[0] -= 1;
              }),
              "tensor " + up + " is not what bitsandbytes writes\n  expected: 10240 bytes for [320, 64]");
  EXPECT_SAYS(changed([&](Folder& f) {
                named(f.tensors, up + ".quant_state.bitsandbytes__nf4").name = up + ".quant_state.bitsandbytes__fp4";
              }),
              "only NF4 can be taken over");
  EXPECT_SAYS(changed([&](Folder& f) {
                std::erase_if(f.tensors, [&](const RawTensor& t) { return t.name.rfind(up, 0) == 0; });
                f.tensors.push_back({up, "BF16", {320, 64}, std::string(2 * 320 * 64, '\0')});
              }),
              up + " is not quantized");
  EXPECT_SAYS(changed([&](Folder& f) {
                f.tensors.push_back({"model.extra", "U8", {1}, "x"});
              }),
              "model.extra has no place");
  EXPECT_SAYS(changed([&](Folder& f) {
                std::erase_if(f.tensors, [&](const RawTensor& t) { return t.name == up + ".absmax"; });
              }),
              "tensor " + up + ".absmax is missing");
  EXPECT_SAYS(changed([&](Folder& f) {
                f.tensors.push_back({"lm_head.weight.quant_state.bitsandbytes__nf4", "U8", {2}, "{}"});
              }),
              "lm_head.weight is quantized, which a .irq has for the layers' linears only");
  Folder plain(nf4_config(), false, canonical_map());
  EXPECT_SAYS(changed([&](Folder& f) {
                const std::string down = foreign_name("layers.1.w_down");
                std::erase_if(f.tensors, [&](const RawTensor& t) { return t.name.rfind(down, 0) == 0; });
                for (const RawTensor& t : plain.tensors)
                  if (t.name.rfind(down, 0) == 0) f.tensors.push_back(t);
              }),
              " has no double quantization, unlike the linears before it");
  EXPECT_SAYS(refused(dir, good, R"(, "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true})"),
              "bnb_4bit_quant_type is fp4");
}

// bnb_4bit_quant_storage: the same bytes under another type.
TEST(Bitsandbytes, CodesStoredAsBf16) {
  ScratchDir dir;
  Folder folder(nf4_config(), true, canonical_map());
  RawTensor& t = named(folder.tensors, foreign_name("layers.0.wq"));
  t.dtype = "BF16", t.shape[0] /= 2;
  folder.write(dir / "hf");
  BitsandbytesFolder(dir / "hf").write(dir / "m.irq");
  IrqReader r(dir / "m.irq");
  EXPECT_EQ(bytes_of(r.matrix("layers.0.wq").codes), t.bytes);
}

TEST(Bitsandbytes, Command) {
  ScratchDir dir;
  const Folder folder(nf4_config(), true, canonical_map());
  folder.write(dir / "hf");
  write_bytes(dir / "hf/tokenizer.model", "sp");
  CommandResult r = run_command("irq_convert", {dir / "hf", dir / "m.irq"});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_SAYS(r.out, "m.irq: NF4 of bitsandbytes, codes and scales as they are (double quantization); embeddings bf16");
  EXPECT_EQ(read_bytes(dir / "tokenizer.model"), "sp");
  r = run_command("irq_inspect", {dir / "m.irq"});
  EXPECT_EQ(r.status, 0) << r.err;
  r = run_command("irq_convert", {dir / "hf", dir / "m.bin"});
  EXPECT_SAYS(r.err, "better named .irq");
  r = run_command("irq_convert", {dir / "hf", dir / "m.irq", "--dtype", "f16"});
  EXPECT_EQ(r.status, 2);
  EXPECT_SAYS(r.err, "taken over as it is");
  // A config.json of such a model gives no random weights, but the right command.
  r = run_command("irq_quantize", {dir / "hf/config.json", dir / "q.irq"});
  EXPECT_SAYS(r.err, "./irq_convert " + (dir / "hf") + " model.irq");
}

}  // namespace
}  // namespace irq
