// CSV tables without a header line (RFC 4180: quoted cells may hold commas, line breaks and doubled quotes).
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace irq {

struct CsvRow {
  int64_t line = 0;  // where it begins in its file, from 1
  std::vector<std::string> cells;
};

// content: the whole file; a byte order mark and blank lines are passed over. Every row must have `columns` cells: otherwise
// an Error with file, line, what was expected and what was found.
std::vector<CsvRow> parse_csv(const std::string& path, const std::string& content, size_t columns);

// What becomes of the cells when pandas.read_csv(header=None) reads the table and its cells are printed with format(): "NA",
// "None", .. turn to "nan"; a column of numbers is printed as numbers ("0.50" -> "0.5", with a missing cell "5" -> "5.0");
// a column of TRUE and FALSE as True and False. Returns how many cells changed.
int64_t print_as_pandas(std::vector<CsvRow>& rows);

}  // namespace irq
