// What irq_table was asked for, and where its parts lie.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "src/report/matrix.h"

namespace irq {

struct TableOptions {
  std::string base, data, eval_data, mmlu, out;
  int64_t holdout = -1;             // records of data held out where eval_data is "", -1: 2 %, at most 1,024
  int64_t window = 512;             // tokens per example of plain text and token files
  std::vector<std::string> choice;  // files of multiple-choice questions
  std::vector<Row> rows;
  std::vector<int> bits;
  std::vector<int64_t> seeds;
  std::vector<std::string> train_flags;    // of irq_train, for every row that trains
  std::vector<std::string> adapter_flags;  // ... for those with adapters: --rank 16
  std::vector<std::string> eval_flags;     // of irq_eval
  std::vector<std::string> both_flags;     // of irq_train and irq_eval: how text becomes tokens, and the precision
  std::vector<std::string> machine_flags;  // of every tool, without influence on a cell's identity: --device cuda
  std::string keep = "adapters";           // none | adapters | all
  bool stop_on_error = false, overwrite = false, reevaluate = false, quiet = false;
  std::string command, version;  // for the records, and for "go on with"

  std::string cells() const { return out + "/cells"; }
  std::string folder(const Cell& cell) const { return cells() + "/" + cell.name; }
  std::string bases() const { return out + "/base"; }
};

}  // namespace irq
