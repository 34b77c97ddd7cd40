// Words of a command line: sizes with units, and which known word a mistyped one is nearest to.
#include <algorithm>
#include <charconv>
#include <cmath>

#include "tools/cli.h"

namespace irq {

int64_t parse_size(const std::string& text) {
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const std::string unit(end, text.data() + text.size());
  const std::pair<const char*, double> units[] = {{"", 1},         {"B", 1},        {"K", 0x1p10},   {"M", 0x1p20},
                                                  {"G", 0x1p30},   {"T", 0x1p40},   {"KiB", 0x1p10}, {"MiB", 0x1p20},
                                                  {"GiB", 0x1p30}, {"TiB", 0x1p40}, {"kB", 1e3},     {"KB", 1e3},
                                                  {"MB", 1e6},     {"GB", 1e9},     {"TB", 1e12}};
  for (const auto& [name, factor] : units)
    if (error == std::errc{} && unit == name && number >= 0 && number * factor < 9e18)
      return static_cast<int64_t>(std::llround(number * factor));
  throw Error("'" + text + "' is not a size", Exit::usage).line("expected", "a number and a unit: 10GiB, 10G, 800MB");
}

int edit_distance(const std::string& a, const std::string& b) {
  const size_t m = b.size();
  std::vector<int> before(m + 1), last(m + 1), row(m + 1);
  for (size_t j = 0; j <= m; ++j) last[j] = static_cast<int>(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = static_cast<int>(i);
    for (size_t j = 1; j <= m; ++j) {
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) row[j] = std::min(row[j], before[j - 2] + 1);
    }
    before.swap(last);
    last.swap(row);
  }
  return last[m];
}

std::string nearest(const std::string& word, const std::vector<std::string>& known) {
  std::string best;
  int best_distance = static_cast<int>(word.size()) / 3 + 1;  // a third of the letters may be wrong
  for (const std::string& candidate : known) {
    int distance = edit_distance(word, candidate);
    if (candidate.size() > word.size() && candidate.compare(0, word.size(), word) == 0 && word.size() > 3) distance = 1;
    if (distance < best_distance || (distance == best_distance && best.empty()))
      best = candidate, best_distance = distance;
  }
  return best;
}

}  // namespace irq
