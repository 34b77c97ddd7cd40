// irq_quantize BASE OUT.irq: a model's linears to 2-4 bits: NF-k, calibrated by ICQ unless told otherwise, or integers, rounded
// to nearest or by GPTQ.
#include <cstdio>

#include "src/core/file.h"
#include "src/core/ignored_flags.h"
#include "src/core/progress.h"
#include "src/io/synthetic.h"
#include "src/text/instruct.h"
#include "src/text/tokenizer.h"
#include "src/train/gptq_base.h"
#include "tools/session.h"

namespace irq {
namespace {

struct Arguments {
  std::string base, out, format = "nf", entropy = "exact", report;
  std::string group = "128", search = "clip", calibration;
  int64_t samples = kCalibrationSamples, length = kCalibrationLength;
  QuantizeOptions options;
  bool integer() const { return options.format != BaseFormat::nf; }
  bool gptq() const { return options.format == BaseFormat::gptq; }
  bool searches() const { return integer() ? options.integers.search != IntSearch::none : options.icq; }
};

// What the flags mean together.
void resolve(Arguments& a, const Cli& cli) {
  QuantizeOptions& o = a.options;
  o.format = base_format(a.format);
  o.spec.fp32_entropy = a.entropy == "fp32";
  if (!a.integer()) return;
  o.icq = o.icq && cli.given("--icq");  // integers are searched on demand alone
  o.integers.group = parse_group(a.group);
  if (!o.icq) return;
  o.integers.search = a.search == "clip" ? IntSearch::clip : IntSearch::zero_shift;
  o.integers.range = o.spec.lambda;
  if (cli.given("--n")) o.integers.n = o.spec.n;
}

void check_integers(const Arguments& a) {
  const QuantizeOptions& o = a.options;
  const IntSpec& spec = o.integers;
  if (spec.symmetric && spec.search == IntSearch::zero_shift)
    throw Error("--sym and --int-search zero-shift contradict each other", Exit::usage)
        .line("likely", "a symmetric zero point stays in the middle, a shift would move it")
        .line("try", "--int-search clip");
  if (spec.search == IntSearch::clip && spec.range >= 1)
    throw Error(strf("--lambda %g: the clip range ends at 1 - lambda times itself", spec.range), Exit::usage)
        .line("expected", "below 1; the released code has 0.1");
  if (o.act_order && spec.group != kPerChannel)
    throw Error("--act-order with groups of " + a.group + " weights", Exit::usage)
        .line("likely",
              "reordered columns spread each group over the whole row, so that its range would have to be "
              "fixed before any error is carried into it")
        .line("try", "--group channel");
  if (a.gptq() && a.calibration.empty())
    throw Error("--format gptq needs data to measure the activations on", Exit::usage)
        .line("try", "--calibration FILE: the finetuning data, a text, or an llm.c token file");
}

void check_arguments(const Arguments& a, const Cli& cli) {
  const bool nf = !a.integer(), gptq = a.gptq();
  const std::string format = "--format " + a.format;
  const std::string none = nf ? "--no-icq searches no shifts" : format + " searches nothing unless --icq is given";
  refuse_ignored(
      cli.given_flags(),
      {{nf, {"--group", "--sym", "--int-search"}, "--format nf has blocks of 64 and no zero points"},
       {!gptq, {"--calibration", "--calibration-samples", "--calibration-len"}, format + " looks at the weights alone"},
       {!gptq, {"--act-order", "--gptq-fresh"}, format + " rounds each weight for itself"},
       {!a.searches(), {"--lambda", "--n", "--entropy", "--int-search"}, none},
       {!nf, {"--entropy"}, "integers are searched with exact entropies"},
       {a.options.spec.fp32_entropy && a.options.bits != 4, {"--entropy"}, kReleasedBits}});
  if (!nf) check_integers(a);
  if (gptq) refuse_overwriting(a.out, {a.calibration});
  refuse_overwriting(a.out, model_files(a.base));
  refuse_replacing(a.out, FileKind::quantized);
  if (!a.report.empty())
    for (const char* table : kReportTables) {
      refuse_overwriting(a.report + "/" + table, model_files(a.base));
      refuse_overwriting(a.report + "/" + table, {a.out});
    }
}

double search_seconds(const CheckedBackend& backend) {
  for (const OpTime& t : backend.profile())
    if (t.op == "icq_search" || t.op == "int_params") return t.ms / 1000;
  return 0;
}

void print_summary(const Arguments& a, const QuantizeSummary& s, const CheckedBackend& backend) {
  const double weights = static_cast<double>(s.weights), bytes = static_cast<double>(s.bytes);
  const auto row = [](const char* label, const std::string& text) { std::printf("  %-8s: %s\n", label, text.c_str()); };
  std::string kind = strf("%s%d", a.integer() ? "INT" : "NF", a.options.bits);
  if (a.gptq()) kind += " by GPTQ";
  if (a.integer()) kind += a.options.integers.group == kPerChannel ? ", a scale a row" : ", groups of " + a.group;
  if (a.options.integers.symmetric) kind += ", symmetric";
  const char* search = !a.integer()         ? "ICQ"
                       : a.search == "clip" ? "integer ICQ (clip range)"
                                            : "integer ICQ (zero point)";
  std::printf("%s: %zu matrices, %s weights, %s%s\n", a.out.c_str(), s.matrices.size(), with_commas(s.weights).c_str(),
              kind.c_str(), a.searches() ? (std::string(" with ") + search).c_str() : "");
  if (a.gptq())
    row("entropy",
        strf("%.4f -> %.4f bits per weight (mean, rounded to nearest -> as stored)", s.entropy_plain, s.entropy));
  else if (a.searches())
    row("entropy", strf("%.4f -> %.4f bits per weight (mean, before -> after ICQ)", s.entropy_plain, s.entropy));
  else row("entropy", strf("%.4f bits per weight (mean)", s.entropy));
  row("size", strf("%s -> %s, %.3f bits per weight; the file has %s bytes",
                   human_bytes(static_cast<double>(s.source_bytes)).c_str(), human_bytes(bytes).c_str(),
                   8 * bytes / weights, with_commas(s.file_bytes).c_str()));
  if (a.gptq())
    row("data", strf("%s: %zu sequences, %s tokens", a.calibration.c_str(), a.options.calibration.sequences.size(),
                     with_commas(a.options.calibration.tokens).c_str()));
  row("time", a.searches() ? strf("%.2f s, of which %.2f s in the search", s.seconds, search_seconds(backend))
                           : strf("%.2f s", s.seconds));
}

// Texts and token files in windows of --calibration-len tokens, records whole.
void load_calibration(Arguments& a, const ModelConfig& config, Cli& cli) {
  const auto tokenizer = find_and_open_tokenizer(a.base);
  const LoadedData data = load_data(a.calibration, tokenizer.get(), {a.length, a.length, a.length, 0, config.vocab});
  cli.note(data.describe());
  a.options.calibration = choose_calibration(data.examples, a.samples, a.length, kSyntheticSeed, a.calibration);
}

int quantize(Arguments& a, Cli& cli) {
  resolve(a, cli);
  check_arguments(a, cli);
  const auto in = open_base(a.base, kSyntheticSeed);
  if (a.gptq()) load_calibration(a, in->config(), cli);
  const auto backend = cli.backend();
  backend->set_profile(true);
  const int64_t matrices = 7 * in->config().layers;
  ProgressBar bar("quantize", matrices, "matrices", cli.quiet());
  const QuantizeSummary summary = quantize_as_asked(
      *backend, *in, a.out, a.options, [&](int64_t done, int64_t, const std::string& name) { bar.update(done, name); });
  bar.finish();
  if (const std::string carried = carry_tokenizer(a.base, a.out); !carried.empty()) cli.note(carried);
  if (!a.report.empty()) write_quantize_report(a.report, summary);
  print_summary(a, summary, *backend);
  return 0;
}

}  // namespace
}  // namespace irq

int main(int argc, char** argv) {
  using namespace irq;
  Arguments a;
  Cli cli("irq_quantize", "quantize a model's linears to 2-4 bits");
  cli.positional("BASE", &a.base, "the model: a .bin, or a config.json for random weights");
  cli.positional("OUT.irq", &a.out, "the quantized model");
  cli.option("--bits", &a.options.bits, "bits per weight", {2, 3, 4});
  cli.option("--format", &a.format, "code book: NormalFloat, integers, GPTQ", {"nf", "int", "gptq"});
  cli.flag("--icq", &a.options.icq, "search each block for the most entropy (default for nf)", "--no-icq");
  cli.option("--lambda", &a.options.spec.lambda,
             "the search spans lambda * sigma (clip: lambda of the range) on both sides");
  cli.range("--lambda", 0, 100);
  cli.option("--n", &a.options.spec.n, "the search tries 2n + 1 candidates (default for integers: 50)");
  cli.range("--n", 0, 100000);
  cli.option("--entropy", &a.entropy, "exact integers, or fp32 sums as in the released code", {"exact", "fp32"});
  cli.option("--group", &a.group, "integers: weights of a row that share a scale, or channel");
  cli.flag("--sym", &a.options.integers.symmetric, "integers: the zero point in the middle");
  cli.option("--int-search", &a.search, "integers with --icq: what is searched", {"clip", "zero-shift"});
  cli.option("--calibration", &a.calibration, "gptq: finetuning data, text or token file to measure activations on");
  cli.option("--calibration-samples", &a.samples, "gptq: samples * len tokens of it at most");
  cli.range("--calibration-samples", 1, 1 << 20);
  cli.option("--calibration-len", &a.length, "gptq: tokens of a sequence");
  cli.range("--calibration-len", 2, 1 << 17);
  cli.flag("--act-order", &a.options.act_order, "gptq: the most active columns first (--group channel)");
  cli.flag("--gptq-fresh", &a.options.fresh, "gptq: read each group's range with all errors carried over");
  cli.option("--report", &a.report, "a folder for tables of entropy per matrix and per block");
  cli.footer(
      "Examples:  ./irq_quantize llama7b.bin llama7b.irq --bits 4\n"
      "./irq_quantize llama7b.bin llama7b-gptq.irq --bits 4 --format gptq --calibration alpaca_data.json");
  return cli.run(argc, argv, [&] { return quantize(a, cli); });
}
