// What irq_eval shows and writes: tables in the manner of lm-evaluation-harness, and the report of --json.
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "src/eval/choice_task.h"
#include "src/eval/mmlu.h"
#include "src/eval/perplexity.h"

namespace irq {

using Report = nlohmann::ordered_json;

// "|Tasks|..|" with a line per metric. Columns are as wide as their widest cell.
class ResultTable {
 public:
  explicit ResultTable(std::string first_column)
      : rows_{{std::move(first_column), "n", "n-shot", "Metric", "Value", "", "Stderr"}} {}
  // task "" : another metric of the one above
  void add(const std::string& task, int64_t shots, const std::string& metric, const Accuracy& accuracy);
  bool empty() const { return rows_.size() == 1; }
  std::string text() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

void add_choice(ResultTable& table, const ChoiceTask& task, const ChoiceResult& result);
void add_mmlu_subjects(ResultTable& table, const Mmlu& mmlu, const MmluResult& result, int64_t shots);
void add_mmlu_groups(ResultTable& table, const MmluResult& result, int64_t shots);

Report choice_report(const ChoiceTask& task, const ChoiceResult& result);
Report mmlu_report(const Mmlu& mmlu, const MmluResult& result,
                   const std::vector<std::vector<std::vector<double>>>& scores, int64_t shots);

// "2,376 questions in 12.3 s: 193 questions/s; 133,120 tokens computed (10,822 tok/s), 181,002 saved by sharing (57.6 %)"
std::string rate_text(const ScoringCount& count, double seconds);

}  // namespace irq
