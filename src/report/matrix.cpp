#include "src/report/matrix.h"

#include <algorithm>

#include "src/core/check.h"

namespace irq {

const std::vector<UntrainedRow>& untrained_rows() {
  static const std::vector<UntrainedRow> all = {
      {"16-bit", "", "the base as it is"},
      {"nf", "--format nf --no-icq", "NormalFloat, nothing trains"},
      {"nf-icq", "--format nf --icq", "NormalFloat with ICQ, nothing trains"},
      {"int", "--format int --no-icq", "integers, rounded to the nearest, nothing trains"},
      {"int-icq", "--format int --icq", "integers with ICQ, nothing trains"},
      {"gptq", "--format gptq --no-icq", "integers by GPTQ, nothing trains"},
  };
  return all;
}

bool Row::has_bits() const { return method ? method->quantized() : plain->quantized(); }

bool Row::calibrates_on_data() const {
  if (plain == nullptr || std::string(plain->flags).find("gptq") == std::string::npos) return false;
  return std::none_of(flags.begin(), flags.end(), [](const std::string& f) { return f.starts_with("--calibration"); });
}

std::vector<std::string> known_kinds() {
  std::vector<std::string> names;
  for (const UntrainedRow& r : untrained_rows()) names.push_back(r.name);
  for (const Method& m : methods()) names.push_back(m.name);
  return names;
}

Row make_row(const std::string& name, const std::string& kind, std::vector<std::string> flags) {
  Row row;
  row.name = name, row.flags = std::move(flags);
  for (const UntrainedRow& r : untrained_rows())
    if (kind == r.name) row.plain = &r;
  if (row.plain == nullptr) row.method = &find_method(kind);
  return row;
}

std::vector<Cell> make_cells(const std::vector<Row>& rows, const std::vector<int>& bits,
                             const std::vector<int64_t>& seeds) {
  std::vector<Cell> cells;
  const auto add = [&](const Row& row, int k) {
    const std::string name = row.name + (k > 0 ? strf("-%dbit", k) : "");
    if (row.method == nullptr) cells.push_back({&row, k, -1, name});
    else
      for (const int64_t seed : seeds) cells.push_back({&row, k, seed, name + strf("-seed%ld", seed)});
  };
  for (const Row& row : rows)
    if (!row.has_bits()) add(row, 0);
  for (const int k : bits)
    for (const Row& row : rows)
      if (row.has_bits()) add(row, k);
  return cells;
}

void append(std::vector<std::string>& to, const std::vector<std::string>& more) {
  to.insert(to.end(), more.begin(), more.end());
}

std::vector<std::string> split_words(const std::string& text) {
  std::vector<std::string> words;
  std::string word;
  bool inside = false;  // of a word, which may be empty: ''
  char quote = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '\\' && quote != '\'' && i + 1 < text.size()) {
      word += text[++i], inside = true;
    } else if (quote != 0) {
      if (c == quote) quote = 0;
      else word += c;
    } else if (c == '\'' || c == '"') {
      quote = c, inside = true;
    } else if (c == ' ' || c == '\t' || c == '\n') {
      if (inside) words.push_back(word);
      word.clear(), inside = false;
    } else {
      word += c, inside = true;
    }
  }
  if (quote != 0) throw Error("a quote is not closed: " + text, Exit::usage);
  if (inside) words.push_back(word);
  return words;
}

std::string join_quoted(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " ") + shell_quoted(word);
  return text;
}

}  // namespace irq
