// The stages of one cell: quantize or train, then evaluate, each by one of the sibling tools.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "src/core/child_process.h"
#include "src/report/cell_record.h"

namespace irq {

// A tool that did not succeed.
struct StageFailure {
  std::string command;
  int status = 0;
  bool signalled = false;
  std::string err;  // the end of its stderr
};

// What the tools are called with besides the cell's own.
struct Workshop {
  std::string base, data, held_out;  // as the tools find them now; held_out "": none
  bool stream = false;               // data or held_out is plain text or tokens
  bool stream_held_out = false;
  std::string quantize_tool, train_tool, eval_tool;
  ChildOptions children;
};

class CellStages {
 public:
  CellStages(const TableOptions& options, const Workshop& workshop, const Cell& cell, CellRecord& record)
      : o_(options), shop_(workshop), cell_(cell), record_(record), folder_(options.folder(cell)) {}
  // Does what is not done yet; on_stage is told "quantize", "train" or "evaluate" before each. Throws StageFailure, and an
  // Error with Exit::interrupted.
  void run(const std::function<void(const char* stage)>& on_stage);
  // Removes what --keep does not keep. May be done again.
  void prune() const;

 private:
  using Words = std::vector<std::string>;
  bool trains() const { return cell_.row->method != nullptr; }
  std::string run_folder() const { return folder_ + "/run"; }
  std::string quantized_path() const { return folder_ + "/model.irq"; }
  std::string shown(Words words) const;
  ChildResult start(Words words);
  Words train_command() const;
  void quantize();
  void train();
  void evaluate();
  bool evaluation_needed(bool* loss) const;
  std::string model_path() const;    // of what is evaluated
  std::string adapter_path() const;  // "": none

  const TableOptions& o_;
  const Workshop& shop_;
  const Cell& cell_;
  CellRecord& record_;
  std::string folder_;
  std::string command_;  // the last one started
};

// The figures of irq_eval's report without its questions; standard errors of MMLU's groups are worked out here.
Report compact_evaluation(const Report& report);

}  // namespace irq
