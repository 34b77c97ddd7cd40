// irq_eval MODEL: what a model is worth. The loss on a data file; the logits of a given sequence.
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "src/core/file.h"
#include "src/core/progress.h"
#include "src/eval/perplexity.h"
#include "src/io/npy.h"
#include "src/text/instruct.h"
#include "tools/session.h"

namespace irq {
namespace {

struct Arguments {
  std::string model, adapter, loss, json, legacy = "auto";
  int64_t window = 0, stride = 0;
  std::vector<std::string> logits;  // {ids, file}
};

void check_arguments(const Arguments& a, const Cli& cli) {
  if (a.loss.empty() && a.logits.empty()) throw usage_error(cli.tool(), "nothing to evaluate: give --loss or --logits");
  if (a.loss.empty() && (cli.given("--window") || cli.given("--stride")))
    throw usage_error(cli.tool(), "--window and --stride belong to --loss");
}

LoadedData read_data(const Arguments& a, const Cli& cli, const ModelConfig& config) {
  constexpr int64_t kLongestWindow = 2048;
  DataOptions options;
  options.vocab = config.vocab;
  options.window = a.window > 0 ? a.window : std::min(config.max_seq, kLongestWindow);
  options.stride = a.stride;
  if (options.stride > options.window)
    throw usage_error(cli.tool(),
                      strf("--stride: %ld is more than the window of %ld tokens", options.stride, options.window));
  const auto tokenizer = find_and_open_tokenizer(a.model, legacy_of(a.legacy));
  LoadedData data = load_data(a.loss, tokenizer.get(), options);
  const bool stream = data.form == DataForm::text || data.form == DataForm::tokens;
  if (!stream && (a.window > 0 || a.stride > 0))
    throw usage_error(
        cli.tool(), "--window and --stride cut plain text and token files; " + a.loss + " holds " + name_of(data.form));
  cli.note(data.describe());
  for (const std::string& w : data.warnings) cli.note("note: " + w);
  return data;
}

void note_length(const Cli& cli, int64_t longest, const ModelConfig& config) {
  if (longest > config.max_seq)
    cli.note(strf("note: sequences have up to %ld tokens, the model was made for %ld", longest, config.max_seq));
}

LossResult run_loss(const Cli& cli, ModelSession& session, const LoadedData& data, int64_t max_rows) {
  ProgressBar bar("loss", data.rows, "tok", cli.quiet());
  const LossResult result = evaluate_loss(session, data.examples, max_rows, [&](int64_t done) { bar.update(done); });
  bar.finish(strf("loss: %s tokens in %.1f s", with_commas(data.rows).c_str(), bar.elapsed_s()));
  const int width = std::max<int>(4, static_cast<int>(base_name(data.path).size()));
  std::printf("%-*s  %14s  %10s  %12s\n", width, "data", "tokens scored", "nll", "perplexity");
  std::printf("%-*s  %14s  %10.6f  %12.4f\n", width, base_name(data.path).c_str(), with_commas(result.tokens).c_str(),
              result.nll(), result.perplexity());
  return result;
}

void write_logits(const Cli& cli, ModelSession& session, const std::vector<int32_t>& ids, const std::string& path) {
  const std::vector<float> logits = session.logits(every_position(ids));
  write_npy(path, {static_cast<int64_t>(ids.size()), session.config().vocab}, logits);
  cli.note(strf("%s: logits (%zu, %ld) f32", path.c_str(), ids.size(), session.config().vocab));
}

int evaluate(const Arguments& a, Cli& cli) {
  check_arguments(a, cli);
  const auto backend = cli.backend();
  ModelSession session(*backend, a.model, a.adapter);
  const ModelConfig& config = session.config();

  // What is wanted, and the batches it takes: every task adds its own to each choice of batch size.
  LoadedData data;
  LossWorkloads work{{Workload{}}, {0}};
  if (!a.loss.empty()) {
    data = read_data(a, cli, config);
    work = loss_workloads(data.examples, backend->device());
  }
  std::vector<int32_t> ids;
  if (!a.logits.empty()) {
    ids = parse_ids("--logits", a.logits[0], config.vocab);
    for (Workload& w : work.workloads) {
      w.logits.push_back(shape_of(every_position(ids)));
      w.positions = std::max(w.positions, static_cast<int64_t>(ids.size()));
    }
  }
  note_length(cli, work.workloads[0].positions, config);
  const size_t chosen = load_session(cli, session, work.workloads);

  nlohmann::ordered_json report = nlohmann::ordered_json::object();
  if (!a.loss.empty()) {
    const LossResult r = run_loss(cli, session, data, work.max_rows[chosen]);
    report["loss"] = {{"nll", r.nll()}, {"tokens", r.tokens}, {"perplexity", r.perplexity()}};
  }
  if (!ids.empty()) write_logits(cli, session, ids, a.logits[1]);
  if (!a.json.empty()) write_text_file(a.json, report.dump(2) + "\n");
  return 0;
}

}  // namespace
}  // namespace irq

int main(int argc, char** argv) {
  using namespace irq;
  Arguments a;
  Cli cli("irq_eval", "the loss of a model on a data file, or its logits");
  cli.positional("MODEL", &a.model, "a .bin, a .irq, or a config.json (random weights)");
  cli.option("--adapter", &a.adapter, "a .lora trained on this model");
  cli.option("--loss", &a.loss, "data file: mean loss per trainable token, and perplexity");
  cli.option("--window", &a.window, "text and token files: tokens per sequence, 0 = the model's context, at most 2048");
  cli.range("--window", 0, 1 << 24);
  cli.option("--stride", &a.stride, "from one window to the next, 0 = the window; the overlap is context only");
  cli.range("--stride", 0, 1 << 24);
  cli.option("--logits", &a.logits,
             "token ids (1,2,3) and a .npy file: the logits of every position, (tokens, vocabulary) f32", 2);
  declare_legacy(cli, &a.legacy);
  cli.option("--json", &a.json, "write the results to this file as well");
  cli.footer(
      "./irq_eval llama7b.irq --adapter runs/llama7b/adapter.lora --loss heldout.json --json loss.json\n"
      "./irq_eval llama7b.bin --loss wiki.txt --window 2048 --stride 512\n"
      "./irq_eval llama7b.bin --logits 1,15043,3186 logits.npy");
  return cli.run(argc, argv, [&] { return evaluate(a, cli); });
}
