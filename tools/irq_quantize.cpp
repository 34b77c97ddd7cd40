// irq_quantize BASE OUT.irq: a model's linears to 2-4 bits, calibrated by ICQ unless told otherwise.
#include <algorithm>
#include <cstdio>

#include "src/core/file.h"
#include "src/core/ignored_flags.h"
#include "src/core/progress.h"
#include "src/io/synthetic.h"
#include "src/text/tokenizer.h"
#include "src/train/loftq_base.h"
#include "tools/session.h"

namespace irq {
namespace {

struct Arguments {
  std::string base, out, format = "nf", entropy = "exact", report;
  QuantizeOptions options;
  int64_t loftq_rank = 0;  // 0: no LoftQ
  int loftq_iters = LoftqSpec{}.turns;
};

// OUT.lora is LoftQ's to write, unless it is an adapter that somebody trained.
void check_adapter_path(const Arguments& a, const ModelConfig& config) {
  const std::string path = loftq_adapter_path(a.out);
  const int64_t narrowest = std::min({config.dim, config.kv_width(), config.ffn});
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
  if (a.format != "nf")
    throw Error("--format " + a.format + ": this version writes nf only", Exit::usage).line("try", "--format nf");
  refuse_ignored(
      cli.given_flags(),
      {{a.loftq_rank > 0 && a.options.icq, {"--icq", "--lambda", "--n", "--entropy"}, "--loftq searches no shifts"},
       {a.loftq_rank == 0, {"--loftq-iters"}, "there is no --loftq"},
       {!a.options.icq, {"--lambda", "--n", "--entropy"}, "--no-icq searches no shifts"},
       {a.options.spec.fp32_entropy && a.options.bits != 4, {"--entropy"}, kReleasedBits}});
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
    if (t.op == "icq_search") return t.ms / 1000;
  return 0;
}

void print_summary(const Arguments& a, const QuantizeSummary& s, const CheckedBackend& backend) {
  const double weights = static_cast<double>(s.weights), bytes = static_cast<double>(s.bytes);
  const auto row = [](const char* label, const std::string& text) { std::printf("  %-8s: %s\n", label, text.c_str()); };
  std::printf("%s: %zu matrices, %s weights, NF%d%s\n", a.out.c_str(), s.matrices.size(),
              with_commas(s.weights).c_str(), a.options.bits, a.options.icq ? " with ICQ" : "");
  if (a.options.icq)
    row("entropy", strf("%.4f -> %.4f bits per weight (mean, before -> after ICQ)", s.entropy_plain, s.entropy));
  else row("entropy", strf("%.4f bits per weight (mean)", s.entropy));
  row("size", strf("%s -> %s, %.3f bits per weight; the file has %s bytes",
                   human_bytes(static_cast<double>(s.source_bytes)).c_str(), human_bytes(bytes).c_str(),
                   8 * bytes / weights, with_commas(s.file_bytes).c_str()));
  if (a.options.loftq) {
    std::printf("%s\n", describe_loftq(s).c_str());
    row("adapter", loftq_adapter_path(a.out) + strf(": rank %ld, where --method loftq starts", a.loftq_rank));
  }
  row("time", a.options.icq ? strf("%.2f s, of which %.2f s in the search", s.seconds, search_seconds(backend))
                            : strf("%.2f s", s.seconds));
}

int quantize(Arguments& a, Cli& cli) {
  a.options.spec.fp32_entropy = a.entropy == "fp32";
  if (a.loftq_rank > 0) a.options.loftq = LoftqSpec{.rank = a.loftq_rank, .turns = a.loftq_iters};
  check_arguments(a, cli);
  if (a.options.loftq) a.options.icq = false;
  const auto in = open_base(a.base, kSyntheticSeed);
  if (a.options.loftq) check_adapter_path(a, in->config());
  const auto backend = cli.backend();
  backend->set_profile(true);
  const int64_t matrices = 7 * in->config().layers;
  ProgressBar bar("quantize", matrices, "matrices", cli.quiet());
  const auto make = a.options.loftq ? make_loftq_base : quantize_base;
  const QuantizeSummary summary = make(*backend, *in, a.out, a.options,
                                       [&](int64_t done, int64_t, const std::string& name) { bar.update(done, name); });
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
  cli.flag("--icq", &a.options.icq, "search each block's shift for the most entropy (default)", "--no-icq");
  cli.option("--lambda", &a.options.spec.lambda, "the search spans lambda * sigma on both sides");
  cli.range("--lambda", 0, 100);
  cli.option("--n", &a.options.spec.n, "the search tries 2n + 1 shifts");
  cli.range("--n", 0, 100000);
  cli.option("--entropy", &a.entropy, "exact integers, or fp32 sums as in the released code", {"exact", "fp32"});
  cli.option("--loftq", &a.loftq_rank, "make OUT.lora too: LoftQ's initial adapter of this rank, for --method loftq");
  cli.range("--loftq", 8, 4096);
  cli.option("--loftq-iters", &a.loftq_iters, "LoftQ's turns of quantizing and correcting");
  cli.range("--loftq-iters", 1, 100);
  cli.option("--report", &a.report, "a folder for tables of entropy per matrix and per block");
  cli.footer("Example:  ./irq_quantize llama7b.bin llama7b.irq --bits 4");
  return cli.run(argc, argv, [&] { return quantize(a, cli); });
}
