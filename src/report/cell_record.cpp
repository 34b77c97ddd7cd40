#include "src/report/cell_record.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include "src/core/file.h"
#include "src/core/hash.h"
#include "src/io/checkpoint.h"
#include "src/report/inputs.h"
#include "src/text/tokenizer.h"

namespace irq {
namespace {

constexpr int kFormat = 1;

// Of irq_train: what they change is time and memory, or what is written in between.
const std::set<std::string> kFreeFlags = {"--micro-batch", "--memory-limit", "--recompute",  "--residency",
                                          "--tune-matmul", "--graphs",       "--eval-every", "--save-every"};

std::vector<std::string> without_free_flags(const std::vector<std::string>& words) {
  std::vector<std::string> kept;
  for (size_t i = 0; i < words.size(); ++i) {
    if (kFreeFlags.contains(words[i])) ++i;  // with its value
    else if (!kFreeFlags.contains(words[i].substr(0, words[i].find('=')))) kept.push_back(words[i]);
  }
  return kept;
}

std::string flags_text(std::vector<std::string> words) {
  words = without_free_flags(words);
  return words.empty() ? "none" : join_quoted(with_hashed_files(words));
}

std::string hash_of_tokenizer(const std::string& model) {
  std::string all;
  for (const std::string& path : tokenizer_paths(model)) all += hash_of_file(path);
  return all.empty() ? "none" : all;
}

std::string quoted_difference(const std::string& key, const Identity& in) {
  const auto it = in.find(key);
  return key + ": " + (it == in.end() ? "none" : it->second);
}

// Labels "then" and "now" for every key that differs.
void add_differences(Error& error, const Identity& then, const Identity& now) {
  std::set<std::string> keys;
  for (const Identity* side : {&then, &now})
    for (const auto& [key, value] : *side) keys.insert(key);
  for (const std::string& key : keys) {
    const std::string before = quoted_difference(key, then), after = quoted_difference(key, now);
    if (before != after) error.line("then", before).line("now", after);
  }
}

}  // namespace

std::string task_name_of(const std::string& path) {
  const std::string name = base_name(path);
  return name.substr(0, name.rfind('.'));
}

InputHashes hash_inputs(const TableOptions& o) {
  InputHashes in;
  in.base = strf("%016lx", BaseReader(o.base).hash());
  in.tokenizer = hash_of_tokenizer(o.base);
  if (!o.data.empty()) in.data = hash_of_file(o.data);
  if (!o.eval_data.empty()) in.held_out = hash_of_file(o.eval_data);
  else if (!o.data.empty() && o.holdout != 0)
    in.held_out = (o.holdout < 0 ? std::string("2 %") : strf("%ld records", o.holdout)) + " of " + in.data;
  if (!o.mmlu.empty()) in.mmlu = hash_of_mmlu(o.mmlu);
  for (const std::string& path : o.choice)
    if (!in.tasks.emplace(task_name_of(path), hash_of_file(path)).second)
      throw Error("--choice: two tasks are called " + task_name_of(path), Exit::usage).line("try", "rename a file");
  return in;
}

Identity training_identity(const TableOptions& o, const Cell& cell, const InputHashes& in) {
  Identity id = {{"row", cell.row->kind()}, {"base", in.base}};
  if (cell.bits > 0) id["bits"] = std::to_string(cell.bits);
  std::vector<std::string> flags;
  if (cell.row->method != nullptr) {
    id["seed"] = std::to_string(cell.seed), id["data"] = in.data, id["tokenizer"] = in.tokenizer;
    if (!in.held_out.empty()) id["held-out data"] = in.held_out;
    append(flags, o.train_flags);
    if (cell.row->method->lora) append(flags, o.adapter_flags);
    append(flags, o.both_flags);
  }
  if (cell.row->calibrates_on_data()) {
    id["data"] = in.data, id["tokenizer"] = in.tokenizer;
    if (!in.held_out.empty()) id["held-out data"] = in.held_out;  // cut out of the data, perhaps
  }
  append(flags, cell.row->flags);
  id["flags"] = flags_text(flags);
  return id;
}

Identity evaluation_identity(const TableOptions& o, const InputHashes& in) {
  Identity id;
  if (!in.held_out.empty()) id["held-out data"] = in.held_out;
  for (const auto& [name, hash] : in.tasks) id["task " + name] = hash;
  if (!in.mmlu.empty()) id["mmlu"] = in.mmlu;
  std::vector<std::string> flags = o.eval_flags;
  append(flags, o.both_flags);
  id["flags of irq_eval"] = flags_text(flags);
  return id;
}

CellRecord::CellRecord(std::string folder) : folder_(std::move(folder)), stages_(Report::object()) {
  const std::string path = folder_ + "/result.json";
  if (!file_exists(path)) return;
  Report read = Report::parse(read_text_file(path), nullptr, false);
  if (!read.is_object() || !read.contains("made_from")) return;
  const auto format = read.find("format");
  if (format == read.end() || !format->is_number_integer() || format->get<int>() != kFormat)
    throw Error(path + ": not a record of this version")
        .line("expected", strf("format %d", kFormat))
        .line("found", format == read.end() ? "none" : format->dump())
        .line("try", "the irq_table that wrote it, or another --out");
  existed_ = true;
  stages_ = std::move(read);
}

Identity CellRecord::read(const char* key) const {
  Identity id;
  const auto it = stages_.find(key);
  if (it == stages_.end() || !it->is_object()) return id;
  for (const auto& [name, value] : it->items()) id[name] = value.is_string() ? value.get<std::string>() : value.dump();
  return id;
}

void CellRecord::require(const Identity& training, const Identity& evaluation) const {
  if (!existed_) return;
  if (!same_training(training)) {
    Error error(folder_ + ": this cell was made with other options");
    add_differences(error, read("made_from"), training);
    throw error.line("try", "--overwrite (make such cells again), the options of then, or another --out");
  }
  if (same_evaluation(evaluation)) return;
  Error error(folder_ + ": this cell was evaluated with other options");
  add_differences(error, read("evaluated_on"), evaluation);
  throw error.line("try", "--reevaluate (trained cells are kept), the options of then, or another --out");
}

void CellRecord::begin(const Identity& training, const Identity& evaluation) {
  std::filesystem::create_directories(folder_);
  existed_ = true;
  stages_ = {{"format", kFormat}, {"made_from", training}, {"evaluated_on", evaluation}};
  save();
}

void CellRecord::forget_evaluation(const Identity& evaluation) {
  stages_.erase("evaluate"), stages_.erase("finished");
  stages_["evaluated_on"] = evaluation;
  save();
}

void CellRecord::set(const char* stage, Report result) {
  stages_.erase("error");
  stages_[stage] = std::move(result);
  save();
}

void CellRecord::finish() {
  stages_["finished"] = true;
  save();
}

void CellRecord::fail(const std::string& command, int status, const std::string& err) {
  stages_["error"] = {{"command", command}, {"status", status}, {"stderr", err}};
  save();
}

void CellRecord::save() const {
  write_text_file(folder_ + "/result.json", stages_.dump(2, ' ', false, Report::error_handler_t::replace) + "\n");
}

}  // namespace irq
