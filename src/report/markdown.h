// The table as Markdown, in the manner of the paper's tables: accuracy by task and by MMLU's groups, loss, sizes, times.
#pragma once
#include <string>
#include <vector>

#include "src/report/summary.h"

namespace irq {

// A Markdown table whose columns are padded to their widest cell; the first column is left, the others right.
class MarkdownTable {
 public:
  explicit MarkdownTable(std::vector<std::string> header) : rows_{std::move(header)} {}
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  std::string text() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

// "62.63" (one value), "62.63 ± 0.41" (mean and standard deviation over seeds), "–" (none); scale 100 for percent.
std::string stat_text(const Stat* stat, int decimals, double scale = 1);
// The same with the mean standard error of one model's figure in parentheses: "62.63 ± 0.41 (1.00)".
std::string stat_text(const Stat* stat, const Stat* error, int decimals, double scale);

// Headings from level 3 on; parts without any figure are left out.
std::string render_markdown(const TableSummary& table);

}  // namespace irq
