#include "src/report/table_run.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>

#include "src/core/check.h"
#include "src/core/file.h"
#include "src/core/interrupt.h"
#include "src/core/progress.h"
#include "src/io/checkpoint.h"
#include "src/report/cell_stages.h"
#include "src/report/inputs.h"
#include "src/report/markdown.h"
#include "src/text/tokenizer.h"

namespace irq {
namespace {

namespace fs = std::filesystem;

// The tools that a killed irq_table started hold this lock until they have ended, since they inherit it.
class ChildrenLock {
 public:
  ChildrenLock(std::string path, const std::function<void()>& on_wait) : path_(std::move(path)) {
    fd_ = open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd_ < 0) throw Error(path_ + ": cannot be written").line("try", "another --out");
    if (flock(fd_, LOCK_EX | LOCK_NB) == 0) return;
    on_wait();
    while (flock(fd_, LOCK_EX) != 0) {
      throw_if_interrupted();
      if (errno != EINTR) throw Error(path_ + ": cannot be locked");
    }
  }
  ~ChildrenLock() {
    unlink(path_.c_str());
    close(fd_);
  }
  ChildrenLock(const ChildrenLock&) = delete;
  int fd() const { return fd_; }

 private:
  std::string path_;
  int fd_ = -1;
};

constexpr int kShownLines = 12;  // of a failed tool's stderr; result.json has more

// Each on a line of its own, indented.
std::string last_lines(const std::string& text, int count) {
  size_t begin = text.size();
  for (int i = 0; i < count && begin > 0; ++i) {
    const size_t before = begin > 1 ? text.rfind('\n', begin - 2) : std::string::npos;
    begin = before == std::string::npos ? 0 : before + 1;
  }
  std::string all;
  for (size_t at = begin; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    all += "\n    " + text.substr(at, end - at);
    at = end + 1;
  }
  return all;
}

struct Failed {
  std::string cell, what;
};

class TableRun {
 public:
  explicit TableRun(const TableOptions& options)
      : o_(options), cells_(make_cells(options.rows, options.bits, options.seeds)) {}
  int run();

 private:
  void note(const std::string& text) const {
    if (!o_.quiet) std::fprintf(stderr, "%s\n", text.c_str());
  }
  void find_tools();
  void check_inputs() const;
  void check_records();
  void place_base();
  void place_data();
  std::map<std::string, double> quantize_seconds() const;
  void remove_untimed_bases() const;
  double eta(size_t from) const;
  bool run_cell(size_t index);
  void report_failure(const Cell& cell, const std::string& what);
  int write_table() const;
  std::string done_text() const;

  const TableOptions& o_;
  std::vector<Cell> cells_;
  InputHashes hashes_;
  Workshop shop_;
  std::map<std::string, CellRecord> records_;
  std::vector<Failed> failed_;
  Report versions_ = Report::object();
};

void TableRun::find_tools() {
  shop_.quantize_tool = sibling_program("irq_quantize");
  shop_.train_tool = sibling_program("irq_train"), shop_.eval_tool = sibling_program("irq_eval");
  for (const std::string& tool : {shop_.quantize_tool, shop_.train_tool, shop_.eval_tool}) {
    std::string version = run_child({tool, "--version"}, {ChildOptions::Errors::hidden, -1}).out;
    while (!version.empty() && version.back() == '\n') version.pop_back();
    versions_[base_name(tool)] = version;
  }
  const bool terminal = stderr_target(o_.quiet).style == ProgressStyle::bar;
  shop_.children.errors = o_.quiet   ? ChildOptions::Errors::hidden
                          : terminal ? ChildOptions::Errors::terminal
                                     : ChildOptions::Errors::lines;
}

void TableRun::check_inputs() const {
  if (const FileKind kind = sniff(o_.base); kind != FileKind::base)
    throw Error(o_.base + ": not " + describe(FileKind::base))
        .line("found", describe(kind))
        .line("expected", "the model before any quantization: every row makes its own base")
        .line("try", "the .bin it was made from");
  const bool trains = std::any_of(o_.rows.begin(), o_.rows.end(), [](const Row& r) { return r.method != nullptr; });
  if (trains && o_.data.empty())
    throw Error("a row trains, and there is no training data", Exit::usage).line("try", "--data FILE");
  if (o_.data.empty())
    for (const Row& row : o_.rows)
      if (row.calibrates_on_data())
        throw Error(row.name + ": GPTQ calibrates on the training data, and there is none", Exit::usage)
            .line("try", "--data FILE, or --set " + row.name + ":\"--calibration FILE\"");
  if (!o_.data.empty() && o_.eval_data.empty() && o_.holdout != 0) require_records(o_.data);
  if (o_.data.empty() && o_.eval_data.empty() && o_.choice.empty() && o_.mmlu.empty())
    throw Error("nothing to evaluate on", Exit::usage).line("try", "--data, --eval-data, --choice or --mmlu");
}

// Before anything runs: a cell made from other things is named at once, not hours later.
void TableRun::check_records() {
  hashes_ = hash_inputs(o_);
  const Identity evaluation = evaluation_identity(o_, hashes_);
  for (const Cell& cell : cells_) {
    const Identity training = training_identity(o_, cell, hashes_);
    const auto [it, added] = records_.try_emplace(cell.name, o_.folder(cell));
    CellRecord& record = it->second;
    const bool untouched = !record.has("quantize") && !record.has("train") && !record.has("evaluate") &&
                           !file_exists(o_.folder(cell) + "/run");
    const bool anew = untouched || (o_.overwrite && !record.same_training(training));
    const bool again = (o_.reevaluate || o_.overwrite) && record.same_training(training);
    if (record.existed() && again && !record.same_evaluation(evaluation)) record.forget_evaluation(evaluation);
    if (record.existed() && !anew) record.require(training, evaluation);
    else
      fs::remove_all(o_.folder(cell)), record.begin(training, evaluation);  // without a record nothing says what it is
  }
}

// The quantized bases lie beside the name that irq_train is given: a link in `base`, so that they are this table's own.
void TableRun::place_base() {
  const fs::path link = fs::path(o_.bases()) / base_name(o_.base);
  std::error_code failed;
  fs::create_directories(o_.bases());
  shop_.base = link.string();
  if (!fs::equivalent(o_.base, link, failed) || failed) {
    fs::remove(link, failed);
    fs::create_symlink(fs::absolute(o_.base), link, failed);
    if (failed) fs::copy_file(o_.base, link);  // a file system without links
  }
  for (const std::string& path : tokenizer_paths(o_.base)) {  // those of the base, whatever lies there
    const fs::path to = fs::path(o_.bases()) / base_name(path);
    if (!fs::equivalent(path, to, failed) || failed) fs::copy_file(path, to, fs::copy_options::overwrite_existing);
  }
}

void TableRun::place_data() {
  shop_.data = o_.data, shop_.held_out = o_.eval_data;
  if (o_.eval_data.empty() && !o_.data.empty() && o_.holdout != 0) {
    const std::string folder = o_.out + "/data";
    if (split_records(o_.data, o_.holdout, folder) > 0)
      shop_.data = folder + "/train.jsonl", shop_.held_out = folder + "/heldout.jsonl";
  }
  shop_.stream_held_out = !shop_.held_out.empty() && !holds_records(shop_.held_out);
  shop_.stream = shop_.stream_held_out || (!shop_.data.empty() && !holds_records(shop_.data));
}

std::map<std::string, double> TableRun::quantize_seconds() const {
  std::map<std::string, double> seconds;
  std::vector<fs::path> folders;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(o_.cells(), ignored)) folders.push_back(entry.path());
  std::sort(folders.begin(), folders.end());
  for (const fs::path& folder : folders) {
    const CellRecord record(folder.string());
    if (record.has("train")) {
      const Report& train = record.stage("train");
      if (train.contains("quantize_seconds") && train["quantize_seconds"].is_number())
        seconds.emplace(train.value("quantized", ""), train["quantize_seconds"].get<double>());
    } else if (const FinishedRun run = read_run((folder / "run").string()); run.quantize_seconds) {
      seconds.emplace(run.quantized, *run.quantize_seconds);
    }
  }
  return seconds;
}

// A base whose making was cut off from its record is made again, so that its time is known.
void TableRun::remove_untimed_bases() const {
  const auto known = quantize_seconds();
  std::vector<fs::path> unknown;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(o_.bases(), ignored))
    if (entry.path().extension() == ".irq" && !known.contains(entry.path().filename().string()))
      unknown.push_back(entry.path());
  for (const fs::path& path : unknown) fs::remove(path, ignored);
}

double wall_seconds(const CellRecord& record) {
  double sum = 0;
  for (const char* stage : {"quantize", "train", "evaluate"})
    if (record.has(stage)) sum += record.stage(stage).value("wall_seconds", 0.0);
  return sum;
}

// Seconds for the cells from `from` on, at the mean of the finished ones of their kind; negative when unknown.
double TableRun::eta(size_t from) const {
  double sum[2] = {0, 0}, left = 0;
  int count[2] = {0, 0};
  for (const Cell& cell : cells_) {
    const CellRecord& record = records_.at(cell.name);
    if (record.finished())
      sum[cell.row->method != nullptr] += wall_seconds(record), ++count[cell.row->method != nullptr];
  }
  for (size_t i = from; i < cells_.size(); ++i) {
    if (records_.at(cells_[i].name).finished()) continue;
    const bool trains = cells_[i].row->method != nullptr;
    if (count[trains] == 0) return -1;
    left += sum[trains] / count[trains];
  }
  return left;
}

std::string TableRun::done_text() const {
  const auto done =
      std::count_if(records_.begin(), records_.end(), [](const auto& entry) { return entry.second.finished(); });
  return strf("%ld of %zu cells", static_cast<long>(done), cells_.size());
}

void TableRun::report_failure(const Cell& cell, const std::string& what) {
  failed_.push_back({cell.name, what});
  std::fprintf(stderr, "irq_table: cell %s failed: %s\n", cell.name.c_str(), what.c_str());
}

// False where the cell failed.
bool TableRun::run_cell(size_t index) {
  const Cell& cell = cells_[index];
  CellRecord& record = records_.at(cell.name);
  CellStages stages(o_, shop_, cell, record);
  try {
    if (!record.finished())
      stages.run([&](const char* stage) {
        throw_if_interrupted();
        const double left = eta(index);
        note(strf("cell %zu of %zu: %s: %s", index + 1, cells_.size(), cell.name.c_str(), stage) +
             (left < 0 ? "" : " | eta " + format_eta(left)));
      });
    stages.prune();
    return true;
  } catch (const StageFailure& failure) {
    record.fail(failure.command, failure.status, failure.err);
    const std::string how = failure.signalled ? strf("was killed by signal %d", failure.status - 128)
                                              : strf("ended with status %d", failure.status);
    report_failure(cell, "the tool " + how + "\n  command : " + failure.command +
                             "\n  stderr  :" + last_lines(failure.err, kShownLines));
  } catch (const Error& error) {
    if (error.exit_code() == Exit::interrupted) throw;
    record.fail("", 0, error.what());
    report_failure(cell, error.what());
  }
  return false;
}

int TableRun::write_table() const {
  std::map<std::string, Report> finished;
  for (const auto& [name, record] : records_)
    if (record.finished()) finished[name] = record.all();
  const TableSummary summary = summarize(cells_, finished, quantize_seconds());
  Report failed = Report::array();
  for (const Failed& f : failed_) failed.push_back({{"cell", f.cell}, {"error", f.what}});
  const Report report = {
      {"format", 1},
      {"command", o_.command},
      {"versions", versions_},
      {"base", {{"file", base_name(o_.base)}, {"hash", hashes_.base}}},
      {"data", {{"file", base_name(o_.data)}, {"hash", hashes_.data}, {"held_out", hashes_.held_out}}},
      {"devices", summary.devices},
      {"rows", summary_report(summary)},
      {"failed", failed}};
  std::string text = "## " + base_name(o_.base) + (o_.data.empty() ? "" : ", " + base_name(o_.data)) + "\n\n" +
                     render_markdown(summary);
  if (!failed_.empty()) {
    text += "- **Not all cells are in the table; failed:**";
    for (const Failed& f : failed_) text += " " + f.cell;
    text += "\n";
  }
  write_text_file(o_.out + "/table.json", report.dump(2, ' ', false, Report::error_handler_t::replace) + "\n");
  write_text_file(o_.out + "/table.md", text);
  std::fputs(text.c_str(), stdout);
  note(o_.out + "/table.md, " + o_.out + "/table.json");
  return failed_.empty() ? 0 : 1;
}

int TableRun::run() {
  check_inputs();
  find_tools();
  std::error_code failed;
  fs::create_directories(o_.cells(), failed);
  if (failed)
    throw Error(o_.out + ": the folder cannot be made").line("found", failed.message()).line("try", "another --out");
  const auto lock = FileLock::try_lock(o_.out + "/table.lock");
  if (!lock) throw Error(o_.out + ": another irq_table is working here").line("try", "wait for it, or another --out");
  const ChildrenLock children(o_.out + "/children.lock",
                              [&] { note("waiting: a tool that an interrupted irq_table started is still ending"); });
  shop_.children.inherited_fd = children.fd();
  check_records();
  place_base();
  place_data();
  remove_untimed_bases();
  note(o_.out + ": " + done_text() + " are done");
  try {
    for (size_t i = 0; i < cells_.size(); ++i) {
      if (run_cell(i) || !o_.stop_on_error) continue;
      note("stopped at the first failure (--stop-on-error)");
      break;
    }
  } catch (const Error& error) {
    if (error.exit_code() != Exit::interrupted) throw;
    throw Error("interrupted", Exit::interrupted)
        .line("done", done_text())
        .line("try", "the same command again goes on from here:  " + o_.command);
  }
  if (o_.keep == "none" && failed_.empty())
    for (const auto& entry : fs::directory_iterator(o_.bases(), failed))
      if (entry.path().extension() == ".irq") fs::remove(entry.path(), failed);
  const int status = write_table();
  if (!failed_.empty()) {
    std::string names;
    for (const Failed& f : failed_) names += " " + f.cell;
    std::fprintf(stderr,
                 "irq_table: %zu of %zu cells failed:%s\n  try     : the same command again tries these alone\n",
                 failed_.size(), cells_.size(), names.c_str());
  }
  return status;
}

}  // namespace

int run_table(const TableOptions& options) {
  try {
    return TableRun(options).run();
  } catch (const fs::filesystem_error& e) {
    throw Error(e.path1().string() + ": " + e.code().message()).line("try", "another --out, or free some space");
  } catch (const nlohmann::json::exception& e) {
    throw Error(options.cells() + ": a result.json in here is damaged")
        .line("found", e.what())
        .line("try", "remove that cell's folder, then the same command again");
  }
}

}  // namespace irq
