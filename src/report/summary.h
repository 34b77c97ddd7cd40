// The rows of the table out of the records of their cells: mean and spread over seeds.
#pragma once
#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "src/report/cell_record.h"

namespace irq {

// One figure of a row, one value per seed.
struct Stat {
  std::vector<double> values;
  size_t n() const { return values.size(); }
  double mean() const;  // NaN without values
  double sd() const;    // of the sample (n - 1); NaN for fewer than two
};

struct RowSummary {
  const Row* row = nullptr;
  int bits = 0;
  std::vector<int64_t> seeds;          // of the finished cells, in their order; empty for rows without any
  std::vector<std::string> cells;      // their names
  std::vector<const Report*> records;  // of the finished cells
  // "loss_before", "loss_after", "bits" (of the type or code of a weight), "entropy", "error" (mean squared, of a weight), "bits_per_weight", "linear_bytes", "file_bytes", "adapter_bytes",
  // "train_peak_bytes", "eval_memory_bytes", "quantize_seconds", "train_seconds", "total_seconds", "task NAME acc",
  // "task NAME acc_se", ... acc_norm, acc_norm_se; NAME "Avg.": the plain mean over the tasks; "mmlu GROUP acc", ... acc_se;
  // GROUP "Avg.": over all questions. Fractions, not percent. What a cell lacks is not there.
  std::map<std::string, Stat> figures;
  std::string title() const { return row->name + (bits > 0 ? " " + std::to_string(bits) : ""); }
  const Stat* find(const std::string& figure) const;
};

// A difference between two rows' means: what one technique adds.
struct Added {
  double seconds = std::numeric_limits<double>::quiet_NaN();
  double sd = std::numeric_limits<double>::quiet_NaN();  // of the difference of one run of each; NaN without seeds
  std::string against;  // the row without it, same bits; "" where there is none, and seconds is NaN
};
struct TableSummary {
  std::vector<RowSummary> rows;
  std::vector<std::string> tasks;    // of --choice, in their order, without "Avg."
  std::vector<std::string> groups;   // of MMLU, without "Avg."
  std::vector<std::string> devices;  // that cells ran on
};

// cells: in make_cells' order, those of one row together; records: of the finished ones, by name; quantize_seconds: by name
// of a quantized base's file, since of the runs that share it only the first has made it.
TableSummary summarize(const std::vector<Cell>& cells, const std::map<std::string, Report>& records,
                       const std::map<std::string, double>& quantize_seconds);
// Of quantization: against the row whose method differs by ICQ alone. Of training: by IEC alone.
Added added_by_icq(const TableSummary& table, const RowSummary& row);
Added added_by_iec(const TableSummary& table, const RowSummary& row);
// Everything as JSON: per row the figures with their values, mean, sd; and the records.
Report summary_report(const TableSummary& table);

}  // namespace irq
