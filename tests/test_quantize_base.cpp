// The streaming job base -> quantized base: the same codes as matrix by matrix, whole files or none, and its tool.
#include <gtest/gtest.h>

#include <csignal>
#include <limits>

#include "kernels/nf_codebook.h"
#include "src/core/interrupt.h"
#include "src/core/rng.h"
#include "src/quant/quantize.h"
#include "src/train/quantize_base.h"
#include "tests/cli_util.h"

namespace irq {
namespace {

ModelConfig tiny_config() {
  ModelConfig c;
  c.dim = 48, c.ffn = 80, c.layers = 2, c.heads = 3, c.kv_heads = 1, c.head_dim = 16, c.vocab = 40, c.max_seq = 64;
  return c;
}

// Seeded weights, shifted so that ICQ has something to find; block ends do not fall on row ends (48 is no multiple of 64).
// Of the tensor `bad`, element `bad_index` is infinite.
void write_tiny_base(const std::string& path, DType dtype, const std::string& bad = "", int64_t bad_index = 0) {
  BaseWriter writer(path, tiny_config(), dtype);
  Rng rng(7);
  while (const TensorSpec* spec = writer.next()) {
    std::vector<char> bytes(static_cast<size_t>(spec->bytes()));
    for (int64_t i = 0; i < spec->rows * spec->cols; ++i) {
      float x = static_cast<float>(0.05 * rng.normal() + 0.01);
      if (spec->name == bad && i == bad_index) x = -std::numeric_limits<float>::infinity();
      const F16 half = to_f16(x);
      const Bf16 brain = to_bf16(x);
      const void* from = spec->dtype == DType::F32   ? static_cast<const void*>(&x)
                         : spec->dtype == DType::F16 ? static_cast<const void*>(&half)
                                                     : static_cast<const void*>(&brain);
      std::memcpy(&bytes[static_cast<size_t>(i * size_of(spec->dtype))], from,
                  static_cast<size_t>(size_of(spec->dtype)));
    }
    const std::string name = spec->name;
    writer.write(name, bytes.data(), static_cast<int64_t>(bytes.size()));
  }
  writer.finish();
}

std::vector<float> widened(const Tensor& t) {
  std::vector<float> out(static_cast<size_t>(t.numel()));
  for (int64_t i = 0; i < t.numel(); ++i)
    out[static_cast<size_t>(i)] = t.dtype == DType::F32   ? static_cast<const float*>(t.data)[i]
                                  : t.dtype == DType::F16 ? to_float(static_cast<const F16*>(t.data)[i])
                                                          : to_float(static_cast<const Bf16*>(t.data)[i]);
  return out;
}

struct Case {
  DType dtype;
  int bits;
  bool icq;
};
class QuantizeBase : public ::testing::TestWithParam<Case> {};

TEST_P(QuantizeBase, EqualsTheQuantizerMatrixByMatrix) {
  const TempDir dir;
  write_tiny_base(dir / "tiny.bin", GetParam().dtype);
  QuantizeOptions options;
  options.bits = GetParam().bits;
  options.icq = GetParam().icq;
  options.spec.n = 20;
  auto backend = make_backend("cpu");
  BaseReader base(dir / "tiny.bin");
  std::vector<std::string> names;
  const QuantizeSummary summary =
      quantize_base(*backend, base, dir / "tiny.irq", options, [&](int64_t done, int64_t of, const std::string& name) {
        names.push_back(name);
        EXPECT_EQ(done, static_cast<int64_t>(names.size()));
        EXPECT_EQ(of, 14);
      });
  IrqReader quantized(dir / "tiny.irq");
  EXPECT_EQ(quantized.hash(), summary.hash);
  EXPECT_TRUE(same_quantization(quantized.info(), quantized_info(base, options)));
  ASSERT_EQ(names.size(), 14u);
  EXPECT_EQ(summary.weights, linear_weights(tiny_config()));
  EXPECT_EQ(summary.file_bytes, static_cast<int64_t>(std::filesystem::file_size(dir / "tiny.irq")));

  Quantizer quantizer(*backend);
  std::array<float, 256> map = dynamic_map();
  double entropy = 0, blocks = 0;
  for (size_t m = 0; m < names.size(); ++m) {
    const Tensor w = base.tensor(names[m]);
    std::vector<float> wide = widened(w);
    QuantizedMatrix from_file = quantized.matrix(names[m]);
    std::vector<char> memory(static_cast<size_t>(placed_bytes(w.rows, w.cols, from_file.format)));
    QuantizedMatrix expected = place_quantized(memory.data(), w.rows, w.cols, from_file.format,
                                               make_view(map.data(), DType::F32, 1, 256, "map"), Device::CPU);
    const QuantizeStats stats = quantizer.run(expected, make_view(wide.data(), DType::F32, w.rows, w.cols, "w"),
                                              options.icq ? &options.spec : nullptr);
    const auto a = matrix_parts(from_file), b = matrix_parts(expected);
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i)
      EXPECT_EQ(0, std::memcmp(a[i].tensor->data, b[i].tensor->data, static_cast<size_t>(b[i].tensor->bytes())))
          << names[m] << a[i].suffix;
    EXPECT_EQ(stats.entropy, summary.matrices[m].entropy);
    EXPECT_EQ(stats.entropy_plain, summary.matrices[m].entropy_plain);
    entropy += stats.entropy * static_cast<double>(w.numel());
    blocks += static_cast<double>(stats.blocks);
  }
  EXPECT_DOUBLE_EQ(summary.entropy, entropy / static_cast<double>(summary.weights));
  if (options.icq)
    EXPECT_GT(summary.entropy, summary.entropy_plain);  // tau = 0 is not among the candidates, yet better ones are
  else EXPECT_EQ(summary.entropy, summary.entropy_plain);
  int64_t counted = 0;
  for (const int64_t n : summary.histogram) counted += n;
  EXPECT_EQ(static_cast<double>(counted), blocks);

  // What is not a linear is carried over bit for bit, in the source's type.
  for (const char* name : {"embed", "layers.1.ffn_norm", "norm", "head"}) {
    const Tensor a = base.tensor(name), b = quantized.tensor(name);
    ASSERT_EQ(a.dtype, b.dtype);
    EXPECT_EQ(0, std::memcmp(a.data, b.data, static_cast<size_t>(a.bytes()))) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(All, QuantizeBase,
                         ::testing::Values(Case{DType::F32, 4, true}, Case{DType::F16, 3, true},
                                           Case{DType::BF16, 2, true}, Case{DType::F16, 4, false}),
                         [](const auto& info) {
                           return strf("%s_%dbit%s", name_of(info.param.dtype), info.param.bits,
                                       info.param.icq ? "_icq" : "");
                         });

TEST(QuantizeBaseFile, InterruptLeavesTheOlderFile) {
  const TempDir dir;
  write_tiny_base(dir / "tiny.bin", DType::F16);
  std::ofstream(dir / "tiny.irq") << "older";
  auto backend = make_backend("cpu");
  BaseReader base(dir / "tiny.bin");
  install_interrupt_handler();
  EXPECT_THROW(quantize_base(*backend, base, dir / "tiny.irq", {},
                             [](int64_t done, int64_t, const std::string&) {
                               if (done == 5) std::raise(SIGINT);
                             }),
               Error);
  clear_interrupt();
  EXPECT_EQ(read_text(dir / "tiny.irq"), "older");
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(dir.path())) files += entry.is_regular_file();
  EXPECT_EQ(files, 2) << "a temporary file was left behind";
}

TEST(QuantizeBaseFile, CachedNameHoldsWhatDecidesTheCodes) {
  IrqInfo info;
  info.source_hash = 0x0123456789abcdefu;
  EXPECT_EQ(cached_name("models/llama7b.bin", info), "models/llama7b.nf4-icq-l0.1-n100-exact-0123456789ab.irq");
  info.icq.fp32_entropy = true;
  EXPECT_EQ(cached_name("a.b/llama", info), "a.b/llama.nf4-icq-l0.1-n100-fp32-0123456789ab.irq");
  info.icq.lambda = 0.123456789;  // its seventh digit too: 0.1234571 is another search
  EXPECT_EQ(cached_name("x.bin", info), "x.nf4-icq-l0.123456789-n100-fp32-0123456789ab.irq");
  info.icq.lambda = 0.1;
  IrqInfo plain = info;
  plain.format.shift = ShiftKind::none;
  plain.format.bits = 2;
  EXPECT_EQ(cached_name("x.bin", plain), "x.nf2-0123456789ab.irq");
  EXPECT_FALSE(same_quantization(info, plain));
  IrqInfo other = info;
  other.icq.n = 50;
  EXPECT_FALSE(same_quantization(info, other));
  IrqInfo plain_too = plain;
  plain_too.icq.n = 50;  // without a search its parameters mean nothing
  EXPECT_TRUE(same_quantization(plain, plain_too));
}

TEST(QuantizeTool, SummaryReportAndInspection) {
  const TempDir dir;
  write_tiny_base(dir / "tiny.bin", DType::F16);
  const CommandResult r =
      run_command("irq_quantize", {dir / "tiny.bin", dir / "tiny.irq", "--device", "cpu", "--report", dir / "report"});
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.out.find("tiny.irq: 14 matrices, 35,328 weights, NF4 with ICQ\n"), std::string::npos) << r.out;
  EXPECT_NE(r.out.find("bits per weight (mean, before -> after ICQ)"), std::string::npos) << r.out;
  EXPECT_EQ(r.err.rfind("irq_quantize 0", 0), 0u) << r.err;
  const std::string table = read_text(dir / "report/matrices.csv");
  EXPECT_EQ(std::count(table.begin(), table.end(), '\n'), 15);
  EXPECT_EQ(table.rfind("name,rows,cols,entropy_plain,entropy,mse_plain,mse,seconds\n", 0), 0u) << table;
  EXPECT_TRUE(std::filesystem::exists(dir / "report/block_entropy.csv"));
  // The line of errors and the table of everything have the same two numbers, and the means of the matrices are they.
  const auto value = [&](const std::string& name) {
    const std::string text = read_text(dir / "report/summary.csv");
    const size_t at = text.find("\n" + name + ",");
    return at == std::string::npos ? -1.0 : std::stod(text.substr(at + name.size() + 2));
  };
  EXPECT_NE(r.out.find(strf("  error   : %.6g -> %.6g mean squared (as it would be stored without ICQ -> as stored)\n",
                            value("mse_plain"), value("mse"))),
            std::string::npos)
      << r.out;
  double error = 0;
  std::istringstream lines(table.substr(table.find('\n') + 1));
  for (std::string line; std::getline(lines, line);) {
    long rows = 0, cols = 0;
    double h0 = 0, h = 0, mse_plain = 0, mse = 0;
    ASSERT_EQ(std::sscanf(line.c_str() + line.find(','), ",%ld,%ld,%lf,%lf,%lf,%lf,", &rows, &cols, &h0, &h, &mse_plain,
                          &mse),
              6);
    error += mse * static_cast<double>(rows * cols);
  }
  EXPECT_NEAR(error / value("weights"), value("mse"), 1e-8 * value("mse"));  // nine digits are written
  const CommandResult quiet =
      run_command("irq_quantize", {dir / "tiny.bin", dir / "tiny.irq", "--device", "cpu", "--quiet"});
  EXPECT_EQ(quiet.err, "");
  const CommandResult inspected = run_command("irq_inspect", {dir / "tiny.irq"});
  EXPECT_EQ(inspected.status, 0) << inspected.err;
  EXPECT_NE(inspected.out.find("whole"), std::string::npos) << inspected.out;
}

TEST(QuantizeTool, SettingsBeyondThePaper) {
  const TempDir dir;
  write_tiny_base(dir / "tiny.bin", DType::F16);
  const auto quantize = [&](const std::vector<std::string>& flags) {
    std::vector<std::string> args = {dir / "tiny.bin", dir / "tiny.irq", "--device", "cpu", "--quiet"};
    args.insert(args.end(), flags.begin(), flags.end());
    return run_command("irq_quantize", args);
  };
  const CommandResult r = quantize({"--icq-ties", "mse", "--icq-search", "exact", "--icq-width", "block-std",
                                    "--icq-consistent", "--lambda", "0.3"});
  ASSERT_EQ(r.status, 0) << r.err;
  const CommandResult inspected = run_command("irq_inspect", {dir / "tiny.irq"});
  EXPECT_NE(
      inspected.out.find("lambda 0.3, n 100, entropy exact, search exact, ties mse, width block-std, consistent\n"),
      std::string::npos)
      << inspected.out;
  ASSERT_EQ(quantize({"--icq-candidates", "2n", "--n", "7"}).status, 0);
  const struct {
    std::vector<std::string> flags;
    const char *flag, *why;
  } refused[] = {{{"--no-icq", "--icq-ties", "mse"}, "--icq-ties", "--no-icq searches no shifts"},
                 {{"--no-icq", "--icq-consistent"}, "--icq-consistent", "--no-icq searches no shifts"},
                 {{"--entropy", "fp32", "--icq-width", "raw"},
                  "--icq-width",
                  "--entropy fp32 reproduces the released code, whose search has one form"},
                 {{"--icq-search", "exact", "--n", "50"},
                  "--n",
                  "--icq-search exact tries a shift for every histogram between the ends, whatever n is"},
                 {{"--n", "0", "--icq-ties", "mse"}, "--icq-ties", "--n 0 tries the median alone"}};
  for (const auto& c : refused) {
    const CommandResult bad = quantize(c.flags);
    EXPECT_EQ(bad.status, 2);
    EXPECT_EQ(bad.err,
              strf("irq_quantize: %s has no effect here: %s\n  try     : without %s\n", c.flag, c.why, c.flag));
  }
}

TEST(QuantizeTool, Refusals) {
  const TempDir dir;
  write_tiny_base(dir / "tiny.bin", DType::F16);
  const std::string in = dir / "tiny.bin", before = read_text(in);
  EXPECT_EQ(run_command("irq_quantize", {in, in}).status, 2);
  EXPECT_EQ(read_text(in), before);
  std::ofstream(dir / "train.json") << "[1]";
  const CommandResult foreign = run_command("irq_quantize", {in, dir / "train.json"});
  EXPECT_EQ(foreign.status, 2);
  EXPECT_EQ(foreign.err, "irq_quantize: " + (dir / "train.json") +
                             ": is there already, and is not a quantized base model (.irq)\n"
                             "  found   : a file of no kind known here\n"
                             "  try     : rm " +
                             (dir / "train.json") + "    if nobody needs it, or another name\n");
  EXPECT_EQ(read_text(dir / "train.json"), "[1]");
  EXPECT_EQ(run_command("irq_quantize", {in, dir / "o.irq", "--no-icq", "--n", "5"}).status, 2);
  EXPECT_EQ(run_command("irq_quantize", {in, dir / "o.irq", "--bits", "3", "--entropy", "fp32"}).status, 2);
  EXPECT_EQ(run_command("irq_quantize", {in, dir / "no/such/dir/o.irq", "--device", "cpu"}).status, 1);
  // Everything is looked at, whether it is quantized or copied, and the place is named.
  for (const DType dtype : {DType::F32, DType::F16, DType::BF16})
    for (const auto& [name, index, place] : std::initializer_list<std::tuple<const char*, int64_t, const char*>>{
             {"embed", 48 * 7 + 5, "row 7, column 5"},
             {"layers.1.attn_norm", 47, "row 0, column 47"},
             {"layers.0.w_down", 80 * 3, "row 3, column 0"},
             {"norm", 0, "row 0, column 0"},
             {"head", 48 * 40 - 1, "row 39, column 47"}}) {
      write_tiny_base(dir / "bad.bin", dtype, name, index);
      const CommandResult r =
          run_command("irq_quantize", {dir / "bad.bin", dir / "o.irq", "--device", "cpu", "--quiet"});
      EXPECT_EQ(r.status, 1);
      EXPECT_EQ(r.err.find("irq_quantize: " + (dir / "bad.bin") + ": " + name + ": a weight is infinite\n"), 0u)
          << r.err;
      EXPECT_NE(r.err.find(std::string("-inf at ") + place + " (counted"), std::string::npos) << r.err;
      EXPECT_FALSE(std::filesystem::exists(dir / "o.irq"));
    }
  // A damaged byte in the middle is found, and nothing is left under the output's name.
  std::fstream file(in, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(static_cast<std::streamoff>(before.size() / 2));
  file.put(static_cast<char>(before[before.size() / 2] ^ 1));
  file.close();
  const CommandResult damaged = run_command("irq_quantize", {in, dir / "o.irq", "--device", "cpu"});
  EXPECT_EQ(damaged.status, 1);
  EXPECT_NE(damaged.err.find("tiny.bin"), std::string::npos) << damaged.err;
  EXPECT_FALSE(std::filesystem::exists(dir / "o.irq"));
}

}  // namespace
}  // namespace irq
