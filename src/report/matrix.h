// What irq_table is asked for: rows (a method, or a quantizer without training, and its flags) x bits x seeds = cells.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "src/model/method.h"

namespace irq {

// A row that trains nothing: the base through irq_quantize and these flags; without any, the base as it is.
struct UntrainedRow {
  const char* name;
  const char* flags;
  const char* what;
  bool quantized() const { return *flags != 0; }
};
const std::vector<UntrainedRow>& untrained_rows();  // "16-bit", "nf", "nf-icq", "int", ...

struct Row {
  std::string name;                     // in the table, and of the cells' folders
  const Method* method = nullptr;       // null: nothing trains
  const UntrainedRow* plain = nullptr;  // null: something does
  std::vector<std::string> flags;       // of irq_train or irq_quantize, for this row alone
  std::string kind() const { return method ? method->name : plain->name; }
  bool has_bits() const;
  // GPTQ without training, and no --calibration among the flags: the table's own training data serves.
  bool calibrates_on_data() const;
};

// Every name that a row can have by itself: the methods of irq_train and the rows without training.
std::vector<std::string> known_kinds();
// The row of a kind, under its own or another name; nothing is thrown, `kind` must be known.
Row make_row(const std::string& name, const std::string& kind, std::vector<std::string> flags = {});

struct Cell {
  const Row* row = nullptr;
  int bits = 0;       // 0: the row has none
  int64_t seed = -1;  // -1: nothing is random
  std::string name;   // "ir-qlora-4bit-seed1"
};
// Bits by bits in the order given, so that rows that belong together stand together; rows without bits come first.
std::vector<Cell> make_cells(const std::vector<Row>& rows, const std::vector<int>& bits,
                             const std::vector<int64_t>& seeds);

void append(std::vector<std::string>& to, const std::vector<std::string>& more);
// "--a 'b c' d" -> words, by a shell's rules for quotes and backslashes, nothing else of it. Throws a usage Error where a
// quote is not closed.
std::vector<std::string> split_words(const std::string& text);
std::string join_quoted(const std::vector<std::string>& words);  // the inverse

}  // namespace irq
