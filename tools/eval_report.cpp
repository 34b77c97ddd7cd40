#include "tools/eval_report.h"

#include <algorithm>

#include "src/core/progress.h"

namespace irq {
namespace {

std::string number(double value) { return std::isnan(value) ? "N/A" : strf("%.4f", value); }

}  // namespace

void ResultTable::add(const std::string& task, int64_t shots, const std::string& metric, const Accuracy& accuracy) {
  rows_.push_back({task, task.empty() ? "" : with_commas(accuracy.n), strf("%ld", shots), metric,
                   number(accuracy.value()), "±", number(accuracy.standard_error())});
}

std::string ResultTable::text() const {
  const std::vector<bool> right = {false, true, true, false, true, false, true};
  std::vector<size_t> width = {1, 2, 1, 1, 1, 1, 1};  // "-:" under n
  const auto columns = [](const std::string& cell) { return static_cast<size_t>(count_code_points(cell)); };
  for (const auto& row : rows_)
    for (size_t c = 0; c < row.size(); ++c) width[c] = std::max(width[c], columns(row[c]));
  std::string text;
  for (size_t r = 0; r < rows_.size(); ++r) {
    for (size_t c = 0; c < right.size(); ++c) {
      const std::string pad(width[c] - columns(rows_[r][c]), ' ');
      text += "|" + (right[c] ? pad + rows_[r][c] : rows_[r][c] + pad);
    }
    text += "|\n";
    if (r > 0) continue;
    for (size_t c = 0; c < right.size(); ++c)
      text += "|" + std::string(width[c] - right[c], '-') + (right[c] ? ":" : "");
    text += "|\n";
  }
  return text;
}

void add_choice(ResultTable& table, const ChoiceTask& task, const ChoiceResult& result) {
  table.add(task.name, 0, "acc", result.acc);
  if (result.acc_norm.n > 0) table.add("", 0, "acc_norm", result.acc_norm);
}

void add_mmlu_subjects(ResultTable& table, const Mmlu& mmlu, const MmluResult& result, int64_t shots) {
  for (size_t s = 0; s < mmlu.subjects.size(); ++s)
    table.add("mmlu " + mmlu.subjects[s].name, shots, "acc", result.subjects[s]);
}

void add_mmlu_groups(ResultTable& table, const MmluResult& result, int64_t shots) {
  table.add("mmlu", shots, "acc", result.all);
  for (const char* group : kMmluGroups)
    if (const auto it = result.groups.find(group); it != result.groups.end())
      table.add(std::string(" - ") + group, shots, "acc", it->second);
}

Report choice_report(const ChoiceTask& task, const ChoiceResult& r) {
  const bool normed = r.acc_norm.n > 0;
  Report questions = Report::array();
  for (size_t i = 0; i < r.scores.size(); ++i) {
    questions.push_back({{"scores", r.scores[i]}, {"gold", task.gold[i]}, {"pred", r.pred[i]}});
    if (normed) questions.back()["pred_norm"] = r.pred_norm[i];
  }
  // NaN is written as null: no acc_norm, or no standard error of a single question.
  return {{"n", r.acc.n},
          {"acc", r.acc.value()},
          {"acc_se", r.acc.standard_error()},
          {"acc_norm", r.acc_norm.value()},
          {"acc_norm_se", r.acc_norm.standard_error()},
          {"questions", std::move(questions)}};
}

Report mmlu_report(const Mmlu& mmlu, const MmluResult& r, const std::vector<std::vector<std::vector<double>>>& scores,
                   int64_t shots) {
  Report groups = Report::object(), group_n = Report::object(), subjects = Report::object();
  for (const char* group : kMmluGroups)
    if (const auto it = r.groups.find(group); it != r.groups.end())
      groups[group] = it->second.value(), group_n[group] = it->second.n;
  for (size_t s = 0; s < mmlu.subjects.size(); ++s) {
    std::string gold;
    for (const int64_t g : mmlu.subjects[s].gold) gold += static_cast<char>('A' + g);
    subjects[mmlu.subjects[s].name] = {{"n", r.subjects[s].n},
                                       {"acc", r.subjects[s].value()},
                                       {"pred", r.pred[s]},
                                       {"gold", gold},
                                       {"scores", scores[s]}};
  }
  return {{"micro", r.all.value()}, {"micro_se", r.all.standard_error()},
          {"n", r.all.n},           {"shots", shots},
          {"groups", groups},       {"group_n", group_n},
          {"subjects", subjects},   {"missing", mmlu.missing}};
}

std::string rate_text(const ScoringCount& c, double seconds) {
  const double rate = 1 / std::max(seconds, 1e-9);
  const double alone = static_cast<double>(c.computed_rows + c.saved_rows);
  return strf("%s questions in %.1f s: %s; %s tokens computed (%s), %s saved by sharing (%.1f %%)",
              with_commas(c.questions).c_str(), seconds,
              format_rate(static_cast<double>(c.questions) * rate, "questions").c_str(),
              with_commas(c.computed_rows).c_str(),
              format_rate(static_cast<double>(c.computed_rows) * rate, "tok").c_str(),
              with_commas(c.saved_rows).c_str(), 100 * static_cast<double>(c.saved_rows) / std::max(alone, 1.0));
}

}  // namespace irq
