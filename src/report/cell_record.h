// A cell's result.json: what it was made from, and what its finished stages found. Written whole or not at all, so that a
// cut at any point leaves the stages before it.
#pragma once
#include <map>
#include <string>

#include "src/report/run_folder.h"
#include "src/report/table_options.h"

namespace irq {

// What must agree for a cell to be the same: words by name. Contents stand for files; flags that change nothing but time
// and memory are left out.
using Identity = std::map<std::string, std::string>;

// The hashes that all cells share, found once.
struct InputHashes {
  std::string base, tokenizer, data, held_out, mmlu;  // held_out: of eval_data, or how it is cut from data; "" without
  std::map<std::string, std::string> tasks;           // of --choice: name of the file without its ending -> hash
};
InputHashes hash_inputs(const TableOptions& options);
std::string task_name_of(const std::string& path);  // "arc_easy" of "a/arc_easy.jsonl"

Identity training_identity(const TableOptions& options, const Cell& cell, const InputHashes& inputs);
Identity evaluation_identity(const TableOptions& options, const InputHashes& inputs);

class CellRecord {
 public:
  // Reads folder/result.json where there is one; a broken one counts as none.
  explicit CellRecord(std::string folder);
  bool existed() const { return existed_; }
  bool finished() const { return stages_.value("finished", false); }
  // Throws an Error naming the differences and the ways out unless both identities are the recorded ones.
  void require(const Identity& training, const Identity& evaluation) const;
  bool same_training(const Identity& training) const { return read("made_from") == training; }
  bool same_evaluation(const Identity& evaluation) const { return read("evaluated_on") == evaluation; }
  void begin(const Identity& training, const Identity& evaluation);  // writes the record of a cell that starts
  void forget_evaluation(const Identity& evaluation);                // ... of one that is to be evaluated anew

  bool has(const char* stage) const { return stages_.contains(stage); }
  const Report& all() const { return stages_; }
  const Report& stage(const char* name) const { return stages_.at(name); }
  void set(const char* stage, Report result);  // and writes
  void finish();
  void fail(const std::string& command, int status, const std::string& err);

 private:
  Identity read(const char* key) const;
  void save() const;

  std::string folder_;
  bool existed_ = false;
  Report stages_;
};

}  // namespace irq
