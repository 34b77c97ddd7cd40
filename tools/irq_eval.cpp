// irq_eval MODEL: what a model is worth. The loss on a data file; multiple-choice questions; MMLU; the logits of a given
// sequence.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <optional>
#include <set>

#include "src/core/file.h"
#include "src/core/ignored_flags.h"
#include "src/core/progress.h"
#include "src/eval/perplexity.h"
#include "src/io/npy.h"
#include "src/text/eval_file.h"
#include "src/text/instruct.h"
#include "tools/eval_report.h"
#include "tools/session.h"

namespace irq {
namespace {

struct Arguments {
  std::string model, adapter, loss, json, mmlu, csv = "pandas", legacy = "auto";
  int64_t window = 0, stride = 0, shots = 5, limit = 0;
  bool partial = false, add_bos = false;
  std::vector<std::string> logits;  // {ids, file}
  std::vector<std::string> choice;
};

// The files that a.mmlu is read from; other files may be in that folder.
std::vector<std::string> files_of_mmlu(const std::string& folder) {
  std::vector<std::string> paths;
  std::error_code ignored;
  for (const char* part : {"/dev", "/test"})
    for (const auto& entry : std::filesystem::directory_iterator(folder + part, ignored))
      paths.push_back(entry.path().string());
  return paths;
}

void check_outputs(const Arguments& a) {
  std::vector<std::string> inputs = model_files(a.model, a.adapter);
  inputs.push_back(a.loss);
  inputs.insert(inputs.end(), a.choice.begin(), a.choice.end());
  if (!a.mmlu.empty())
    for (const std::string& path : files_of_mmlu(a.mmlu)) inputs.push_back(path);
  if (!a.json.empty()) refuse_overwriting(a.json, inputs);
  if (a.logits.empty()) return;
  refuse_overwriting(a.logits[1], inputs);
  if (a.logits[1] == a.json) throw Error("--json and --logits name one file: " + a.json, Exit::usage);
}

// A loaded task file's name: what stands in front of the last dot.
std::string task_name(const std::string& path) {
  const std::string name = base_name(path);
  return name.substr(0, name.rfind('.'));
}

void check_arguments(const Arguments& a, const Cli& cli) {
  if (a.loss.empty() && a.logits.empty() && a.mmlu.empty() && a.choice.empty())
    throw usage_error(cli.tool(), "nothing to evaluate: give --loss, --mmlu, --choice or --logits");
  refuse_ignored(cli.given_flags(),
                 {{a.loss.empty(), {"--window", "--stride"}, "--window and --stride belong to --loss"},
                  {a.mmlu.empty(), {"--shots", "--csv"}, "--shots and --csv belong to --mmlu"},
                  {a.choice.empty(), {"--partial", "--add-bos"}, "--partial and --add-bos belong to --choice"},
                  {a.choice.empty() && a.mmlu.empty(), {"--limit"}, "it counts the questions of --choice and --mmlu"},
                  {a.choice.empty() && a.mmlu.empty() && a.loss.empty(), {"--legacy"}, "--logits takes token ids"}});
  std::set<std::string> names;
  for (const std::string& path : a.choice)
    if (!names.insert(task_name(path)).second)
      throw usage_error(cli.tool(), "--choice: two tasks are called " + task_name(path) + "; rename one of the files");
}

bool is_stream(const LoadedData& data) { return data.form == DataForm::text || data.form == DataForm::tokens; }

LoadedData read_data(const Arguments& a, const Cli& cli, const ModelConfig& config, DataOptions& options) {
  constexpr int64_t kLongestWindow = 2048;
  options.vocab = config.vocab;
  options.window = a.window > 0 ? a.window : std::min(config.max_seq, kLongestWindow);
  options.stride = a.stride > 0 ? a.stride : options.window;
  if (options.stride > options.window)
    throw usage_error(cli.tool(),
                      strf("--stride: %ld is more than the window of %ld tokens", options.stride, options.window));
  const auto tokenizer = find_and_open_tokenizer(a.model, legacy_of(a.legacy));
  LoadedData data = load_data(a.loss, tokenizer.get(), options);
  if (!is_stream(data) && (a.window > 0 || a.stride > 0))
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

// The questions of --choice and --mmlu, as ids.
struct Questions {
  std::vector<ChoiceTask> tasks;
  Mmlu mmlu;
  std::vector<const QuestionGroup*> groups;
};

constexpr int64_t kLongestPrompt = 2048;

// The model's tokenizer, opened where a text needs it: llm.c's evaluation files bring ids.
using GetTokenizer = std::function<const Tokenizer&()>;

ChoiceTask read_task(const Arguments& a, const std::string& path, const GetTokenizer& tokenizer,
                     const ChoiceOptions& options) {
  const std::string content = read_text_file(path);
  if (!is_eval_file(content))
    return make_choice_task(task_name(path), path, read_choice_file(path, a.limit), tokenizer(), options);
  std::vector<EncodedQuestion> questions;
  for (EvalQuestion& q : parse_eval_file(path, content))
    questions.push_back({std::move(q.context), std::move(q.choices), q.label});
  if (a.limit > 0) questions.resize(std::min(questions.size(), static_cast<size_t>(a.limit)));
  return make_choice_task(task_name(path), path, questions, options.max_tokens);
}

void read_choice(const Arguments& a, const Cli& cli, const GetTokenizer& tokenizer, int64_t max_tokens, Questions& q) {
  const ChoiceOptions options{a.partial, a.add_bos, max_tokens};
  for (const std::string& path : a.choice) {
    q.tasks.push_back(read_task(a, path, tokenizer, options));
    const ChoiceTask& task = q.tasks.back();
    const std::string all = with_commas(static_cast<long long>(task.gold.size()));
    if (a.partial)
      cli.note(strf("%s: %s of %s questions by partial scoring", task.name.c_str(), with_commas(task.partial).c_str(),
                    all.c_str()));
    if (task.cut > 0)
      cli.note(strf("note: %s: %s of %s questions lose their beginning: longer than %ld tokens", task.name.c_str(),
                    with_commas(task.cut).c_str(), all.c_str(), max_tokens));
  }
}

void read_mmlu(const Arguments& a, const Cli& cli, const Tokenizer& tokenizer, int64_t max_tokens, Questions& q) {
  q.mmlu = load_mmlu(a.mmlu, tokenizer, {a.shots, a.csv == "pandas", a.limit, max_tokens});
  const auto list = [](const std::vector<std::string>& names) {
    std::string text;
    for (const std::string& n : names) text += (text.empty() ? "" : ", ") + n;
    return text;
  };
  cli.note(strf("mmlu: %zu of %zu subjects, %ld shots, %s", q.mmlu.subjects.size(), kMmluSubjects.size(), a.shots,
                q.mmlu.bos ? "with BOS" : "without BOS"));
  if (!q.mmlu.missing.empty()) cli.note("note: not in " + a.mmlu + ": " + list(q.mmlu.missing));
  if (!q.mmlu.unknown.empty()) cli.note("note: no subject of MMLU, left out: " + list(q.mmlu.unknown));
  if (q.mmlu.changed_cells > 0)
    cli.note(
        strf("note: %ld cells are printed as pandas prints them (--csv raw: as they stand)", q.mmlu.changed_cells));
  int64_t fewer = 0, cut = 0, all = 0;
  for (const MmluSubject& s : q.mmlu.subjects)
    fewer += s.fewer_shots, cut += s.cut, all += static_cast<int64_t>(s.gold.size());
  if (fewer + cut > 0)
    cli.note(strf("note: of %s prompts %s have fewer shots and %s lose their beginning: longer than %ld tokens",
                  with_commas(all).c_str(), with_commas(fewer).c_str(), with_commas(cut).c_str(), max_tokens));
}

Questions read_questions(const Arguments& a, const Cli& cli, const ModelConfig& config) {
  Questions q;
  if (a.choice.empty() && a.mmlu.empty()) return q;
  std::unique_ptr<Tokenizer> opened;
  const auto tokenizer = [&]() -> const Tokenizer& {
    if (!opened) opened = require_tokenizer(a.model, legacy_of(a.legacy));
    return *opened;
  };
  const int64_t max_tokens = std::min(config.max_seq, kLongestPrompt);
  read_choice(a, cli, tokenizer, max_tokens, q);
  if (!a.mmlu.empty()) read_mmlu(a, cli, tokenizer(), max_tokens, q);
  for (const ChoiceTask& task : q.tasks)
    check_ids(task.group, config.vocab, task.path), q.groups.push_back(&task.group);
  for (const MmluSubject& s : q.mmlu.subjects)
    check_ids(s.questions, config.vocab, a.mmlu + ", " + s.name), q.groups.push_back(&s.questions);
  return q;
}

void run_choice(const Cli& cli, ModelSession& session, const Questions& q, int64_t max_rows, Device device,
                ResultTable& table, Report& report) {
  for (const ChoiceTask& task : q.tasks) {
    ProgressBar bar(task.name, static_cast<int64_t>(task.gold.size()), "questions", cli.quiet());
    ScoringCount count;
    const ChoiceResult result = choice_result(
        task, score_group(session, task.group, max_rows, device, count, [&](int64_t done) { bar.update(done); }));
    bar.finish(task.name + ": " + rate_text(count, bar.elapsed_s()));
    add_choice(table, task, result);
    report["tasks"][task.name] = choice_report(task, result);
  }
}

void run_mmlu(const Arguments& a, const Cli& cli, ModelSession& session, const Mmlu& mmlu, int64_t max_rows,
              Device device, ResultTable& tasks, ResultTable& groups, Report& report) {
  int64_t all = 0, before = 0;
  for (const MmluSubject& s : mmlu.subjects) all += static_cast<int64_t>(s.gold.size());
  ProgressBar bar("mmlu", all, "questions", cli.quiet());
  ScoringCount count;
  std::vector<std::vector<std::vector<double>>> scores;
  for (const MmluSubject& s : mmlu.subjects) {
    scores.push_back(score_group(session, s.questions, max_rows, device, count,
                                 [&](int64_t done) { bar.update(before + done, s.name); }));
    before += static_cast<int64_t>(s.gold.size());
  }
  bar.finish("mmlu: " + rate_text(count, bar.elapsed_s()));
  const MmluResult result = mmlu_result(mmlu, scores);
  add_mmlu_subjects(tasks, mmlu, result, a.shots);
  add_mmlu_groups(groups, result, a.shots);
  report["mmlu"] = mmlu_report(mmlu, result, scores, a.shots);
}

void run_loss(const Cli& cli, ModelSession& session, const LoadedData& data, const DataOptions& options,
              int64_t max_rows, Report& report) {
  ProgressBar bar("loss", data.rows, "tok", cli.quiet());
  const LossResult result = evaluate_loss(session, data.examples, max_rows, [&](int64_t done) { bar.update(done); });
  bar.finish(strf("loss: %s tokens in %.1f s", with_commas(data.rows).c_str(), bar.elapsed_s()));
  const int width = std::max<int>(4, static_cast<int>(base_name(data.path).size()));
  const std::string title = is_stream(data) ? strf("  %8s  %8s", "window", "stride") : "";
  const std::string windows = is_stream(data) ? strf("  %8ld  %8ld", options.window, options.stride) : "";
  std::printf("%-*s  %14s  %10s  %12s%s\n", width, "data", "tokens scored", "nll", "perplexity", title.c_str());
  std::printf("%-*s  %14s  %10.6f  %12.4f%s\n", width, base_name(data.path).c_str(), with_commas(result.tokens).c_str(),
              result.nll(), result.perplexity(), windows.c_str());
  report["loss"] = {{"nll", result.nll()}, {"tokens", result.tokens}, {"perplexity", result.perplexity()}};
  if (is_stream(data)) report["loss"]["window"] = options.window, report["loss"]["stride"] = options.stride;
}

void write_logits(const Cli& cli, ModelSession& session, const std::vector<int32_t>& ids, const std::string& path) {
  const std::vector<float> logits = session.logits(every_position(ids));
  for (size_t i = 0; i < logits.size(); ++i)
    if (!std::isfinite(logits[i]))
      throw Error("the logits are not numbers")
          .line("found", strf("%g at position %zu", static_cast<double>(logits[i]),
                              i / static_cast<size_t>(session.config().vocab)))
          .line("likely", "NaN or infinite values in the model or its adapter, or an overflow")
          .line("try", "./irq_inspect " + shell_quoted(session.path()) + "    says whether the file holds such values");
  write_npy(path, {static_cast<int64_t>(ids.size()), session.config().vocab}, logits);
  cli.note(strf("%s: logits (%zu, %ld) f32", path.c_str(), ids.size(), session.config().vocab));
}

int evaluate(const Arguments& a, Cli& cli) {
  check_arguments(a, cli);
  check_outputs(a);
  const auto backend = cli.backend();
  ModelSession session(*backend, a.model, a.adapter);
  const ModelConfig& config = session.config();

  // What is wanted, and the batches it takes: every task adds its own to each choice of batch size.
  const Questions questions = read_questions(a, cli, config);
  const std::vector<int64_t> budgets = row_budgets(backend->device());
  LossWorkloads work{std::vector<Workload>(budgets.size()), budgets};
  LoadedData data;
  DataOptions data_options;
  if (!a.loss.empty()) {
    data = read_data(a, cli, config, data_options);
    work = loss_workloads(data.examples, backend->device());
  }
  IRQ_CHECK(work.workloads.size() == budgets.size(), "%zu choices of %zu", work.workloads.size(), budgets.size());
  for (size_t i = 0; i < budgets.size(); ++i)
    add_scoring(work.workloads[i], questions.groups, budgets[i], backend->device());
  std::vector<int32_t> ids;
  if (!a.logits.empty()) {
    ids = parse_ids("--logits", a.logits[0], config.vocab);
    for (Workload& w : work.workloads) {
      w.logits.push_back(shape_of(every_position(ids)));
      w.positions = std::max(w.positions, static_cast<int64_t>(ids.size()));
    }
  }
  note_length(cli, work.workloads[0].positions, config);
  // Opened before the work: a place that cannot be written is an error at once.
  std::optional<AtomicFile> json_file;
  if (!a.json.empty()) json_file.emplace(a.json);
  const size_t chosen = load_session(cli, session, work.workloads);

  Report report = Report::object();
  if (!a.loss.empty()) run_loss(cli, session, data, data_options, work.max_rows[chosen], report);
  ResultTable tasks("Tasks"), groups("Groups");
  run_choice(cli, session, questions, budgets[chosen], backend->device(), tasks, report);
  if (!a.mmlu.empty())
    run_mmlu(a, cli, session, questions.mmlu, budgets[chosen], backend->device(), tasks, groups, report);
  for (const ResultTable* table : {&tasks, &groups})
    if (!table->empty()) std::printf("%s", table->text().c_str());
  if (!ids.empty()) write_logits(cli, session, ids, a.logits[1]);
  report["device"] = backend->describe(), report["memory_bytes"] = session.plan().peak_bytes;
  if (json_file) json_file->write(report.dump(2) + "\n"), json_file->commit();
  return 0;
}

}  // namespace
}  // namespace irq

int main(int argc, char** argv) {
  using namespace irq;
  Arguments a;
  Cli cli("irq_eval", "what a model is worth: loss on a data file, multiple-choice questions, MMLU; or its logits");
  cli.positional("MODEL", &a.model, "a .bin, a .irq, or a config.json (random weights)");
  cli.option("--adapter", &a.adapter, "a .lora trained on this model");
  cli.option("--loss", &a.loss, "data file: mean loss per trainable token, and perplexity");
  cli.option("--window", &a.window, "text and token files: tokens per sequence, 0 = the model's context, at most 2048");
  cli.range("--window", 0, 1 << 24);
  cli.option("--stride", &a.stride, "from one window to the next, 0 = the window; the overlap is context only");
  cli.range("--stride", 0, 1 << 24);
  cli.option("--mmlu", &a.mmlu, "MMLU's folder (dev/, test/): the letters' probabilities behind few-shot prompts");
  cli.option("--shots", &a.shots, "examples in a prompt of MMLU");
  cli.range("--shots", 0, 1000);
  cli.option("--csv", &a.csv,
             "MMLU's cells as pandas prints them, which the published scores rest on, or as they stand",
             {"pandas", "raw"});
  cli.option("--choice", &a.choice,
             "JSON lines {\"query\", \"choices\", \"gold\"}, or llm.c's evaluation files: acc and acc_norm; a task is "
             "called as its file");
  cli.flag("--partial", &a.partial, "queries with _ as WinoGrande: the choice in its place, the text behind it scored");
  cli.flag("--add-bos", &a.add_bos, "a BOS in front of every query of --choice");
  cli.option("--limit", &a.limit, "the first N questions of each task or subject, 0 = all");
  cli.range("--limit", 0, 1 << 30);
  cli.option("--logits", &a.logits,
             "token ids (1,2,3) and a .npy file: the logits of every position, (tokens, vocabulary) f32", 2);
  declare_legacy(cli, &a.legacy);
  cli.option("--json", &a.json, "write the results to this file as well");
  cli.footer(
      "./irq_eval llama7b.irq --adapter runs/llama7b/adapter.lora --loss heldout.json --json loss.json\n"
      "./irq_eval llama7b.bin --loss wiki.txt --window 2048 --stride 512\n"
      "./irq_eval llama7b.irq --choice arc_easy.jsonl piqa.jsonl --mmlu mmlu --json scores.json\n"
      "./irq_eval llama7b.bin --logits 1,15043,3186 logits.npy");
  return cli.run(argc, argv, [&] { return evaluate(a, cli); });
}
