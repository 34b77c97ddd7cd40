#include "src/report/markdown.h"

#include <algorithm>

#include "src/core/check.h"
#include "src/text/tokenizer.h"

namespace irq {
namespace {

constexpr const char* kNothing = "–";

std::string bits_text(const RowSummary& row) {
  if (row.bits > 0) return std::to_string(row.bits);
  const Stat* stored = row.find("bits");  // of the base as it is: 16, or 32
  return stored == nullptr ? kNothing : strf("%.0f", stored->mean());
}

std::string seeds_text(const RowSummary& row) {
  if (row.records.empty()) return "0";
  return row.row->method == nullptr ? kNothing : std::to_string(row.seeds.size());
}

bool any(const TableSummary& table, const std::string& figure) {
  return std::any_of(table.rows.begin(), table.rows.end(),
                     [&](const RowSummary& row) { return row.find(figure) != nullptr; });
}

std::string bytes_text(const Stat* stat) {
  return stat == nullptr ? kNothing : with_commas(std::llround(stat->mean()));
}

// Of figures that no seed changes, such as the entropy of a base that all of a row's runs share.
std::string shared_text(const Stat* stat, int decimals) {
  if (stat == nullptr || stat->n() < 2 || stat->sd() > 0) return stat_text(stat, decimals);
  const Stat once{{stat->values[0]}};
  return stat_text(&once, decimals);
}

std::string small_text(const Stat* stat) { return stat == nullptr ? kNothing : strf("%.4g", stat->mean()); }

std::string added_text(const Added& added) {
  if (added.against.empty()) return kNothing;
  const std::string spread = added.sd > 0 ? strf(" ± %.2f", added.sd) : "";
  return strf("%+.2f", added.seconds) + spread + " (" + added.against + ")";
}

std::vector<std::string> row_start(const RowSummary& row) { return {row.row->name, bits_text(row), seeds_text(row)}; }

std::string accuracy_part(const TableSummary& table, const std::string& title, const std::string& prefix,
                          const std::vector<std::string>& columns, const std::string& metric, bool entropy) {
  const std::string average = prefix + "Avg. " + metric;
  if (!any(table, average) && std::none_of(columns.begin(), columns.end(),
                                           [&](const std::string& c) { return any(table, prefix + c + " " + metric); }))
    return "";
  std::vector<std::string> header = {"Method", "#Bit", "Seeds"};
  header.insert(header.end(), columns.begin(), columns.end());
  header.push_back("Avg.");
  if (entropy) header.push_back("Ent.");
  MarkdownTable markdown(header);
  for (const RowSummary& row : table.rows) {
    std::vector<std::string> cells = row_start(row);
    std::vector<std::string> all = columns;
    all.push_back("Avg.");
    for (const std::string& column : all) {
      const std::string figure = prefix + column + " " + metric;
      cells.push_back(stat_text(row.find(figure), row.find(figure + "_se"), 2, 100));
    }
    if (entropy) cells.push_back(shared_text(row.find("entropy"), 4));
    markdown.add(cells);
  }
  return "### " + title + "\n\n" + markdown.text() + "\n";
}

std::string loss_part(const TableSummary& table) {
  if (!any(table, "loss_before") && !any(table, "loss_after")) return "";
  const bool errors = any(table, "error");
  std::vector<std::string> head = {"Method", "#Bit", "Seeds", "Loss before", "Loss after", "Ent."};
  if (errors) head.push_back("Sq. error");
  MarkdownTable markdown(head);
  for (const RowSummary& row : table.rows) {
    std::vector<std::string> cells = row_start(row);
    cells.push_back(shared_text(row.find("loss_before"), 4));
    cells.push_back(stat_text(row.find("loss_after"), 4));
    cells.push_back(shared_text(row.find("entropy"), 4));
    if (errors) cells.push_back(small_text(row.find("error")));
    markdown.add(cells);
  }
  return "### Held-out loss (nats per scored token) and entropy of the codes (bits per weight)\n\n" + markdown.text() +
         "\n";
}

std::string size_part(const TableSummary& table) {
  MarkdownTable markdown({"Method", "#Bit", "Bits per weight", "Bytes of the linears", "Bytes of the file",
                          "Bytes of the adapter", "Bytes in memory, training"});
  for (const RowSummary& row : table.rows) {
    std::vector<std::string> cells = {row.row->name, bits_text(row), shared_text(row.find("bits_per_weight"), 4)};
    for (const char* figure : {"linear_bytes", "file_bytes", "adapter_bytes", "train_peak_bytes"})
      cells.push_back(bytes_text(row.find(figure)));
    markdown.add(cells);
  }
  return "### Sizes\n\n" + markdown.text() + "\n";
}

std::string time_part(const TableSummary& table) {
  if (!any(table, "quantize_seconds") && !any(table, "train_seconds")) return "";
  MarkdownTable markdown({"Method", "#Bit", "Seeds", "Quantization", "Added by ICQ (against)", "Training",
                          "Added by IEC (against)", "Both"});
  for (const RowSummary& row : table.rows) {
    std::vector<std::string> cells = row_start(row);
    cells.push_back(shared_text(row.find("quantize_seconds"), 2));
    cells.push_back(added_text(added_by_icq(table, row)));
    cells.push_back(stat_text(row.find("train_seconds"), 2));
    cells.push_back(added_text(added_by_iec(table, row)));
    cells.push_back(stat_text(row.find("total_seconds"), 2));
    markdown.add(cells);
  }
  return "### Times (seconds)\n\n" + markdown.text() + "\n";
}

// "icq-mse = icq --icq-ties mse; gptq: --group 32", rows with flags of their own or another name than their method's.
std::string row_flags(const TableSummary& table) {
  std::vector<std::string> all;
  for (const RowSummary& row : table.rows) {
    const Row& r = *row.row;
    const std::string flags = join_quoted(r.flags);
    std::string text = r.name == r.kind()
                           ? (flags.empty() ? "" : "`" + r.name + "` with `" + flags + "`")
                           : "`" + r.name + "` is `" + r.kind() + (flags.empty() ? "" : " " + flags) + "`";
    if (!text.empty() && std::find(all.begin(), all.end(), text) == all.end()) all.push_back(std::move(text));
  }
  std::string joined;
  for (const std::string& text : all) joined += (joined.empty() ? "- Rows: " : "; ") + text;
  return joined.empty() ? "" : joined + ".\n";
}

std::string notes(const TableSummary& table) {
  std::string text = row_flags(table);
  text +=
      "- a ± b: mean and sample standard deviation over the seeds; (c): standard error of one model's accuracy over "
      "the "
      "questions, the mean over the seeds, which stays however many seeds there are. Rows without seeds train "
      "nothing.\n";
  if (!table.tasks.empty()) text += "- Avg. over tasks: the plain mean of the columns, as in the paper.\n";
  if (!table.groups.empty()) text += "- Avg. over MMLU: over all questions (micro-average).\n";
  if (any(table, "loss_before"))
    text +=
        "- Loss before: of the base after quantization and before the first step. Ent.: mean over all weights of the "
        "quantized linears.\n";
  if (any(table, "error"))
    text +=
        "- Sq. error: mean over all quantized weights of (weight - its value as stored)^2; measured for rows that "
        "train "
        "nothing, GPTQ's apart, whose aim is another.\n";
  text +=
      "- Bits per weight: codes, scales and shifts of the quantized linears, nothing else. Bytes of the file: all of "
      "the "
      "model, with embedding, head and norms; an adapter comes on top. These are true bytes; the paper's column counts "
      "half of the packed codes.\n";
  if (any(table, "train_seconds"))
    text +=
        "- Training: the steps themselves, without loading, evaluation and saving. Quantization: the file included. "
        "Added: difference of the means against the row in parentheses, which lacks that technique alone, ± what the "
        "deviations of both rows make of it.\n";
  if (!table.devices.empty()) {
    text +=
        table.devices.size() > 1 ? "- **Not all cells ran on one device: times are not comparable.** " : "- Device: ";
    for (size_t i = 0; i < table.devices.size(); ++i) text += (i > 0 ? "; " : "") + table.devices[i];
    text += ".\n";
  }
  return text;
}

}  // namespace

std::string MarkdownTable::text() const {
  std::vector<size_t> width(rows_[0].size(), 3);
  const auto columns = [](const std::string& cell) { return static_cast<size_t>(count_code_points(cell)); };
  for (const auto& row : rows_)
    for (size_t c = 0; c < row.size(); ++c) width[c] = std::max(width[c], columns(row[c]));
  std::string text;
  for (size_t r = 0; r < rows_.size(); ++r) {
    for (size_t c = 0; c < width.size(); ++c) {
      const std::string cell = c < rows_[r].size() ? rows_[r][c] : "";
      const std::string pad(width[c] - columns(cell), ' ');
      text += c == 0 ? "| " + cell + pad : " | " + pad + cell;
    }
    text += " |\n";
    if (r > 0) continue;
    for (size_t c = 0; c < width.size(); ++c)
      text += c == 0 ? "|" + std::string(width[c] + 2, '-') : "|" + std::string(width[c] + 1, '-') + ":";
    text += "|\n";
  }
  return text;
}

std::string stat_text(const Stat* stat, int decimals, double scale) {
  if (stat == nullptr || stat->n() == 0 || !std::isfinite(stat->mean())) return kNothing;
  const std::string mean = strf("%.*f", decimals, scale * stat->mean());
  return stat->n() < 2 ? mean : mean + strf(" ± %.*f", decimals, scale * stat->sd());
}

std::string stat_text(const Stat* stat, const Stat* error, int decimals, double scale) {
  const std::string text = stat_text(stat, decimals, scale);
  if (text == kNothing || error == nullptr || !std::isfinite(error->mean())) return text;
  return text + strf(" (%.*f)", decimals, scale * error->mean());
}

std::string render_markdown(const TableSummary& table) {
  return accuracy_part(table, "MMLU, accuracy (%)", "mmlu ", table.groups, "acc", true) +
         accuracy_part(table, "Multiple choice, accuracy (%)", "task ", table.tasks, "acc", false) +
         accuracy_part(table, "Multiple choice, accuracy by length-normalized scores (%)", "task ", table.tasks,
                       "acc_norm", false) +
         loss_part(table) + size_part(table) + time_part(table) + notes(table);
}

}  // namespace irq
