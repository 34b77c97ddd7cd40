// irq_bench OP|all|step|decode|quantize: times ops, whole training steps, decoding, or quantizing a file, beside the ceilings
// of the same run.
#include <algorithm>
#include <cstdio>

#include "bench/decode_bench.h"
#include "bench/op_bench.h"
#include "bench/quantize_bench.h"
#include "bench/step_bench.h"
#include "bench/variants.h"
#include "src/core/ignored_flags.h"
#include "src/io/config_json.h"
#include "src/train/matmul_cache.h"
#include "tools/cli.h"

namespace irq {
namespace {

struct Arguments {
  std::string what, model, rows;
  std::string tune_matmul = "on", graphs = "on", templates, share_prefixes = "auto";
  int64_t layers = 0;
  bool variants = false, check = false, lora_ratio = false;
  OpBenchOptions op;
  StepBenchOptions step;
  DecodeBenchOptions decode;
  QuantizeBenchOptions quantize;
};

// Small enough for a CPU: seconds for the whole table.
ModelConfig tiny() {
  ModelConfig c;
  c.dim = 256, c.ffn = 688, c.layers = 2, c.heads = c.kv_heads = 4, c.head_dim = 64, c.vocab = 512, c.max_seq = 512;
  return c;
}

std::vector<std::string> op_names() {
  std::vector<std::string> names = {"all", "step", "decode", "quantize"};
#define IRQ_OP(name, ...) names.push_back(#name);
#include "kernels/ops.inc"
#undef IRQ_OP
  return names;
}

void check_name(const Cli& cli, const std::string& what) {
  const std::vector<std::string> names = op_names();
  if (std::find(names.begin(), names.end(), what) != names.end()) return;
  Error error = usage_error(cli.tool(), "there is no op " + what);
  const std::string near = nearest(what, names);
  if (!near.empty()) error.line("likely", near);
  std::string all;
  for (const std::string& n : names) all += (all.empty() ? "" : " ") + n;
  throw error.line("expected", all);
}

int64_t whole_number(const Cli& cli, const std::string& text, const char* flag = "--rows") {
  size_t used = 0;
  int64_t value = 0;
  if (!text.empty() && text.size() < 10 && text.find_first_not_of("0123456789") == std::string::npos)
    value = std::stoll(text, &used);
  if (value <= 0) throw usage_error(cli.tool(), flag + (": '" + text) + "' is not a number of rows");
  return value;
}

// "2048,8192"
std::vector<int64_t> row_list(const Cli& cli, const std::string& text, const char* flag = "--rows") {
  std::vector<int64_t> rows;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    rows.push_back(whole_number(cli, text.substr(begin, end - begin), flag));
    begin = end + 1;
  }
  return rows;
}

void check_arguments(const Arguments& a, const Cli& cli) {
  const bool step = a.what == "step", decode = a.what == "decode", quantize = a.what == "quantize";
  refuse_ignored(
      cli.given_flags(),
      {{step || decode, {"--shape", "--repeats"}, "there are no shapes to choose from, and --steps says how often"},
       {!decode, {"--context"}, "it belongs to decode"},
       {!quantize, {"--file"}, "it belongs to quantize"},
       {quantize,
        {"--shape", "--repeats", "--rows", "--rank", "--peers", "--variants"},
        "quantize takes a whole model once"},
       {!step && !decode && !quantize, {"--bits"}, "it belongs to step, decode and quantize"},
       {!step && !decode, {"--residency", "--steps", "--profile"}, "it belongs to step and decode"},
       {!step,
        {"--dropout", "--iec", "--micro-batch", "--labelled", "--templates", "--share-prefixes", "--recompute",
         "--memory-limit", "--warmup", "--graphs", "--overfit", "--lora-ratio"},
        "it belongs to a training step"},
       {step && a.step.rank == 0, {"--dropout", "--iec"}, "--rank 0 has no adapters"},
       {a.lora_ratio, {"--profile", "--overfit"}, "--lora-ratio times steps with and without adapters"},
       {step || decode, {"--peers", "--variants"}, "it belongs to ops"},
       {!a.variants, {"--check"}, "it belongs to --variants"},
       {a.variants,
        {"--model", "--layers", "--rows", "--rank", "--shape", "--peers"},
        "--variants has its own shapes, those of LLaMA-7B"}});
  if (a.lora_ratio && a.step.rank == 0) throw usage_error(cli.tool(), "--lora-ratio needs adapters: --rank 1 or more");
  if (a.variants && !has_variants(a.what))
    throw usage_error(cli.tool(), "there are no variants of " + a.what)
        .line("expected", "all nfk_dequant icq_search attention_fwd nfk_matmul");
}

// Shapes whose timing kept the library's first choice are only counted.
void print_choices(const std::vector<MatmulTiming>& timings) {
  if (timings.empty()) return;
  std::printf("%s\n", describe(timings).c_str());
  for (const MatmulTiming& t : timings)
    if (t.chosen > 0)
      std::printf("  %6ld x %6ld x %6ld %c%c  number %2d of %2d: %8.1f us instead of %8.1f (%.1f %%)\n", t.m, t.n, t.k,
                  t.transpose_a ? 'T' : 'N', t.transpose_b ? 'T' : 'N', t.chosen + 1, t.candidates, t.chosen_us,
                  t.first_us, 100 * (t.chosen_us / t.first_us - 1));
}

int bench(Arguments& a, const Cli& cli, CheckedBackend& backend) {
  const bool gpu = backend.device() == Device::CUDA;
  if (a.model.empty()) a.model = gpu ? "7b" : "tiny";
  ModelConfig config = a.model == "tiny"            ? tiny()
                       : a.model.ends_with(".json") ? model_config_from_json(a.model)
                                                    : preset_config(a.model);
  if (a.layers > 0) config.layers = a.layers;
  if (a.what != "decode" && a.what != "step" && a.step.rank == 0)
    throw usage_error(cli.tool(), "--rank: 0 is for step and decode only");
  if (a.what == "step") {
    a.step.model = a.model, a.step.config = config;
    if (a.rows.empty()) a.rows = gpu ? "16x512" : "4x32";
    const size_t x = a.rows.find('x');
    if (x == std::string::npos)
      throw usage_error(cli.tool(), "--rows: a step takes SEQUENCESxTOKENS, for example 16x512");
    a.step.sequences = whole_number(cli, a.rows.substr(0, x));
    a.step.length = whole_number(cli, a.rows.substr(x + 1));
    if (cli.given("--templates")) a.step.templates = row_list(cli, a.templates, "--templates");
    for (const int64_t rows : a.step.templates)
      if (rows >= a.step.length)
        throw usage_error(cli.tool(), "--templates: sequences of " + std::to_string(a.step.length) +
                                          " tokens cannot begin with " + std::to_string(rows));
    const bool exact = a.step.dropout == 0;
    a.step.share_prefixes = a.share_prefixes == "on" || (a.share_prefixes == "auto" && exact);
    if (a.lora_ratio) run_lora_ratio(backend, a.step);
    else run_step_bench(backend, a.step);
    return 0;
  }
  if (a.what == "decode") {
    a.decode.model = a.model, a.decode.config = config;
    a.decode.bits = a.step.bits, a.decode.rank = a.step.rank, a.decode.seed = a.step.seed;
    a.decode.residency = a.step.residency == "cached" ? "cached" : "packed";
    a.decode.profile = a.step.profile, a.decode.csv = a.step.csv;
    if (cli.given("--steps")) a.decode.steps = a.step.steps;
    if (!a.rows.empty()) a.decode.sequences = whole_number(cli, a.rows);
    run_decode_bench(backend, a.decode);
    return 0;
  }
  if (a.what == "quantize") {
    a.quantize.model = a.model, a.quantize.config = config;
    a.quantize.bits = a.step.bits, a.quantize.seed = a.step.seed, a.quantize.csv = a.step.csv;
    run_quantize_bench(backend, a.quantize);
    return 0;
  }
  a.op.op = a.what;
  a.op.sizes.config = config;
  a.op.sizes.rows = row_list(cli, a.rows.empty() ? (gpu ? "2048,8192" : "128") : a.rows);
  a.op.sizes.lengths = gpu ? std::vector<int64_t>{128, 512, 2048, 4096} : std::vector<int64_t>{64};
  a.op.sizes.rank = a.step.rank;
  a.op.seed = a.step.seed, a.op.csv = a.step.csv;
  run_op_bench(backend, a.op);
  return 0;
}

}  // namespace
}  // namespace irq

int main(int argc, char** argv) {
  using namespace irq;
  Arguments a;
  StepBenchOptions& s = a.step;
  Cli cli("irq_bench", "time the ops, a training step or decoding, beside the ceilings of the same run");
  cli.positional("OP", &a.what,
                 "an op of kernels/ops.inc, 'all' of them, a training 'step', 'decode', or 'quantize' a file");
  cli.option("--model", &a.model,
             "7b, 13b, 30b, 65b, 2-7b, 2-13b, 2-70b, tiny, or a config.json (default: 7b on a GPU, tiny on a CPU)");
  cli.option("--layers", &a.layers, "as many layers as this instead of the model's");
  cli.range("--layers", 1, 1000);
  cli.option("--rows", &a.rows,
             "token rows: 2048,8192 for ops, 16x512 (sequences x tokens) for a step, sequences for decode");
  cli.option("--file", &a.quantize.file,
             "quantize: a base model's .bin; made of random weights, and removed again, if it is not there");
  cli.option("--context", &a.decode.context, "decode: keys that the first timed token sees");
  cli.range("--context", 1, 1000000);
  cli.option("--shape", &a.op.shape, "only cases whose shape contains this; for matmul also MxNxK");
  cli.option("--repeats", &a.op.repeats, "timed repeats of an op");
  cli.range("--repeats", 1, 10000);
  cli.flag("--variants", &a.variants,
           "nfk_dequant, icq_search, attention_fwd, nfk_matmul, all: the teaching variants of bench/variants, checked "
           "and timed");
  cli.flag("--check", &a.check, "--variants: only compare with the CPU reference, time nothing");
  cli.option("--peers", &a.op.peers,
             "ops: times of other programs on this GPU (bench/peers/*.py --json FILE), for ratios");
  cli.option("--rank", &s.rank, "LoRA rank; step, decode: 0 = no adapters");
  cli.range("--rank", 0, 4096);
  cli.option("--bits", &s.bits, "step, decode, quantize: bits per weight", {2, 3, 4});
  cli.option("--dropout", &s.dropout, "step: dropout before A");
  cli.range("--dropout", 0, 0.99);
  cli.flag("--iec", &s.iec, "step: elastic connections (default)", "--no-iec");
  cli.option("--micro-batch", &s.micro_batch, "step: sequences at a time (default: all)");
  cli.range("--micro-batch", 1, 1000000);
  cli.option("--labelled", &s.labelled, "step: share of the tokens that are scored");
  cli.range("--labelled", 0.001, 1);
  cli.option(
      "--templates", &a.templates,
      "step: sequences begin with this many tokens that never change, e.g. 29,39 in turns (Alpaca's two prompts), to "
      "which --labelled must leave room");
  cli.option("--share-prefixes", &a.share_prefixes,
             "step: compute what sequences begin alike with once; auto: where there is no dropout",
             {"auto", "on", "off"});
  cli.option("--residency", &s.residency, "step, decode: base weights packed, or kept in 16 bits",
             {"auto", "packed", "cached"});
  cli.option("--recompute", &s.recompute, "step: what is computed again",
             {"auto", "none", "norms", "gate_up", "block"});
  cli.size_option("--memory-limit", &s.memory_limit, "step: at most this much memory");
  cli.option("--tune-matmul", &a.tune_matmul, "time the algorithms of each matrix product first, run the fastest",
             {"on", "off"});
  cli.option("--graphs", &a.graphs, "step: record the passes of a step and replay them", {"on", "off"});
  cli.flag("--overfit", &s.overfit, "step: the same tokens in every step, learning rate 1e-3; the loss must fall");
  cli.flag("--lora-ratio", &a.lora_ratio, "step: time it with and without adapters, and print the ratio");
  cli.option("--steps", &s.steps, "step, decode: timed steps");
  cli.range("--steps", 1, 100000);
  cli.option("--warmup", &s.warmup, "step: steps before that");
  cli.range("--warmup", 1, 100000);
  cli.flag("--profile", &s.profile, "step, decode: also the share of each op");
  cli.option("--seed", &s.seed, "of the random data");
  cli.flag("--csv", &s.csv, "comma-separated values");
  cli.footer(
      "Examples:  ./irq_bench all    ./irq_bench attention_fwd --rows 8192    ./irq_bench step --model 7b --rows "
      "16x123 --profile");
  return cli.run(argc, argv, [&] {
    check_name(cli, a.what);
    check_arguments(a, cli);
    if (a.variants) {
      if (cli.device() == "cpu")
        throw usage_error(cli.tool(), "--variants: the variants are CUDA kernels, not for --device cpu");
      return run_variant_bench({a.what, a.check, a.op.repeats, s.seed, s.csv});
    }
    const auto backend = cli.backend();
    s.graphs = a.graphs == "on";
    backend->tune_matmul(a.tune_matmul == "on");
    const int status = bench(a, cli, *backend);
    if (!a.step.csv) print_choices(backend->take_matmul_timings());
    return status;
  });
}
