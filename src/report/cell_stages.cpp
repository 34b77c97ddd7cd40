#include "src/report/cell_stages.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include "src/core/check.h"
#include "src/core/file.h"
#include "src/core/interrupt.h"
#include "src/eval/statistics.h"

namespace irq {
namespace {

namespace fs = std::filesystem;

Report optional_json(const std::optional<double>& x) { return x ? Report(*x) : Report(nullptr); }

Report read_json(const std::string& path) {
  Report report = Report::parse(read_text_file(path), nullptr, false);
  if (!report.is_object()) throw Error(path + ": not a JSON object").line("likely", "written by another program");
  return report;
}

int64_t size_of_file(const std::string& path) {
  std::error_code failed;
  const auto bytes = fs::file_size(path, failed);
  return failed ? 0 : static_cast<int64_t>(bytes);
}

}  // namespace

// As a user would type it.
std::string CellStages::shown(Words words) const {
  words[0] = "./" + base_name(words[0]);
  append(words, o_.machine_flags);
  return join_quoted(words);
}

ChildResult CellStages::start(Words words) {
  command_ = shown(words);
  append(words, o_.machine_flags);
  if (o_.quiet) words.push_back("--quiet");
  ChildResult child = run_child(words, shop_.children);
  throw_if_interrupted();
  if (child.status != 0) throw StageFailure{command_, child.status, child.signalled, child.err};
  return child;
}

void CellStages::run(const std::function<void(const char*)>& on_stage) {
  if (trains() && !record_.has("train")) on_stage("train"), train();
  const bool gone =
      !record_.has("evaluate") && !file_exists(quantized_path());  // cut, or pruned and to be evaluated anew
  if (cell_.bits > 0 && !trains() && (gone || !record_.has("quantize"))) on_stage("quantize"), quantize();
  if (!record_.has("evaluate")) on_stage("evaluate"), evaluate();
  record_.finish();
}

void CellStages::quantize() {
  const std::string json = folder_ + "/quantize.json";
  Words words = {shop_.quantize_tool, shop_.base, quantized_path(), "--bits", std::to_string(cell_.bits)};
  append(words, split_words(cell_.row->plain->flags));
  append(words, cell_.row->flags);
  if (cell_.row->calibrates_on_data()) append(words, {"--calibration", shop_.data});
  append(words, {"--json", json});
  const ChildResult child = start(words);
  Report result = {{"command", command_}, {"wall_seconds", child.seconds}};
  result.update(read_json(json));
  record_.set("quantize", std::move(result));
}

CellStages::Words CellStages::train_command() const {
  const Method& method = *cell_.row->method;
  Words words = {shop_.train_tool, shop_.base, "--data", shop_.data};
  if (shop_.held_out.empty()) append(words, {"--holdout", "0"});
  else append(words, {"--eval-data", shop_.held_out});
  append(words, {"--method", method.name});
  if (cell_.bits > 0) append(words, {"--bits", std::to_string(cell_.bits)});
  append(words, {"--seed", std::to_string(cell_.seed)});
  if (shop_.stream) append(words, {"--window", std::to_string(o_.window)});
  append(words, o_.train_flags);
  if (method.lora) append(words, o_.adapter_flags);
  append(words, o_.both_flags);
  append(words, cell_.row->flags);
  append(words, {"--out", run_folder()});
  // A folder without a state was cut before its first one was written, or after the adapter and before the state.
  if (file_exists(run_folder() + "/train.state")) words.push_back("--resume");
  else if (file_exists(run_folder())) words.push_back("--overwrite");
  return words;
}

void CellStages::train() {
  FinishedRun run = read_run(run_folder());
  double wall_seconds = 0;
  const Words command = train_command();
  command_ = shown(command);
  if (!run.finished) {
    wall_seconds = start(command).seconds;
    run = read_run(run_folder());
  }
  if (!run.finished)
    throw Error(run_folder() + "/log.jsonl: the run is over, but its log does not say that it finished");
  Report result = {{"command", command_},
                   {"wall_seconds", wall_seconds},
                   {"seconds", run.train_seconds},
                   {"steps", run.steps},
                   {"loss_before", optional_json(run.loss_before)},
                   {"loss_after", optional_json(run.loss_after)},
                   {"peak_bytes", run.peak_bytes},
                   {"trained_parameters", run.trained_parameters},
                   {"device", run.device},
                   {"quantized", run.quantized},
                   {"quantize_seconds", optional_json(run.quantize_seconds)},
                   {"requantize_seconds", run.requantize_seconds},
                   {"model", run.model},
                   {"adapter", run.adapter}};
  if (!run.adapter.empty()) result["adapter_bytes"] = size_of_file(run_folder() + "/" + run.adapter);
  record_.set("train", std::move(result));
}

std::string CellStages::model_path() const {
  if (!trains()) return cell_.bits > 0 ? quantized_path() : shop_.base;
  const Report& run = record_.stage("train");
  const std::string model = run.value("model", ""), quantized = run.value("quantized", "");
  if (!model.empty()) return run_folder() + "/" + model;
  if (quantized.empty()) return shop_.base;
  const std::string own = run_folder() + "/" + quantized;  // where no other run could use it
  return file_exists(own) ? own : o_.bases() + "/" + quantized;
}

std::string CellStages::adapter_path() const {
  const std::string adapter = trains() ? record_.stage("train").value("adapter", "") : "";
  return adapter.empty() ? "" : run_folder() + "/" + adapter;
}

// A run's own log has the loss of its adapter already; of a model that it left (merged, or trained in full) it has not.
bool CellStages::evaluation_needed(bool* loss) const {
  const bool as_logged = trains() && record_.stage("train").value("model", "").empty();
  *loss = !shop_.held_out.empty() && !as_logged;
  return *loss || !o_.choice.empty() || !o_.mmlu.empty();
}

void CellStages::evaluate() {
  const std::string model = model_path(), adapter = adapter_path(), json = folder_ + "/evaluation.json";
  for (const std::string& path : {model, adapter})
    if (!path.empty() && !file_exists(path))
      throw Error(path + ": what this cell trained is no longer here")
          .line("likely", "removed when the cell was finished (--keep)")
          .line("try", "rm -r " + shell_quoted(folder_) + "    then this command again: it trains anew");
  Report result = Report::object();
  bool loss = false;
  const bool needed = evaluation_needed(&loss);
  result["sizes"] = model_facts(model);
  if (!adapter.empty()) result["sizes"]["adapter_bytes"] = size_of_file(adapter);
  if (needed) {
    Words words = {shop_.eval_tool, model};
    if (!adapter.empty()) append(words, {"--adapter", adapter});
    if (loss) append(words, {"--loss", shop_.held_out});
    if (loss && shop_.stream_held_out) append(words, {"--window", std::to_string(o_.window)});
    if (!o_.choice.empty()) words.push_back("--choice"), append(words, o_.choice);
    if (!o_.mmlu.empty()) append(words, {"--mmlu", o_.mmlu});
    append(words, o_.eval_flags);
    append(words, o_.both_flags);
    append(words, {"--json", json});
    const ChildResult child = start(words);
    result["command"] = command_, result["wall_seconds"] = child.seconds;
    result.update(compact_evaluation(read_json(json)));
  }
  record_.set("evaluate", std::move(result));
}

Report compact_evaluation(const Report& report) {
  Report compact = Report::object();
  for (const char* key : {"device", "memory_bytes", "loss"})
    if (report.contains(key)) compact[key] = report[key];
  if (report.contains("tasks"))
    for (const auto& [name, task] : report["tasks"].items()) {
      compact["tasks"][name] = task;
      compact["tasks"][name].erase("questions");
    }
  if (!report.contains("mmlu")) return compact;
  const Report& mmlu = report["mmlu"];
  for (const char* key : {"micro", "micro_se", "n", "shots", "missing"})
    if (mmlu.contains(key)) compact["mmlu"][key] = mmlu[key];
  const Report groups = mmlu.value("groups", Report::object());
  for (const auto& [group, value] : groups.items()) {
    Accuracy accuracy;
    accuracy.n = mmlu["group_n"][group];
    accuracy.right = std::llround(value.get<double>() * static_cast<double>(accuracy.n));
    compact["mmlu"]["groups"][group] = {
        {"n", accuracy.n}, {"acc", accuracy.value()}, {"acc_se", accuracy.standard_error()}};
  }
  return compact;
}

void CellStages::prune() const {
  if (o_.keep == "all" || !record_.finished()) return;
  const auto remove_all_but = [](const std::string& folder, const std::set<std::string>& kept) {
    std::error_code ignored;
    std::vector<fs::path> extra;
    for (const auto& entry : fs::directory_iterator(folder, ignored))
      if (!kept.contains(entry.path().filename().string())) extra.push_back(entry.path());
    for (const fs::path& path : extra) fs::remove_all(path, ignored);
  };
  if (o_.keep == "none") return remove_all_but(folder_, {"result.json"});
  remove_all_but(folder_, {"result.json", "evaluation.json", "run"});
  const std::string adapter = trains() ? record_.stage("train").value("adapter", "") : "";
  remove_all_but(run_folder(), {"log.jsonl", adapter});
}

}  // namespace irq
