// irq_quantize BASE OUT.irq: a model's linears to 2-4 bits: NF-k, calibrated by ICQ unless told otherwise, or integers, rounded
// to nearest or by GPTQ.
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "src/core/file.h"
#include "src/core/ignored_flags.h"
#include "src/core/progress.h"
#include "src/io/synthetic.h"
#include "src/text/instruct.h"
#include "src/text/tokenizer.h"
#include "src/train/gptq_base.h"
#include "src/train/loftq_base.h"
#include "tools/icq_flags.h"
#include "tools/session.h"

namespace irq {
namespace {

struct Arguments {
  std::string base, out, format = "nf", entropy = "exact", report, json;
  std::string group = "128", search = "clip", calibration;
  int64_t samples = kCalibrationSamples, length = kCalibrationLength;
  double lambda = IcqSpec{}.lambda;
  int n = IcqSpec{}.n;
  IcqWords icq;
  int64_t loftq_rank = 0;  // 0: no LoftQ
  int loftq_iters = LoftqSpec{}.turns;
  QuantizeOptions options;
  bool integer() const { return options.format != BaseFormat::nf; }
  bool gptq() const { return options.format == BaseFormat::gptq; }
  bool searches() const { return integer() ? options.integers.search != IntSearch::none : options.icq && !loftq(); }
  bool loftq() const { return loftq_rank > 0; }
};

// What the flags mean together.
void resolve(Arguments& a, const Cli& cli) {
  QuantizeOptions& o = a.options;
  o.format = base_format(a.format);
  o.spec = icq_spec(a.lambda, a.n, a.entropy, a.icq);
  o.errors = !a.gptq();  // GPTQ's aim is another: the outputs on the calibration data
  if (a.loftq()) o.loftq = LoftqSpec{.rank = a.loftq_rank, .turns = a.loftq_iters};
  if (!a.integer()) return;
  o.icq = o.icq && cli.given("--icq");  // integers are searched on demand alone
  o.integers.group = parse_group(a.group);
  if (!o.icq) return;
  o.integers.search = a.search == "clip" ? IntSearch::clip : IntSearch::zero_shift;
  o.integers.range = a.lambda;
  if (cli.given("--n")) o.integers.n = a.n;
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

// OUT.lora is LoftQ's to write, unless it is an adapter that somebody trained.
void check_adapter_path(const Arguments& a, const ModelConfig& config) {
  const std::string path = loftq_adapter_path(a.out);
  const int64_t narrowest = narrowest_linear(config);
  if (a.loftq_rank % 8 != 0 || a.loftq_rank > narrowest)
    throw Error(strf("--loftq %ld: this rank cannot be trained", a.loftq_rank), Exit::usage)
        .line("expected", strf("a multiple of 8, at most %ld, the narrowest linear of this model", narrowest));
  refuse_overwriting(path, model_files(a.base));
  refuse_replacing(path, FileKind::adapter);
  if (!file_exists(path) || sniff(path) != FileKind::adapter) return;
  if (const std::string method = AdapterReader(path).info().method; method != kLoftqInit)
    throw Error(path + ": is there already, and LoftQ's initial adapter goes there", Exit::usage)
        .line("found", "an adapter of " + method)
        .line("try", "another name for OUT.irq");
}

void check_arguments(const Arguments& a, const Cli& cli) {
  const bool nf = !a.integer(), gptq = a.gptq();
  const std::string format = "--format " + a.format;
  const std::string none = a.loftq() ? "--loftq searches no shifts"
                           : nf      ? "--no-icq searches no shifts"
                                     : format + " searches nothing unless --icq is given";
  refuse_ignored(
      cli.given_flags(),
      {{nf, {"--group", "--sym", "--int-search"}, "--format nf has blocks of 64 and no zero points"},
       {!gptq, {"--calibration", "--calibration-samples", "--calibration-len"}, format + " looks at the weights alone"},
       {!gptq, {"--act-order", "--gptq-fresh"}, format + " rounds each weight for itself"},
       {!nf, {"--loftq", "--loftq-iters"}, "LoftQ's codes are NormalFloat"},
       {!a.loftq(), {"--loftq-iters"}, "there is no --loftq"},
       {a.loftq() && a.options.icq, {"--icq"}, none},
       {!a.searches(), {"--int-search"}, none},
       {!a.searches(), kIcqFlags, none},
       {!nf, kIcqNfFlags, "integers are searched with exact entropies, over a grid"},
       {a.options.spec.fp32_entropy && a.options.bits != 4, {"--entropy"}, kReleasedBits}});
  if (nf) refuse_ignored(cli.given_flags(), ignored_icq_flags(a.options.spec));
  else check_integers(a);
  if (gptq) refuse_overwriting(a.out, {a.calibration});
  refuse_overwriting(a.out, model_files(a.base));
  refuse_replacing(a.out, FileKind::quantized);
  if (!a.json.empty()) refuse_overwriting(a.json, model_files(a.base)), refuse_overwriting(a.json, {a.out});
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
  if (a.searches() && !a.gptq())
    row("error",
        strf("%.6g -> %.6g mean squared (as it would be stored without ICQ -> as stored)", s.error_plain, s.error));
  else if (!a.gptq()) row("error", strf("%.6g mean squared, as stored", s.error));
  row("size", strf("%s -> %s, %.3f bits per weight; the file has %s bytes",
                   human_bytes(static_cast<double>(s.source_bytes)).c_str(), human_bytes(bytes).c_str(),
                   8 * bytes / weights, with_commas(s.file_bytes).c_str()));
  if (a.loftq()) {
    std::printf("%s\n", describe_loftq(s).c_str());
    row("adapter", loftq_adapter_path(a.out) + strf(": rank %ld, where --method loftq starts", a.loftq_rank));
  }
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
  if (a.options.calibration.tokens < 4 * config.ffn)
    cli.note(
        strf("note: %s tokens of calibration for linears with up to %s inputs: GPTQ follows what they have in common "
             "and may "
             "do worse than --format int; a few times as many tokens as inputs are wanted",
             with_commas(a.options.calibration.tokens).c_str(), with_commas(config.ffn).c_str()));
}

// The same for programs; sizes in bytes, entropies in bits per weight, times in seconds.
void write_json(const std::string& path, const QuantizeSummary& s, const CheckedBackend& backend) {
  const nlohmann::ordered_json report = {{"device", backend.describe()},
                                         {"weights", s.weights},
                                         {"source_bytes", s.source_bytes},
                                         {"bytes", s.bytes},
                                         {"file_bytes", s.file_bytes},
                                         {"entropy_plain", s.entropy_plain},
                                         {"entropy", s.entropy},
                                         {"error_plain", s.error_plain},
                                         {"error", s.error},
                                         {"seconds", s.seconds},
                                         {"device_seconds", s.device_seconds},
                                         {"search_seconds", search_seconds(backend)}};
  write_text_file(path, report.dump(2) + "\n");
}

int quantize(Arguments& a, Cli& cli) {
  resolve(a, cli);
  check_arguments(a, cli);
  if (a.loftq()) a.options.icq = false;
  const auto in = open_base(a.base, kSyntheticSeed);
  if (a.loftq()) check_adapter_path(a, in->config());
  if (a.gptq()) load_calibration(a, in->config(), cli);
  const auto backend = cli.backend();
  backend->set_profile(true);
  const int64_t matrices = 7 * in->config().layers;
  ProgressBar bar("quantize", matrices, "matrices", cli.quiet());
  const auto make = a.loftq() ? make_loftq_base : quantize_as_asked;
  const QuantizeSummary summary = make(*backend, *in, a.out, a.options,
                                       [&](int64_t done, int64_t, const std::string& name) { bar.update(done, name); });
  bar.finish();
  if (const std::string carried = carry_tokenizer(a.base, a.out); !carried.empty()) cli.note(carried);
  if (!a.report.empty()) write_quantize_report(a.report, summary);
  print_summary(a, summary, *backend);
  if (!a.json.empty()) write_json(a.json, summary, *backend);
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
  cli.option("--lambda", &a.lambda, "the search spans lambda * sigma (clip: lambda of the range) on both sides");
  cli.range("--lambda", 0, 100);
  cli.option("--n", &a.n, "the search tries 2n + 1 candidates (default for integers: 50)");
  cli.range("--n", 0, 100000);
  cli.option("--entropy", &a.entropy, "exact integers, or fp32 sums as in the released code", {"exact", "fp32"});
  declare_icq(cli, &a.icq);
  cli.option("--loftq", &a.loftq_rank, "make OUT.lora too: LoftQ's initial adapter of this rank, for --method loftq");
  cli.range("--loftq", 8, 4096);
  cli.option("--loftq-iters", &a.loftq_iters, "LoftQ's turns of quantizing and correcting");
  cli.range("--loftq-iters", 1, 100);
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
  cli.option("--report", &a.report, "a folder for tables: entropy and error per matrix, entropy per block, and in all");
  cli.option("--json", &a.json, "write sizes, entropies, errors and times to this file as well");
  cli.footer(
      "Examples:  ./irq_quantize llama7b.bin llama7b.irq --bits 4\n"
      "./irq_quantize llama7b.bin llama7b-gptq.irq --bits 4 --format gptq --calibration alpaca_data.json");
  return cli.run(argc, argv, [&] { return quantize(a, cli); });
}
