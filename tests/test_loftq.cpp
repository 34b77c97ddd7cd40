// LoftQ: what its turns do to one matrix, the pair of files it leaves, and --method loftq from end to end.
#include "kernels/nf_codebook.h"
#include "src/quant/loftq.h"
#include "src/train/loftq_base.h"
#include "tests/export_fixture.h"
#include "tests/io_files.h"
#include "tests/op_case.h"
#include "tests/quant_fixture.h"
#include "tests/train_fixture.h"

namespace irq {
namespace {

// ---- one matrix --------------------------------------------------------------------------------------------------------
struct Approximation {
  std::vector<LoftqStep> steps;
  std::vector<uint8_t> codes;
  std::vector<float> q, left, right;
};

Approximation loftq_of(Backend& b, const std::vector<float>& weights, int64_t o, int64_t h, int bits,
                       const LoftqSpec& spec) {
  QuantFormat format;
  format.bits = bits, format.shift = ShiftKind::none;
  const DeviceBuffer w_memory(b, o * h * 4), q_memory(b, o * h * 4), map_memory(b, 1024),
      packed(b, placed_bytes(o, h, format));
  const Tensor w = make_view(w_memory.data(), DType::F32, o, h, "w", b.device());
  const Tensor map = make_view(map_memory.data(), DType::F32, 1, 256, "map", b.device());
  const Tensor dequantized = make_view(q_memory.data(), DType::F32, o, h, "q", b.device());
  b.upload(w, weights.data());
  b.upload(map, dynamic_map().data());
  const QuantizedMatrix q = place_quantized(packed.data(), o, h, format, map, b.device());
  Loftq loftq(b, spec);
  loftq.run(q, w);
  b.nfk_dequant(dequantized, q);
  return {loftq.steps(), download<uint8_t>(b, q.codes), download<float>(b, dequantized),
          download<float>(b, loftq.left()), download<float>(b, loftq.right())};
}

std::vector<float> gaussian(int64_t o, int64_t h, uint64_t seed) {
  Rng rng(seed);
  std::vector<float> w(static_cast<size_t>(o * h));
  for (float& x : w) x = static_cast<float>(0.05 * rng.normal());
  return w;
}

// left right at (i, j).
double product_at(const std::vector<float>& left, const std::vector<float>& right, int64_t i, int64_t j, int64_t r,
                  int64_t h) {
  double sum = 0;
  for (int64_t k = 0; k < r; ++k)
    sum += static_cast<double>(left[static_cast<size_t>(i * r + k)]) *
           static_cast<double>(right[static_cast<size_t>(k * h + j)]);
  return sum;
}

double corrected_error(const Approximation& a, const std::vector<float>& w, int64_t o, int64_t h, int64_t r) {
  double error = 0, size = 0;
  for (int64_t i = 0; i < o; ++i)
    for (int64_t j = 0; j < h; ++j) {
      const double x = static_cast<double>(w[static_cast<size_t>(i * h + j)]);
      const double d =
          x - static_cast<double>(a.q[static_cast<size_t>(i * h + j)]) - product_at(a.left, a.right, i, j, r, h);
      error += d * d, size += x * x;
    }
  return std::sqrt(error / size);
}

class LoftqMatrix : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Bits, LoftqMatrix, testing::Values(2, 3, 4));

TEST_P(LoftqMatrix, EveryTurnIsNearerThanCodesAlone) {
  const int64_t o = 96, h = 128, r = 16;
  const std::vector<float> w = gaussian(o, h, 3);
  Backend& b = cpu_backend(DType::F32);
  const Approximation a = loftq_of(b, w, o, h, GetParam(), {.rank = r, .turns = 5});
  ASSERT_EQ(a.steps.size(), 5u);
  const double plain = a.steps[0].quantized;
  // A rank of n / 6 of noise holds about a third of its square: sqrt(2 / 3) = 0.82. Asked for is less.
  EXPECT_LT(a.steps[0].corrected, 0.9 * plain);
  for (size_t t = 1; t < 5; ++t) {
    EXPECT_LT(a.steps[t].corrected, 0.9 * plain) << t;
    EXPECT_LT(a.steps[t].corrected, 1.02 * a.steps[t - 1].corrected)
        << t;  // no proof that it falls, but it does not rise
  }
  EXPECT_LT(a.steps[4].corrected, a.steps[0].corrected);
  // What is reported is what the factors give: F32 sums against F64.
  EXPECT_NEAR(a.steps[4].corrected, corrected_error(a, w, o, h, r), 1e-5 * a.steps[4].corrected);
}

// One turn: the codes are those of plain quantization, and L R is the best correction of their error.
TEST_P(LoftqMatrix, OneTurnIsPlainQuantizationCorrected) {
  const int64_t o = 40, h = 64, r = 8;
  const std::vector<float> w = gaussian(o, h, 4);
  Backend& b = cpu_backend(DType::F32);
  QuantFormat format;
  format.bits = GetParam(), format.shift = ShiftKind::none;
  const Quantized plain = quantize_on(b, w, o, h, format, nullptr);
  const Approximation a = loftq_of(b, w, o, h, GetParam(), {.rank = r, .turns = 1});
  EXPECT_EQ(a.codes, plain.codes);
  EXPECT_EQ(a.q, plain.dequant);
  std::vector<float> error(w.size()), left(static_cast<size_t>(o * r)), right(static_cast<size_t>(r * h));
  for (size_t i = 0; i < w.size(); ++i) error[i] = w[i] - plain.dequant[i];
  b.low_rank(make_view(left.data(), DType::F32, o, r, "left"), make_view(right.data(), DType::F32, r, h, "right"),
             make_view(error.data(), DType::F32, o, h, "error"));
  EXPECT_EQ(a.left, left);
  EXPECT_EQ(a.right, right);
  // The second turn quantizes what the first's correction leaves.
  const Approximation two = loftq_of(b, w, o, h, GetParam(), {.rank = r, .turns = 2});
  std::vector<float> rest = w;
  b.matmul(make_view(rest.data(), DType::F32, o, h, "rest"), make_view(left.data(), DType::F32, o, r, "left"), false,
           make_view(right.data(), DType::F32, r, h, "right"), false, -1, 1,
           make_view(const_cast<float*>(w.data()), DType::F32, o, h, "w"));
  EXPECT_EQ(two.codes, quantize_on(b, rest, o, h, format, nullptr).codes);
  EXPECT_EQ(two.steps[0].corrected, a.steps[0].corrected);
}

TEST(LoftqMatrixCuda, AsOnTheCpu) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  const int64_t o = 96, h = 128, r = 16;
  const std::vector<float> w = gaussian(o, h, 3);
  for (const int bits : {2, 4}) {
    const LoftqSpec spec{.rank = r, .turns = 3};
    const Approximation gpu = loftq_of(cuda_backend(DType::BF16), w, o, h, bits, spec);
    const Approximation cpu = loftq_of(cpu_backend(DType::F32), w, o, h, bits, spec);
    // W - L R differs by F32 rounding, which moves a weight over a threshold once in some 10^5: not the same bits.
    for (size_t t = 0; t < cpu.steps.size(); ++t) {
      EXPECT_NEAR(gpu.steps[t].quantized, cpu.steps[t].quantized, 1e-4 * cpu.steps[t].quantized);
      EXPECT_NEAR(gpu.steps[t].corrected, cpu.steps[t].corrected, 1e-4 * cpu.steps[t].corrected);
    }
    EXPECT_NEAR(corrected_error(gpu, w, o, h, r), gpu.steps.back().corrected, 1e-5 * gpu.steps.back().corrected);
  }
}

TEST(LoftqMatrixEdge, ZerosAndUnusableWeights) {
  Backend& b = cpu_backend(DType::F32);
  const Approximation zero = loftq_of(b, std::vector<float>(64 * 4, 0.0f), 4, 64, 4, {.rank = 8, .turns = 2});
  EXPECT_EQ(zero.steps.back().corrected, 0);
  std::vector<float> bad = gaussian(4, 64, 1);
  bad[70] = std::nanf("");
  EXPECT_NE(error_of([&] { loftq_of(b, bad, 4, 64, 4, {.rank = 8, .turns = 2}); }).find("row 1, column 6"),
            std::string::npos);
}

// ---- the pair of files -------------------------------------------------------------------------------------------------
class LoftqFiles : public ExportTest {
 protected:
  QuantizeSummary make(const std::string& irq, uint32_t targets = kAllTargets) const {
    BaseReader base(shared("m.bin"));
    QuantizeOptions options;
    options.bits = 2, options.icq = false;
    options.loftq = LoftqSpec{.rank = 16, .turns = 3, .targets = targets};
    return make_loftq_base(*eval_backend(), base, irq, options);
  }
};

TEST_F(LoftqFiles, TheInitialModelIsQPlusLR) {
  const std::string irq = dir_ / "x.irq";
  const QuantizeSummary s = make(irq);
  EXPECT_EQ(s.matrices[3].loftq.size(), 3u);
  EXPECT_NE(describe_loftq(s).find("LoftQ: relative error of 14 matrices, mean: "), std::string::npos);
  EXPECT_NE(describe_loftq(s).find(" after 3"), std::string::npos);
  IrqReader reader(irq);
  const AdapterFile found = read_loftq_adapter(irq, reader.hash());
  EXPECT_EQ(found.alpha, 16);
  EXPECT_EQ(found.base_hash, s.hash);
  // Q + L R in a plain file.
  const ModelConfig c = eval_config();
  Weights weights = random_weights(c, 1);
  for (auto& [name, w] : weights) {
    LinearShape shape{};
    if (linear_index(c, name, &shape) < 0) continue;
    const std::vector<float> q = dequantize_on_host(reader.matrix(name));
    for (int64_t i = 0; i < shape.out; ++i)
      for (int64_t j = 0; j < shape.in; ++j)
        w[static_cast<size_t>(i * shape.in + j)] = static_cast<float>(
            static_cast<double>(q[static_cast<size_t>(i * shape.in + j)]) +
            product_at(found.find(name + ".B")->data, found.find(name + ".A")->data, i, j, 16, shape.in));
  }
  write_weights(dir_ / "sum.bin", c, weights);
  const std::vector<float> expected = logits(dir_ / "sum.bin");
  // Nearer to the original model than the codes that plain quantization would give, which have no adapter.
  BaseReader base(shared("m.bin"));
  QuantizeOptions plain;
  plain.bits = 2, plain.icq = false;
  quantize_base(*eval_backend(), base, dir_ / "plain.irq", plain);
  const std::vector<float> original = logits(shared("m.bin"));
  EXPECT_LT(relative_l2(expected, original), 0.95 * relative_l2(logits(dir_ / "plain.irq"), original));
  for (const double alpha : {16.0, 4.0, 24.0}) {
    AdapterFile a = found;
    set_loftq_scale(a, alpha, false);
    EXPECT_EQ(a.alpha, alpha);
    write_adapter(dir_ / "a.lora", a);
    // The same sums in another order, in F32 through two layers.
    EXPECT_LT(relative_l2(logits(irq, dir_ / "a.lora"), expected), 2e-5) << alpha;
  }
  AdapterFile peft = found;
  set_loftq_scale(peft, 4, true);
  EXPECT_EQ(peft.find("layers.0.wq.B")->data, found.find("layers.0.wq.B")->data);
  write_adapter(dir_ / "peft.lora", peft);
  EXPECT_GT(relative_l2(logits(irq, dir_ / "peft.lora"), expected), 0.01);  // the correction counts a quarter
}

TEST(LoftqReport, SaysWhichTurnWasBetter) {
  QuantizeSummary s;
  EXPECT_EQ(describe_loftq(s), "");
  s.matrices.resize(3);
  s.matrices[0].loftq = {{0.5, 0.4}, {0.6, 0.2}, {0.7, 0.3}};
  s.matrices[2].loftq = {{0.3, 0.2}, {0.3, 0.2}, {0.3, 0.1}};
  const std::string first =
      "LoftQ: relative error of 2 matrices, mean: 0.4000 quantized alone -> 0.3000 after 1 turn -> 0.2000 after 3";
  EXPECT_EQ(describe_loftq(s),
            first + "\nnote: in 1 of them an earlier turn was better; the last is kept, as the paper does");
  s.matrices[2].loftq[1].corrected = 0.05;
  EXPECT_EQ(describe_loftq(s),
            first +
                "\nnote: in 2 of them an earlier turn was better; the last is kept, as the paper does"
                "\nnote: the mean was least after 2: --loftq-iters 2 gives 0.1250");
  s.matrices[0].loftq.resize(1), s.matrices[2].loftq.resize(1);
  EXPECT_EQ(describe_loftq(s), first.substr(0, first.find(" -> 0.2000")));
}

TEST_F(LoftqFiles, OthersAreQuantizedPlainly) {
  const uint32_t targets = parse_targets("wq,w_down");
  const QuantizeSummary s = make(dir_ / "x.irq", targets);
  EXPECT_EQ(s.factors.size(), 8u);
  IrqReader some(dir_ / "x.irq");
  EXPECT_EQ(read_loftq_adapter(dir_ / "x.irq", some.hash()).targets, targets);
  BaseReader base(shared("m.bin"));
  QuantizeOptions plain;
  plain.bits = 2, plain.icq = false;
  quantize_base(*eval_backend(), base, dir_ / "plain.irq", plain);
  IrqReader all_plain(dir_ / "plain.irq");
  for (const LinearShape& l : layer_linears(eval_config())) {
    const std::string name = std::string("layers.1.") + l.name;
    const bool same = dequantize_on_host(some.matrix(name)) == dequantize_on_host(all_plain.matrix(name));
    EXPECT_EQ(same, name != "layers.1.wq" && name != "layers.1.w_down") << name;
  }
}

TEST_F(LoftqFiles, NoneWithoutTheOther) {
  std::filesystem::create_directories(dir_ / "x.lora");  // the adapter cannot get its name
  EXPECT_NE(error_of([&] { make(dir_ / "x.irq"); }), "");
  EXPECT_FALSE(std::filesystem::exists(dir_ / "x.irq"));
  EXPECT_NE(error_of([&] { read_loftq_adapter(dir_ / "y.irq", 1); }).find("has no adapter of LoftQ beside it"),
            std::string::npos);
  write_adapter(dir_ / "y.lora", small_adapter());
  EXPECT_NE(error_of([&] { read_loftq_adapter(dir_ / "y.irq", 1); }).find("found   : an adapter of ir-qlora"),
            std::string::npos);
  make(dir_ / "z.irq");
  EXPECT_NE(error_of([&] { read_loftq_adapter(dir_ / "z.irq", 1); }).find("expected: made with base 0000000000000001"),
            std::string::npos);
  std::filesystem::resize_file(dir_ / "z.lora", 3000);
  EXPECT_NE(error_of([&] { read_loftq_adapter(dir_ / "z.irq", IrqReader(dir_ / "z.irq").hash()); }), "");
}

// ---- training ----------------------------------------------------------------------------------------------------------
class LoftqTrain : public TrainErrors {
 protected:
  // A base of this test's own, so that what is cached beside it is too.
  void SetUp() override { fs::copy_file(shared("model.bin"), dir_ / "m.bin"); }
  CommandResult run(const std::string& base, const Args& more) {
    Args a = command(Args{"--method", "loftq"} + more);
    a[0] = base;
    if (std::find(more.begin(), more.end(), "(no rank)") != more.end()) {
      a.erase(std::find(a.begin(), a.end(), "--rank"), std::find(a.begin(), a.end(), "--rank") + 2);
      a.erase(std::find(a.begin(), a.end(), "(no rank)"));
    }
    return run_command("irq_train", a);
  }
  CommandResult trains(const std::string& base, const Args& more) {
    CommandResult r = run(base, more);
    EXPECT_EQ(r.status, 0) << r.err;
    return r;
  }
  std::string cached(const std::string& end) const {
    for (const auto& e : fs::directory_iterator(dir_.path()))
      if (e.path().filename().string().find("-loftq-") != std::string::npos && e.path().extension() == end)
        return e.path();
    return "";
  }
  static double first_loss(const std::string& out) { return held_out_losses(out + "/log.jsonl").at(0).second; }
};

TEST_F(LoftqTrain, StartsFromThePairAndResumes) {
  const std::string base = dir_ / "m.bin";
  const CommandResult first = trains(base, {"--bits", "2", "--steps", "3", "--dropout", "0.1", "--out", dir_ / "a"});
  EXPECT_NE(first.err.find("LoftQ: relative error of 14 matrices"), std::string::npos) << first.err;
  const std::string irq = cached(".irq"), lora = cached(".lora");
  EXPECT_NE(irq.find("m.nf2-loftq-r8-t5-"), std::string::npos) << irq;
  EXPECT_EQ(lora, loftq_adapter_path(irq));
  EXPECT_EQ(read_adapter(dir_ / "a/adapter.lora").base_hash, IrqReader(irq).hash());
  EXPECT_EQ(read_adapter(dir_ / "a/adapter.lora").method, "loftq");
  expect_clean(dir_.path());
  // Interrupted and resumed = uninterrupted, and the pair is used again.
  trains(base, {"--bits", "2", "--steps", "1", "--dropout", "0.1", "--out", dir_ / "b"});
  const CommandResult again =
      trains(base, {"--bits", "2", "--steps", "3", "--dropout", "0.1", "--out", dir_ / "b", "--resume"});
  EXPECT_NE(again.err.find(irq + " (cached)"), std::string::npos) << again.err;
  EXPECT_EQ(read_bytes(dir_ / "b/adapter.lora"), read_bytes(dir_ / "a/adapter.lora"));
  // The log's command names what was chosen; another choice is another run.
  const std::string logged = read_log(dir_ / "a/log.jsonl").at(0)["command"];
  EXPECT_NE(logged.find("--loftq-iters 5 --loftq-scaling fold"), std::string::npos) << logged;
  expect_part(run(base, {"--bits", "2", "--steps", "4", "--dropout", "0.1", "--out", dir_ / "b", "--resume",
                         "--loftq-iters", "1"}),
              "now     : --loftq-iters 1");
  // The .irq itself as BASE, with its rank: the same start.
  trains(irq, {"--steps", "1", "--out", dir_ / "c", "(no rank)"});
  EXPECT_EQ(first_loss(dir_ / "c"), first_loss(dir_ / "a"));
}

TEST_F(LoftqTrain, ScalingIsFoldedUnlessPeftsIsAskedFor) {
  const std::string base = dir_ / "m.bin";
  const Args common = {"--bits", "2", "--steps", "1", "--loftq-iters", "1"};
  trains(base, common + Args{"--alpha", "8", "--out", dir_ / "one"});
  trains(base, common + Args{"--alpha", "32", "--out", dir_ / "fold"});
  trains(base, common + Args{"--alpha", "8", "--loftq-scaling", "peft", "--out", dir_ / "same"});
  trains(base, common + Args{"--alpha", "2", "--loftq-scaling", "peft", "--out", dir_ / "quarter"});
  EXPECT_EQ(first_loss(dir_ / "fold"), first_loss(dir_ / "one"));  // by powers of two, so exactly
  EXPECT_EQ(first_loss(dir_ / "same"), first_loss(dir_ / "one"));  // alpha = rank: nothing to fold
  EXPECT_NE(first_loss(dir_ / "quarter"), first_loss(dir_ / "one"));
  trains(base, common + Args{"--target-modules", "wq,w_down", "--out", dir_ / "some"});
  const AdapterFile some = read_adapter(dir_ / "some/adapter.lora");
  EXPECT_TRUE(some.find("layers.1.wq.A") && !some.find("layers.1.wk.A"));
}

TEST_F(LoftqTrain, RefusalsAndDamage) {
  const std::string base = dir_ / "m.bin", out = dir_ / "out";
  const Args one = {"--bits", "2", "--steps", "1", "--loftq-iters", "1", "--out", out};
  expect_part(run(base, one + Args{"--init-adapter", out}), "--init-adapter: --method loftq starts from the adapter",
              2);
  expect_part(run(base, one + Args{"--alpha", "0"}), "--alpha 0: LoftQ's correction is divided by alpha / rank", 2);
  expect_part(run(base, one + Args{"--method", "qlora"}), "--loftq-iters", 2);
  trains(base, one);
  const std::string irq = cached(".irq"), lora = cached(".lora"), codes = read_bytes(irq), adapter = read_bytes(lora);
  const Args from_irq = {"--steps", "1", "--overwrite", "--out", out};
  expect_part(run(irq, from_irq + Args{"--loftq-iters", "1"}), "is quantized already", 2);
  expect_part(run(irq, from_irq + Args{"--rank", "16"}), "--rank 16: LoftQ made " + irq + " with rank 8", 2);
  expect_part(run(irq, from_irq + Args{"--target-modules", "wq"}), "with adapters on wq,wk,wv,wo,w_gate,w_up,w_down",
              2);
  // Alone an .irq is no pair, and is made again with its adapter; damage is noticed and mended.
  fs::remove(lora);
  expect_part(run(irq, from_irq), "has no adapter of LoftQ beside it");
  CommandResult r = trains(base, one + Args{"--overwrite"});
  EXPECT_NE(r.err.find("quantizing again"), std::string::npos) << r.err;
  EXPECT_EQ(read_bytes(lora), adapter);
  EXPECT_EQ(read_bytes(irq), codes);
  std::string damaged = adapter;
  damaged[damaged.size() / 2] ^= 1;
  write_bytes(lora, damaged);
  r = trains(base, one + Args{"--overwrite"});
  EXPECT_NE(r.err.find("quantizing again"), std::string::npos) << r.err;
  EXPECT_EQ(read_bytes(lora), adapter);
}

TEST_F(LoftqTrain, QuantizeToolMakesThePair) {
  const std::string base = dir_ / "m.bin", irq = dir_ / "o.irq";
  const Args args = {base, irq, "--bits", "2", "--device", "cpu"};
  const CommandResult r = run_command("irq_quantize", args + Args{"--loftq", "8", "--report", dir_ / "report"});
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.out.find("LoftQ: relative error of 14 matrices, mean: "), std::string::npos) << r.out;
  const std::string table = read_text(dir_ / "report/loftq.csv");
  EXPECT_EQ(std::count(table.begin(), table.end(), '\n'), 1 + 14 * 5);
  trains(base, {"--bits", "2", "--steps", "1", "--out", dir_ / "a"});
  trains(irq, {"--steps", "1", "--out", dir_ / "b", "(no rank)"});
  EXPECT_EQ(first_loss(dir_ / "b"), first_loss(dir_ / "a"));
  const auto refused = [&](const Args& more, const std::string& part) {
    const CommandResult bad = run_command("irq_quantize", args + more);
    EXPECT_EQ(bad.status, 2) << bad.err;
    EXPECT_NE(bad.err.find(part), std::string::npos) << bad.err;
  };
  refused({"--loftq", "12"}, "a multiple of 8, at most 16");
  refused({"--loftq", "24"}, "a multiple of 8, at most 16");
  refused({"--loftq", "8", "--icq"}, "--loftq searches no shifts");
  refused({"--loftq-iters", "2"}, "there is no --loftq");
  fs::copy_file(dir_ / "b/adapter.lora", dir_ / "o.lora", fs::copy_options::overwrite_existing);
  refused({"--loftq", "8"}, "found   : an adapter of loftq");
}

}  // namespace
}  // namespace irq
