// GPTQ and rounding to nearest of whole models: the layer-by-layer forward pass, files, the command line, and qlora-gptq.
#include "src/core/interrupt.h"
#include "src/io/checkpoint.h"
#include "src/ops/plain_layer.h"
#include "src/train/gptq_base.h"
#include "tests/tiny_model.h"
#include "tests/train_fixture.h"

namespace irq {
namespace {

// The forward pass in pieces gives what the model gives.
TEST(PlainLayer, EqualsTheModel) {
  Backend& backend = cpu_backend(DType::F32);
  ModelPlan plan = tiny_plan(true);
  plan.lora = plan.training = false;
  TinyModel tiny(backend, plan);
  std::vector<Example> examples = tiny_examples(5);
  std::vector<const Example*> all;
  for (Example& e : examples) {
    std::fill(e.trainable.begin(), e.trainable.end(), uint8_t{1});  // every row is a label row
    all.push_back(&e);
  }
  const Batch batch = pack(all, std::vector<int32_t>(all.size(), 0));
  Tensor params = tiny.arena.push("params", DType::U8, 1, sizeof(StepParams));
  const DeviceBatch d = upload_batch(backend, tiny.arena, batch, params);
  std::vector<double> expected;
  {
    Tape tape(backend, tiny.arena, &tiny.model().params(), false);
    expected = get(backend, tape.value(tiny.model().hidden(tape, d)));
  }
  const ModelConfig& c = plan.config;
  const Tensor cosines = tiny.arena.push("cos", DType::F32, 32, c.head_dim / 2),
               sines = tiny.arena.push("sin", DType::F32, 32, c.head_dim / 2);
  for (int pos = 0; pos < 32; ++pos)
    for (int j = 0; j < c.head_dim / 2; ++j) {
      const double angle = pos * std::pow(c.rope_theta, -2.0 * j / static_cast<double>(c.head_dim));
      cosines.row<float>(pos)[j] = static_cast<float>(std::cos(angle));
      sines.row<float>(pos)[j] = static_cast<float>(std::sin(angle));
    }
  PlainLayer layer(backend, {c.dim, c.ffn, c.heads, c.kv_heads, c.head_dim, c.norm_eps}, batch.rows(), cosines, sines);
  const PlainRows rows{tiny.arena.push("x", DType::F32, batch.rows(), c.dim), d.positions, d.seqs};
  layer.embed(rows.x, tiny.model().embed().value, d.tokens);
  for (Layer& l : tiny.model().layers()) {
    backend.copy(layer.attn_norm(), l.attn_norm.value), backend.copy(layer.ffn_norm(), l.ffn_norm.value);
    int linear = 0;
    for (LinearGroup* g : l.groups())
      for (const LinearPart& part : g->parts)
        backend.copy(layer.weight(linear++), g->resident.slice_rows(part.row, part.out));
    layer.add_attention(rows);
    layer.add_ffn(rows);
  }
  const std::vector<double> x = get(backend, rows.x.slice_rows(0, batch.real_rows));
  expected.resize(x.size());
  EXPECT_LT(relative_l2(x, expected), 1e-5);  // fp32, and the angles here are not rounded as the model's are
}

TEST(Calibration, TakesWhatIsAskedForAndKnowsIt) {
  std::vector<Example> examples = tiny_examples(40);
  const Calibration all = choose_calibration(examples, 1000, 20, 1, "x");
  EXPECT_EQ(all.sequences.size(), 40u);
  const Calibration some = choose_calibration(examples, 5, 4, 1, "x");
  EXPECT_LE(some.tokens, 20);
  EXPECT_GE(some.tokens, 17);
  for (const auto& ids : some.sequences) EXPECT_LE(ids.size(), 5u);  // the last one is predicted, not read
  EXPECT_EQ(some.hash, choose_calibration(examples, 5, 4, 1, "x").hash);
  EXPECT_NE(some.hash, choose_calibration(examples, 5, 4, 2, "x").hash);
  EXPECT_THROW(choose_calibration({{{1}, {0}}}, 5, 4, 1, "x"), Error);
}

class GptqTool : public Train {
 protected:
  CommandResult quantize(const Args& options, const std::string& to = "q.irq") {
    return run_command("irq_quantize", Args{shared("model.bin"), dir_ / to, "--device", "cpu"} + options);
  }
  Args gptq() const { return {"--format", "gptq", "--calibration", shared("data.tok"), "--calibration-len", "24"}; }
};

TEST_F(GptqTool, EachFormatToTheByteAndBack) {
  const int64_t weights = 2 * (3072 + 4608);  // config.json above: 32 x 32 twice, 16 x 32 twice, 48 x 32 three times
  struct Case {
    Args options;
    const char* title;
    int64_t bytes;
  };
  const int64_t rows = 2 * (32 + 16 + 16 + 32 + 48 + 48), down = 2 * 32;
  const Case cases[] = {{{"--format", "int", "--bits", "4"}, "INT4, groups of 128", weights / 2 + (rows + down) * 5},
                        {{"--format", "int", "--bits", "3", "--group", "channel", "--sym"},
                         "INT3, a scale a row, symmetric",
                         weights * 3 / 8 + (rows + down) * 5},
                        {{"--format", "int", "--bits", "2", "--group", "32", "--icq"},
                         "INT2, groups of 32 with integer ICQ (clip range)",
                         weights / 4 + (rows + 2 * down) * 5},
                        {{"--format", "int", "--group", "32", "--icq", "--int-search", "zero-shift", "--n", "9"},
                         "INT4, groups of 32 with integer ICQ (zero point)",
                         weights / 2 + (rows + 2 * down) * 8},
                        {gptq() + Args{"--bits", "3", "--group", "32"}, "INT3 by GPTQ, groups of 32",
                         weights * 3 / 8 + (rows + 2 * down) * 5},
                        {gptq() + Args{"--group", "channel", "--act-order"}, "INT4 by GPTQ, a scale a row",
                         weights / 2 + (rows + down) * 5},
                        {gptq() + Args{"--group", "16", "--gptq-fresh", "--icq"},
                         "INT4 by GPTQ, groups of 16 with integer ICQ (clip range)",
                         weights / 2 + 2 * (6 * 32 / 2 * 2 + 2 * 48 * 2 + 32 * 3) * 5}};
  for (const Case& c : cases) {
    const CommandResult r = quantize(c.options);
    ASSERT_EQ(r.status, 0) << r.err;
    EXPECT_NE(r.out.find(std::string("weights, ") + c.title + "\n"), std::string::npos) << r.out;
    EXPECT_NE(
        r.out.find(strf("%.3f bits per weight", 8.0 * static_cast<double>(c.bytes) / static_cast<double>(weights))),
        std::string::npos)
        << c.title << ": " << r.out;
    const CommandResult inspected = run_command("irq_inspect", {dir_ / "q.irq", "--entropy"});
    EXPECT_EQ(inspected.status, 0) << inspected.err;
    // The entropy recorded is the one of the codes in the file.
    std::istringstream lines(inspected.out.substr(inspected.out.find("mean over weights") + 17));
    double plain = 0, stored = 0, recomputed = 0;
    lines >> plain >> stored >> recomputed;
    EXPECT_NEAR(stored, recomputed, 2e-4) << inspected.out;
    EXPECT_GT(stored, 0.5);
    EXPECT_EQ(run_command("irq_inspect", {dir_ / "q.irq"}).status, 0);
    const std::string first = read_text(dir_ / "q.irq");
    ASSERT_EQ(quantize(c.options).status, 0);
    EXPECT_EQ(read_text(dir_ / "q.irq"), first) << c.title;
    // A model of these codes runs.
    const CommandResult eval = run_command(
        "irq_eval", {dir_ / "q.irq", "--loss", shared("data.tok"), "--window", "24", "--device", "cpu", "--quiet"});
    EXPECT_EQ(eval.status, 0) << eval.err;
  }
}

TEST_F(GptqTool, RefusesWhatMeansNothing) {
  const auto refused = [&](const Args& options, const char* why) {
    const CommandResult r = quantize(options);
    EXPECT_EQ(r.status, 2) << r.err;
    EXPECT_NE(r.err.find(why), std::string::npos) << r.err;
    EXPECT_FALSE(std::filesystem::exists(dir_ / "q.irq"));
  };
  refused({"--group", "32"}, "blocks of 64");
  refused({"--format", "int", "--n", "5"}, "unless --icq");
  refused({"--format", "int", "--icq", "--entropy", "fp32"}, "exact entropies");
  refused({"--format", "int", "--calibration", shared("data.tok")}, "weights alone");
  refused({"--format", "int", "--group", "7"}, "8 to 131072");
  refused({"--format", "int", "--group", "32x"}, "8 to 131072");
  refused({"--format", "int", "--icq", "--sym", "--int-search", "zero-shift"}, "contradict");
  refused({"--format", "int", "--icq", "--lambda", "1"}, "below 1");
  refused({"--format", "gptq"}, "--calibration FILE");
  refused(gptq() + Args{"--act-order"}, "--group channel");
}

TEST_F(GptqTool, InterruptLeavesNothing) {
  BaseReader base(shared("model.bin"));
  QuantizeOptions options;
  options.format = BaseFormat::gptq;
  options.integers.group = 32;
  options.calibration = choose_calibration(tiny_examples(20), 100, 20, 1, "x");
  const auto backend = make_backend("cpu");
  install_interrupt_handler();
  EXPECT_THROW(gptq_base(*backend, base, dir_ / "q.irq", options,
                         [](int64_t done, int64_t, const std::string&) {
                           if (done == 5) std::raise(SIGINT);
                         }),
               Error);
  clear_interrupt();
  EXPECT_TRUE(std::filesystem::is_empty(dir_ / ""));
}

// The shipped model, measured where it was calibrated: less loss than rounding to nearest. Both are deterministic.
TEST_F(GptqTool, LosesLessThanRoundingToNearest) {
  const auto demo = [](const char* name) {
    return (std::filesystem::path(__FILE__).parent_path().parent_path() / "tools/demo" / name).string();
  };
  std::string text;
  for (const nlohmann::json& example : nlohmann::json::parse(read_text(demo("heldout.json"))))
    if (const std::string answer = example.at("output"); std::count(answer.begin(), answer.end(), ' ') > 2)
      text += (text.empty() ? "" : " ") + answer;
  write_bytes(dir_ / "text.txt", text.substr(0, 4000));
  std::filesystem::copy_file(demo("tokenizer.model"), dir_ / "tokenizer.model");
  const auto loss = [&](const Args& options) {
    CommandResult r = run_command("irq_quantize",
                                  Args{demo("model.bin"), dir_ / "q.irq", "--device", "cpu", "--bits", "3"} + options);
    EXPECT_EQ(r.status, 0) << r.err;
    r = run_command("irq_eval", {dir_ / "q.irq", "--loss", dir_ / "text.txt", "--window", "128", "--device", "cpu",
                                 "--quiet", "--json", dir_ / "loss.json"});
    EXPECT_EQ(r.status, 0) << r.err;
    return nlohmann::json::parse(read_text(dir_ / "loss.json")).at("loss").at("nll").get<double>();
  };
  const double nearest = loss({"--format", "int"});
  const double solved = loss({"--format", "gptq", "--calibration", dir_ / "text.txt", "--calibration-len", "128"});
  EXPECT_LT(solved, nearest - 0.05) << nearest;
}

class GptqTrain : public Train {};

TEST_F(GptqTrain, QloraGptqLeavesTheMergedModel) {
  const CommandResult r =
      trained({"--method", "qlora-gptq", "--bits", "4", "--steps", "6", "--group", "16", "--out", dir_ / "run"});
  EXPECT_NE(r.out.find(dir_ / "run/model.irq"), std::string::npos) << r.out;
  const auto log = read_log(dir_ / "run/log.jsonl");
  EXPECT_EQ(log.back().at("result"), "model.irq");
  IrqReader made(dir_ / "run/model.irq");
  EXPECT_EQ(made.format().kind, QuantKind::integer);
  EXPECT_EQ(made.format().group, 16);
  EXPECT_TRUE(made.info().integers.gptq);
  // Its codes are those of W + s B A: in 4 bits and groups of 16 every weight is near the merged one.
  BaseReader base(shared("model.bin"));
  const AdapterFile adapter = read_adapter(dir_ / "run/adapter.lora");
  const std::string name = "layers.1.w_up";
  const Tensor w = base.tensor(name);
  const NamedArray &a = *adapter.find(name + ".A"), &b = *adapter.find(name + ".B");
  QuantizedMatrix q = made.matrix(name);
  std::vector<float> w_hat(static_cast<size_t>(q.numel()));
  make_backend("cpu")->int_dequant(make_view(w_hat.data(), DType::F32, q.rows, q.cols, "w"), q);
  double merged_distance = 0, plain_distance = 0;
  for (int64_t i = 0; i < q.rows; ++i)
    for (int64_t j = 0; j < q.cols; ++j) {
      double merged = 0;
      for (int64_t k = 0; k < adapter.rank; ++k)
        merged += static_cast<double>(b.data[static_cast<size_t>(i * adapter.rank + k)]) *
                  static_cast<double>(a.data[static_cast<size_t>(k * q.cols + j)]);
      const double plain = static_cast<double>(to_float(w.row<F16>(i)[j]));
      merged = plain + merged * adapter.alpha / static_cast<double>(adapter.rank);
      const double got = static_cast<double>(w_hat[static_cast<size_t>(i * q.cols + j)]);
      merged_distance += (got - merged) * (got - merged), plain_distance += (got - plain) * (got - plain);
    }
  EXPECT_LT(merged_distance, plain_distance);
  // What the run says last is that model's loss.
  const double said = log.back().at("held_out_loss");
  EXPECT_EQ(held_out_losses(dir_ / "run/log.jsonl").back().second, said);
  // As a base it trains on, by a method without ICQ.
  const CommandResult on =
      run_command("irq_train", Args{dir_ / "run/model.irq", "--data", shared("data.tok"), "--window", "24", "--batch",
                                    "4", "--rank", "8", "--method", "qlora", "--steps", "1", "--holdout", "4",
                                    "--device", "cpu", "--out", dir_ / "on"});
  EXPECT_EQ(on.status, 0) << on.err;
}

TEST_F(GptqTrain, TrainsOnEachIntegerBase) {
  for (const Args& format : {Args{"--format", "int"}, Args{"--format", "gptq", "--group", "32"}})
    for (const char* method : {"qlora", "icq"}) {
      const std::string out = dir_ / (std::string(method) + format[1]);
      const Args run = Args{"--method", method, "--bits", "3", "--steps", "2", "--out", out} + format;
      trained(run);
      const std::string log = read_text(out + "/log.jsonl");
      EXPECT_NE(log.find("--format " + format[1]), std::string::npos);
      // The quantized base is remembered, and the run is the same again.
      const CommandResult again = trained(run + Args{"--overwrite"});
      EXPECT_NE(again.err.find("(cached)"), std::string::npos) << again.err;
      EXPECT_EQ(step_losses(out + "/log.jsonl").size(), 2u);
    }
}

TEST_F(GptqTrain, RefusesWhatMeansNothing) {
  const auto refused = [&](const Args& options, const char* why) {
    const CommandResult r = train(options + Args{"--out", dir_ / "no"});
    EXPECT_EQ(r.status, 2) << r.err;
    EXPECT_NE(r.err.find(why), std::string::npos) << r.err;
  };
  refused({"--method", "loftq", "--format", "int"}, "--format nf");
  refused({"--method", "qa-lora", "--format", "nf"}, "zero points or scales");
  refused({"--method", "qlora-gptq", "--format", "nf"}, "integers");
  refused({"--method", "lora16", "--format", "int"}, "leaves the base as it is");
  refused({"--method", "qlora", "--group", "32"}, "blocks of 64");
  refused({"--method", "qlora", "--format", "int", "--group", "5"}, "8 to 131072");
}

}  // namespace
}  // namespace irq
