// Adapters of integer bases in files: merged into zero points and scales, the result computes what base + adapter did.
#include <gtest/gtest.h>

#include "src/eval/model_session.h"
#include "src/io/export.h"
#include "src/io/inspect.h"
#include "src/io/safetensors.h"
#include "tests/integer_base.h"
#include "tests/scratch_dir.h"

namespace irq {
namespace {

AdapterFile pooled_adapter(const InputPool& pool, bool iec, uint64_t hash, uint32_t targets = kAllTargets) {
  AdapterFile a = random_adapter(eval_config(), targets, iec, iec, hash);
  a.method = iec ? "ir-qa-lora" : "qa-lora", a.dropout = 0, a.pool = pool;
  Rng rng(4, 9);
  for (NamedArray& t : a.tensors) {
    if (!t.name.ends_with(".A")) continue;
    const GroupPool p = group_pool_of(pool, t.cols);
    t.cols = p.groups();
    t.data.resize(static_cast<size_t>(t.rows * t.cols));
    const double whole = pool.kind == PoolKind::mean ? 0.4 : 0.03;
    for (float& x : t.data) x = static_cast<float>(whole * rng.normal());
  }
  return a;
}

AdapterFile scales_adapter(const std::string& base, uint64_t hash) {
  AdapterFile a;
  a.method = "peqa", a.targets = kAllTargets, a.base_hash = hash;
  IrqReader r(base);
  Rng rng(8, 8);
  for (int64_t l = 0; l < r.config().layers; ++l)
    for (const LinearShape& s : layer_linears(r.config())) {
      const std::string name = strf("layers.%ld.%s", l, s.name);
      const QuantizedMatrix q = r.matrix(name);
      NamedArray t{name + ".scales", q.rows, q.groups_per_row(), {}};
      for (int64_t i = 0; i < q.blocks(); ++i)
        t.data.push_back(q.scales.as<float>()[i] * static_cast<float>(1 + 0.3 * rng.normal()));
      a.tensors.push_back(std::move(t));
    }
  return a;
}

std::vector<float> logits(const std::string& model, const std::string& adapter = "") {
  const auto backend = eval_backend();
  ModelSession session(*backend, model, adapter);
  session.load({{.evaluate = {}, .logits = {{20, 20, 1}}, .positions = 20, .cache_tokens = 0}});
  return session.logits(every_position(random_ids(20, eval_config().vocab, 9)));
}
double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    const double d = static_cast<double>(a.at(i)) - static_cast<double>(b[i]);
    difference += d * d, size += static_cast<double>(b[i]) * static_cast<double>(b[i]);
  }
  return std::sqrt(difference / size);
}

class MergeIrq : public testing::Test {
 protected:
  std::string path(const std::string& name) { return dir_ / name; }
  void merge(const std::string& base, const std::string& adapter, const std::string& out, bool nearest = false,
             ExportReport* report = nullptr) {
    ExportSource source(base, adapter, true);
    ExportOptions options;
    options.nearest = nearest;
    const ExportReport r = export_irq(source, out, options);
    if (report) *report = r;
    IrqReader(out).verify_all();
  }
  ScratchDir dir_;
};

// A weight with its new zero point is rounded twice, as before; the adapter's part has the weight's own rounding then, 2^-24 of
// codes up to 16 steps away: some 1e-6 of the update after two layers.
constexpr double kRounding = 1e-5;

TEST_F(MergeIrq, PoolingMergesIntoZeroPoints) {
  for (const int group : {32, 64, kPerChannel})  // inputs of 64 and 96: with 64 the second group of 96 is short
    for (const PoolKind kind : {PoolKind::mean, PoolKind::sum, PoolKind::peft}) {
      const std::string base = path("base.irq"), adapter = path("a.lora"), out = path("out.irq");
      const uint64_t hash = write_integer_base(base, integer_info(eval_config(), group));
      write_adapter(adapter, pooled_adapter({kind, group, false}, false, hash, kAllTargets & ~4u));
      std::filesystem::remove(out);
      merge(base, adapter, out);
      EXPECT_EQ(IrqReader(out).format().shift, ShiftKind::float_zero);
      EXPECT_EQ(unpack_codes(IrqReader(out).matrix("layers.0.wq")),
                unpack_codes(IrqReader(base).matrix("layers.0.wq")));
      const std::vector<float> apart = logits(base, adapter);
      EXPECT_LT(distance(logits(out), apart), kRounding) << group << " " << name_of(kind);
      EXPECT_GT(distance(logits(base), apart), 500 * kRounding) << "the adapter does nothing";
      // Merging once more, into float zero points, adds to them.
      write_adapter(path("b.lora"), pooled_adapter({kind, group, false}, false, IrqReader(out).hash()));
      std::filesystem::remove(path("twice.irq"));
      merge(out, path("b.lora"), path("twice.irq"));
      EXPECT_LT(distance(logits(path("twice.irq")), logits(out, path("b.lora"))), kRounding);
    }
}

// The written example of fidelity 5.5, both conventions.
TEST_F(MergeIrq, WrittenExample) {
  const float scale[2][4] = {{.5f, .25f, .5f, 1}, {.25f, .5f, .125f, .5f}};
  const double zero[2][4] = {{1, 2, 1, 2}, {2, 1, 2, 1}};
  const double mean[2][4] = {{.875, 2.5, .9375, 1.75}, {2.5, .5, 2.5, 2}},
               sum[2][4] = {{.75, 3, .875, 1.5}, {3, 0, 3, 3}};
  for (const PoolKind kind : {PoolKind::mean, PoolKind::sum}) {
    AdapterFile a;
    a.method = "qa-lora", a.rank = 1, a.alpha = 0.25, a.targets = 1, a.pool = {kind, 2, false};
    a.tensors = {{"layers.0.wq.A", 1, 4, {.5, -1, .25, 2}}, {"layers.0.wq.B", 2, 1, {1, -2}}};
    write_adapter(path("a.lora"), a);
    AdapterReader reader(path("a.lora"));
    EXPECT_EQ(reader.info().pool, a.pool);
    const GroupedAdapter f = fold_into_groups(reader, "layers.0.wq", {"wq", 2, 8}, false);
    for (size_t o = 0; o < 2; ++o)
      for (size_t g = 0; g < 4; ++g)
        EXPECT_EQ(zero[o][g] - 0.25 * f.b[o] * f.a[g] / static_cast<double>(scale[o][g]),
                  (kind == PoolKind::mean ? mean : sum)[o][g]);
  }
}

TEST_F(MergeIrq, IecMergesWhereSlicesAreWholeGroups) {
  const std::string base = path("base.irq"), adapter = path("a.lora"), out = path("out.irq");
  const uint64_t hash = write_integer_base(base, integer_info(eval_config(), 32));
  // Rank 8: 64 and 96 features in 8 slices of 8 and 12 cut groups of 32.
  write_adapter(adapter, pooled_adapter({PoolKind::sum, 32, false}, true, hash));
  try {
    merge(base, adapter, out);
    FAIL() << "slices of 8 features in groups of 32";
  } catch (const Error& e) {
    const std::string text = e.what();
    EXPECT_NE(text.find("beta1 averages slices of 8 features, which cut the base's groups of 32"), std::string::npos)
        << text;
    EXPECT_NE(text.find("--iec-align group"), std::string::npos) << text;
  }
  EXPECT_FALSE(std::filesystem::exists(out));
  ExportReport report;
  merge(base, adapter, out, true, &report);
  ASSERT_EQ(report.notes.size(), 1u);
  EXPECT_EQ(report.notes[0].rfind("not exact: ", 0), 0u) << report.notes[0];
  const std::vector<float> apart = logits(base, adapter);
  EXPECT_GT(distance(logits(out), apart), 1e-3) << "so it was exact";
  EXPECT_LT(distance(logits(out), apart), distance(logits(base), apart));

  write_adapter(path("g.lora"), pooled_adapter({PoolKind::sum, 32, true}, true, hash));
  merge(base, path("g.lora"), path("g.irq"));
  EXPECT_LT(distance(logits(path("g.irq")), logits(base, path("g.lora"))), kRounding);
  // Groups of 8: slices of 8 fit those of 64 features, slices of 12 do not fit those of 96; without w_down all fit.
  const uint64_t fine = write_integer_base(path("fine.irq"), integer_info(eval_config(), 8));
  write_adapter(path("raw.lora"), pooled_adapter({PoolKind::sum, 8, false}, true, fine, kAllTargets & ~64u));
  merge(path("fine.irq"), path("raw.lora"), path("raw.irq"));
  EXPECT_LT(distance(logits(path("raw.irq")), logits(path("fine.irq"), path("raw.lora"))), kRounding);
}

TEST_F(MergeIrq, ScalesMerge) {
  for (const int group : {64, kPerChannel}) {
    const std::string base = path("base.irq"), adapter = path("a.lora"), out = path("out.irq");
    const uint64_t hash = write_integer_base(base, integer_info(eval_config(), group));
    write_adapter(adapter, scales_adapter(base, hash));
    std::filesystem::remove(out);
    merge(base, adapter, out);
    EXPECT_EQ(IrqReader(out).format(), IrqReader(base).format());
    EXPECT_EQ(logits(out), logits(base, adapter)) << "the same numbers, bit for bit";
    EXPECT_GT(distance(logits(base), logits(out)), 0.05);
  }
}

TEST_F(MergeIrq, OtherFormsFoldToo) {
  const std::string base = path("base.irq"), out = path("hf");
  const uint64_t hash = write_integer_base(base, integer_info(eval_config(), 32));
  write_adapter(path("a.lora"), pooled_adapter({PoolKind::mean, 32, false}, true, hash));
  write_adapter(path("s.lora"), scales_adapter(base, hash));
  ExportOptions options;
  options.dtype = DType::F32, options.overwrite = true;
  for (const char* name : {"a.lora", "s.lora"}) {
    ExportSource source(base, path(name), true);
    const ExportReport report = export_hugging_face(source, out, options);
    EXPECT_EQ(report.notes.back().rfind("merged into 14 matrices: relative change 0.", 0), 0u) << report.notes.back();
  }
  {  // The last one's matrix: dequantized with the trained scales.
    const SafetensorsReader r(out + "/model.safetensors");
    const SafetensorsEntry* e = r.find("model.layers.0.self_attn.q_proj.weight");
    ASSERT_NE(e, nullptr);
    AdapterReader adapter(path("s.lora"));
    IrqReader irq(base);
    QuantizedMatrix q = irq.matrix("layers.0.wq");
    q.scales = trained_scales(adapter, "layers.0.wq", q).flat();
    const std::vector<float> expected = dequantize_on_host(q);
    EXPECT_EQ(std::memcmp(r.data(*e), expected.data(), expected.size() * 4), 0);
  }
  ExportSource pooled(base, path("a.lora"), false), scales(base, path("s.lora"), false);
  export_peft(pooled, path("peft"), {});
  const SafetensorsReader r(path("peft/adapter_model.safetensors"));
  const SafetensorsEntry* a = r.find("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight");
  ASSERT_NE(a, nullptr);
  EXPECT_EQ(a->shape, (std::vector<int64_t>{8, 64})) << "expanded to every feature";
  EXPECT_THROW(export_peft(scales, path("peft2"), {}), Error);
}

TEST_F(MergeIrq, Refusals) {
  const std::string base = path("base.irq"), out = path("out.irq");
  const auto complaint = [&](const std::string& adapter) -> std::string {
    try {
      merge(base, adapter, out);
    } catch (const Error& e) { return e.what(); }
    return "merged";
  };
  uint64_t hash = write_integer_base(base, integer_info(eval_config(), 32));
  write_adapter(path("plain.lora"), random_adapter(eval_config(), kAllTargets, false, false, hash));
  EXPECT_NE(complaint(path("plain.lora")).find("--irq cannot take this adapter"), std::string::npos);
  write_adapter(path("other.lora"), pooled_adapter({PoolKind::mean, 16, false}, false, hash));
  EXPECT_NE(complaint(path("other.lora")).find("pools other groups than the base has"), std::string::npos);
  AdapterFile cut = scales_adapter(base, hash);
  cut.tensors.pop_back();
  write_adapter(path("cut.lora"), cut);
  EXPECT_NE(complaint(path("cut.lora")).find("layers.1.w_down.scales (64, 3)"), std::string::npos);
  EXPECT_THROW(logits(base, path("cut.lora")), Error);
  EXPECT_FALSE(std::filesystem::exists(out));
  // A merged base is another base: the adapter must not be applied a second time.
  write_adapter(path("a.lora"), pooled_adapter({PoolKind::mean, 32, false}, false, hash));
  EXPECT_EQ(complaint(path("a.lora")), "merged");
  EXPECT_THROW(logits(out, path("a.lora")), Error);
  EXPECT_NE(complaint(path("a.lora")).find("the file exists"), std::string::npos);
  // A group of scale 0 holds no zero point.
  std::filesystem::remove(out);
  hash = write_integer_base(base, integer_info(eval_config(), 32), 5);
  write_adapter(path("a.lora"), pooled_adapter({PoolKind::mean, 32, false}, false, hash));
  const std::string zero = complaint(path("a.lora"));
  EXPECT_NE(zero.find("layers.1.wo, row 2, group 1: scale 0"), std::string::npos) << zero;
  EXPECT_FALSE(std::filesystem::exists(out));
  write_adapter(path("a.lora"), pooled_adapter({PoolKind::mean, 32, false}, false, hash, kAllTargets & ~8u));
  EXPECT_EQ(complaint(path("a.lora")), "merged") << "no update there";
}

TEST_F(MergeIrq, InspectShowsThePooling) {
  const uint64_t hash = write_integer_base(path("base.irq"), integer_info(eval_config(), 32));
  write_adapter(path("a.lora"), pooled_adapter({PoolKind::sum, 32, true}, true, hash));
  write_adapter(path("s.lora"), scales_adapter(path("base.irq"), hash));
  EXPECT_NE(inspect_summary(path("a.lora")).find("  pooling  : sum over groups of 32 features, beta1 over groups\n"),
            std::string::npos)
      << inspect_summary(path("a.lora"));
  EXPECT_EQ(inspect_summary(path("s.lora")).find("rank"), std::string::npos) << inspect_summary(path("s.lora"));
}

}  // namespace
}  // namespace irq
