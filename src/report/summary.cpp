#include "src/report/summary.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <optional>

#include "src/eval/mmlu.h"

namespace irq {
namespace {

using Figures = std::map<std::string, double>;

void take(Figures& to, const std::string& name, const Report& from, const char* key) {
  const auto it = from.find(key);
  if (it != from.end() && it->is_number()) to[name] = it->get<double>();
}

const Report& part(const Report& record, const char* name) {
  static const Report nothing = Report::object();
  const auto it = record.find(name);
  return it != record.end() && it->is_object() ? *it : nothing;
}

// The plain mean over tasks, as the papers have it; its standard error from theirs, which are independent.
void average_tasks(Figures& f, const std::vector<std::string>& tasks, const std::string& metric) {
  double sum = 0, squares = 0;
  for (const std::string& task : tasks) {
    const auto value = f.find("task " + task + " " + metric), error = f.find("task " + task + " " + metric + "_se");
    if (value == f.end()) return;
    sum += value->second;
    squares += error == f.end() ? std::nan("") : error->second * error->second;
  }
  const auto n = static_cast<double>(tasks.size());
  if (tasks.empty()) return;
  f["task Avg. " + metric] = sum / n;
  if (std::isfinite(squares)) f["task Avg. " + metric + "_se"] = std::sqrt(squares) / n;
}

// `quantize_seconds`: by name of the quantized base's file, for the runs that found it made already.
Figures figures_of(const Report& record, const std::map<std::string, double>& quantize_seconds) {
  const Report &quantize = part(record, "quantize"), &train = part(record, "train"), &eval = part(record, "evaluate");
  Figures f;
  for (const char* key :
       {"bits", "entropy", "entropy_plain", "bits_per_weight", "linear_bytes", "file_bytes", "adapter_bytes"})
    take(f, key, part(eval, "sizes"), key);
  take(f, "eval_memory_bytes", eval, "memory_bytes");
  take(f, "quantize_seconds", quantize, "seconds");
  if (quantize.value("error", 0.0) > 0) take(f, "error", quantize, "error");  // 0: not measured
  if (train.empty()) {
    take(f, "loss_before", part(eval, "loss"), "nll");
  } else {
    take(f, "loss_before", train, "loss_before");
    take(f, "loss_after", train, "loss_after");
    take(f, "loss_after", part(eval, "loss"), "nll");  // of what the run left, where that is not what was trained
    take(f, "train_seconds", train, "seconds");
    take(f, "train_peak_bytes", train, "peak_bytes");
    take(f, "trained_parameters", train, "trained_parameters");
    const auto made = quantize_seconds.find(train.value("quantized", ""));
    if (made != quantize_seconds.end())  // and what qlora-gptq quantizes once more at its end
      f["quantize_seconds"] = made->second + train.value("requantize_seconds", 0.0);
    if (f.contains("train_seconds"))
      if (f.contains("quantize_seconds") || train.value("quantized", "").empty())
        f["total_seconds"] = f["train_seconds"] + (f.contains("quantize_seconds") ? f["quantize_seconds"] : 0);
  }
  std::vector<std::string> tasks;
  for (const auto& [name, task] : part(eval, "tasks").items()) {
    tasks.push_back(name);
    for (const char* metric : {"acc", "acc_se", "acc_norm", "acc_norm_se"})
      take(f, "task " + name + " " + metric, task, metric);
  }
  average_tasks(f, tasks, "acc"), average_tasks(f, tasks, "acc_norm");
  const Report& mmlu = part(eval, "mmlu");
  for (const auto& [group, value] : part(mmlu, "groups").items())
    for (const char* metric : {"acc", "acc_se"}) take(f, "mmlu " + group + " " + metric, value, metric);
  take(f, "mmlu Avg. acc", mmlu, "micro"), take(f, "mmlu Avg. acc_se", mmlu, "micro_se");
  return f;
}

void add_once(std::vector<std::string>& to, const std::string& word) {
  if (!word.empty() && std::find(to.begin(), to.end(), word) == to.end()) to.push_back(word);
}

// Are all of `few` among `many`? A row without a technique lacks the technique's flags too, and has no others.
bool among(const std::vector<std::string>& few, const std::vector<std::string>& many) {
  return std::all_of(few.begin(), few.end(),
                     [&](const std::string& f) { return std::find(many.begin(), many.end(), f) != many.end(); });
}

// The row that is `row` without one technique; of several, the one that has most of its flags.
Added added_by(const TableSummary& table, const RowSummary& row, const char* figure,
               const std::function<bool(const RowSummary&)>& is_without) {
  const Stat* mine = row.find(figure);
  const RowSummary* without = nullptr;
  for (const RowSummary& other : table.rows) {
    if (other.bits != row.bits || other.find(figure) == nullptr || !is_without(other)) continue;
    if (!among(other.row->flags, row.row->flags)) continue;
    if (without == nullptr || other.row->flags.size() > without->row->flags.size()) without = &other;
  }
  if (mine == nullptr || without == nullptr) return {};
  const Stat* theirs = without->find(figure);
  return {mine->mean() - theirs->mean(), std::hypot(mine->sd(), theirs->sd()), without->row->name};
}

// Equal but for their names.
bool same_method(Method a, const Method& b) {
  a.name = b.name, a.what = b.what;
  return a == b;
}

Report number(double x) { return std::isfinite(x) ? Report(x) : Report(nullptr); }

Report added_report(const Added& added) {
  if (added.against.empty()) return nullptr;
  return {{"seconds", added.seconds}, {"sd", number(added.sd)}, {"against", added.against}};
}

}  // namespace

double Stat::mean() const {
  double sum = 0;
  for (const double v : values) sum += v;
  return values.empty() ? std::nan("") : sum / static_cast<double>(n());
}

double Stat::sd() const {
  if (n() < 2) return std::nan("");
  const double m = mean();
  double squares = 0;
  for (const double v : values) squares += (v - m) * (v - m);
  return std::sqrt(squares / static_cast<double>(n() - 1));
}

const Stat* RowSummary::find(const std::string& figure) const {
  const auto it = figures.find(figure);
  return it == figures.end() ? nullptr : &it->second;
}

TableSummary summarize(const std::vector<Cell>& cells, const std::map<std::string, Report>& records,
                       const std::map<std::string, double>& quantize_seconds) {
  TableSummary table;
  for (const Cell& cell : cells) {
    if (table.rows.empty() || table.rows.back().row != cell.row || table.rows.back().bits != cell.bits) {
      table.rows.emplace_back();
      table.rows.back().row = cell.row, table.rows.back().bits = cell.bits;
    }
    const auto it = records.find(cell.name);
    if (it == records.end()) continue;
    RowSummary& row = table.rows.back();
    const Report &record = it->second, &eval = part(record, "evaluate");
    row.cells.push_back(cell.name), row.records.push_back(&record);
    if (cell.seed >= 0) row.seeds.push_back(cell.seed);
    for (const auto& [name, value] : figures_of(record, quantize_seconds)) row.figures[name].values.push_back(value);
    for (const auto& [name, task] : part(eval, "tasks").items()) add_once(table.tasks, name);
    for (const char* stage : {"quantize", "train", "evaluate"})
      add_once(table.devices, part(record, stage).value("device", ""));
    for (const char* group : kMmluGroups)
      if (part(part(eval, "mmlu"), "groups").contains(group)) add_once(table.groups, group);
  }
  return table;
}

Added added_by_icq(const TableSummary& table, const RowSummary& row) {
  if (row.row->method == nullptr) {  // named "X-icq" for X
    const std::string kind = row.row->kind();
    if (!kind.ends_with("-icq")) return {};
    return added_by(table, row, "quantize_seconds", [&](const RowSummary& other) {
      return other.row->method == nullptr && other.row->kind() + "-icq" == kind;
    });
  }
  Method without = *row.row->method;
  if (!without.icq) return {};
  without.icq = false;
  return added_by(table, row, "quantize_seconds", [&](const RowSummary& other) {
    return other.row->method != nullptr && same_method(without, *other.row->method);
  });
}

Added added_by_iec(const TableSummary& table, const RowSummary& row) {
  if (row.row->method == nullptr) return {};
  Method without = *row.row->method;
  if (!without.u1 && !without.u2) return {};
  without.u1 = without.u2 = false;
  return added_by(table, row, "train_seconds", [&](const RowSummary& other) {
    return other.row->method != nullptr && same_method(without, *other.row->method);
  });
}

Report summary_report(const TableSummary& table) {
  Report rows = Report::array();
  for (const RowSummary& row : table.rows) {
    Report figures = Report::object(), cells = Report::object();
    for (const auto& [name, stat] : row.figures)
      figures[name] = {{"mean", number(stat.mean())}, {"sd", number(stat.sd())}, {"values", stat.values}};
    for (size_t i = 0; i < row.cells.size(); ++i) cells[row.cells[i]] = *row.records[i];
    rows.push_back({{"row", row.row->name},
                    {"method", row.row->kind()},
                    {"bits", row.bits > 0 ? Report(row.bits) : Report(nullptr)},
                    {"flags", row.row->flags},
                    {"seeds", row.seeds},
                    {"figures", std::move(figures)},
                    {"added_by_icq", added_report(added_by_icq(table, row))},
                    {"added_by_iec", added_report(added_by_iec(table, row))},
                    {"cells", std::move(cells)}});
  }
  return rows;
}

}  // namespace irq
