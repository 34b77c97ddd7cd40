#include "src/text/csv.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <optional>
#include <string_view>

#include "src/core/check.h"

namespace irq {
namespace {

// pandas' default na_values, the empty cell among them.
constexpr std::array<std::string_view, 19> kMissing = {
    "",     "#N/A", "#N/A N/A", "#NA",  "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
    "<NA>", "N/A",  "NA",       "NULL", "NaN",     "None",     "n/a",  "nan",  "null"};

bool is_missing(const std::string& cell) { return std::find(kMissing.begin(), kMissing.end(), cell) != kMissing.end(); }

std::optional<bool> as_bool(const std::string& cell) {
  if (cell == "True" || cell == "TRUE" || cell == "true") return true;
  if (cell == "False" || cell == "FALSE" || cell == "false") return false;
  return std::nullopt;
}

std::string_view trimmed(std::string_view cell) {
  const size_t begin = cell.find_first_not_of(" \t\n\v\f\r");
  if (begin == std::string_view::npos) return "";
  return cell.substr(begin, cell.find_last_not_of(" \t\n\v\f\r") - begin + 1);
}

// "+05" -> "5"; nothing for what is no integer. Its size is not looked at.
std::optional<std::string> as_integer(std::string_view cell) {
  cell = trimmed(cell);
  const bool negative = !cell.empty() && cell[0] == '-';
  if (!cell.empty() && (cell[0] == '+' || cell[0] == '-')) cell.remove_prefix(1);
  if (cell.empty() || !std::all_of(cell.begin(), cell.end(), [](char c) { return c >= '0' && c <= '9'; }))
    return std::nullopt;
  cell.remove_prefix(std::min(cell.find_first_not_of('0'), cell.size() - 1));
  return (negative && cell != "0" ? "-" : "") + std::string(cell);
}

template <class T>
bool fits(const std::string& integer) {
  T value;
  const auto [stop, error] = std::from_chars(integer.data(), integer.data() + integer.size(), value);
  return error == std::errc() && stop == integer.data() + integer.size();
}

std::optional<double> as_number(std::string_view cell) {
  cell = trimmed(cell);
  std::string lower;
  for (const char c : cell) lower += static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  const bool negative = !lower.empty() && lower[0] == '-';
  if (!lower.empty() && (lower[0] == '+' || lower[0] == '-')) lower.erase(0, 1);
  if (lower == "inf" || lower == "infinity") return negative ? -INFINITY : INFINITY;
  if (lower.empty() || std::string_view("0123456789.").find(lower[0]) == std::string_view::npos)
    return std::nullopt;  // from_chars would read "nan" and a second sign as well
  double value;
  const auto [stop, error] = std::from_chars(lower.data(), lower.data() + lower.size(), value);
  if (error == std::errc::invalid_argument || stop != lower.data() + lower.size()) return std::nullopt;
  if (error == std::errc::result_out_of_range) {  // too large, or as good as zero: the exponent's sign tells
    const size_t e = lower.find('e');
    value = e != std::string::npos && lower[e + 1] == '-' ? 0 : INFINITY;
  }
  return negative ? -value : value;
}

// Python's repr of a float: the shortest digits that read back as the same number; an exponent below 1e-4 and from 1e16.
std::string python_repr(double value) {
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[40];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, std::abs(value), std::chars_format::scientific).ptr;
  const std::string text(buffer, end);
  const size_t e = text.find('e');
  std::string digits = text.substr(0, 1) + (e > 2 ? text.substr(2, e - 2) : "");
  const int exponent = std::stoi(text.substr(e + 1));
  const auto count = static_cast<int>(digits.size());
  const std::string sign = std::signbit(value) ? "-" : "";
  if (exponent < -4 || exponent >= 16)
    return sign + digits.substr(0, 1) + (count > 1 ? "." + digits.substr(1) : "") +
           strf("e%c%02d", exponent < 0 ? '-' : '+', std::abs(exponent));
  if (exponent < 0) return sign + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  if (count <= exponent + 1) return sign + digits + std::string(static_cast<size_t>(exponent + 1 - count), '0') + ".0";
  return sign + digits.substr(0, static_cast<size_t>(exponent) + 1) + "." +
         digits.substr(static_cast<size_t>(exponent) + 1);
}

// The column if it is one of integers: of 64 bits with a sign or, where one is too large for that, without. Digits that fit
// neither make it a column of text, of which nothing is missing.
std::optional<std::vector<std::string>> integer_column(const std::vector<std::string>& cells) {
  std::vector<std::string> printed;
  bool wide = false, missing = false;
  for (const std::string& cell : cells) {
    const auto integer = as_integer(cell);
    missing = missing || is_missing(cell);
    if (!integer && is_missing(cell)) continue;
    if (!integer && wide) return cells;
    if (!integer) return std::nullopt;
    wide = wide || !fits<int64_t>(*integer);
    printed.push_back(*integer);
  }
  if (!wide) return missing ? std::nullopt : std::optional(printed);
  if (missing || !std::all_of(printed.begin(), printed.end(), fits<uint64_t>)) return cells;
  return printed;
}

// The cells of one column as pandas prints them: whole numbers, else numbers, else truth values, else text.
std::vector<std::string> column_as_pandas(const std::vector<std::string>& cells) {
  const auto convert = [&](auto&& read, auto&& print) -> std::optional<std::vector<std::string>> {
    std::vector<std::string> printed;
    for (const std::string& cell : cells) {
      if (is_missing(cell)) {
        printed.push_back("nan");
        continue;
      }
      const auto value = read(cell);
      if (!value) return std::nullopt;
      printed.push_back(print(*value));
    }
    return printed;
  };
  const auto same = [](const std::string& text) { return text; };
  if (auto integers = integer_column(cells)) return *integers;
  if (auto numbers = convert(as_number, python_repr)) return *numbers;
  if (auto bools = convert(as_bool, [](bool b) { return std::string(b ? "True" : "False"); })) return *bools;
  return *convert([](const std::string& cell) { return std::optional(cell); }, same);
}

// The states of a reader that takes one character after the other, as pandas' own does.
class Reader {
 public:
  Reader(const std::string& path, const std::string& content, size_t columns)
      : path_(path), content_(content), columns_(columns) {}

  std::vector<CsvRow> read() {
    size_t at = content_.compare(0, 3, "\xEF\xBB\xBF") == 0 ? 3 : 0;
    while (at < content_.size()) {
      const size_t end = std::min(content_.find_first_of("\r\n", at), content_.size());
      if (content_.find_first_not_of(" \t", at) >= end) at = skip_line_break(end);  // a blank line
      else at = read_row(at);
    }
    return std::move(rows_);
  }

 private:
  size_t skip_line_break(size_t at) {
    if (at >= content_.size()) return at;
    ++line_;
    return at + (content_[at] == '\r' && at + 1 < content_.size() && content_[at + 1] == '\n' ? 2 : 1);
  }

  size_t read_row(size_t at) {
    CsvRow row{line_, {""}};
    bool quoted = false, fresh = true;  // fresh: at the beginning of a cell
    for (; at < content_.size(); ++at) {
      const char c = content_[at];
      if (quoted) {
        if (c == '\n') ++line_;
        if (c != '"') row.cells.back() += c;
        else if (at + 1 < content_.size() && content_[at + 1] == '"') row.cells.back() += content_[++at];
        else quoted = false;
        continue;
      }
      if (c == '\n' || c == '\r') break;
      if (c == ',') row.cells.emplace_back();
      else if (c == '"' && fresh) quoted = true;
      else row.cells.back() += c;
      fresh = c == ',';
    }
    if (quoted)
      throw Error(strf("%s: line %ld: a quote is never closed", path_.c_str(), row.line))
          .line("expected", "\" at the end of the cell")
          .line("found", "the end of the file")
          .line("likely", "an interrupted download or copy");
    if (row.cells.size() != columns_)
      throw Error(strf("%s: line %ld: not a row of this table", path_.c_str(), row.line))
          .line("expected", strf("%zu cells", columns_))
          .line("found", strf("%zu", row.cells.size()))
          .line("likely", "a file cut short, a header line, or not a comma-separated table");
    rows_.push_back(std::move(row));
    return skip_line_break(at);
  }

  const std::string& path_;
  const std::string& content_;
  size_t columns_;
  int64_t line_ = 1;
  std::vector<CsvRow> rows_;
};

}  // namespace

std::vector<CsvRow> parse_csv(const std::string& path, const std::string& content, size_t columns) {
  return Reader(path, content, columns).read();
}

int64_t print_as_pandas(std::vector<CsvRow>& rows) {
  int64_t changed = 0;
  for (size_t c = 0; !rows.empty() && c < rows[0].cells.size(); ++c) {
    std::vector<std::string> column;
    for (const CsvRow& row : rows) column.push_back(row.cells[c]);
    column = column_as_pandas(column);
    for (size_t r = 0; r < rows.size(); ++r) {
      changed += column[r] != rows[r].cells[c];
      rows[r].cells[c] = std::move(column[r]);
    }
  }
  return changed;
}

}  // namespace irq
