// What a run leaves behind: log.jsonl (opened by the resolved configuration), train.state, and the result.
#pragma once
#include <string>

#include "src/train/trainer.h"

namespace irq {

// One JSON object per line, written at once and whole or not at all. On resume, lines behind the step that is resumed are
// cut off.
class RunLog {
 public:
  RunLog(const std::string& path, bool resume, int64_t resumed_step);
  ~RunLog();
  RunLog(const RunLog&) = delete;
  void write(const std::string& json_object);

 private:
  int fd_ = -1;
  std::string path_;
};

// Does the log end with the line of a run that finished after `step`?
bool log_is_finished(const std::string& path, int64_t step);

// Where training stands, beside the arrays of the ParamStore.
struct TrainState {
  int64_t step = 0, cursor = 0;
  uint64_t seed = 0, base_hash = 0;
  bool finished = false;
  double loss_before = -1;  // held-out, before the first step
  std::string identity;     // what must agree for a resume to be the same run: one "flag value" a line, and the data
  std::string matmul;       // Backend::matmul_choices() of the run: with other algorithms the last bits would differ
};
void save_state(Backend& backend, ParamStore& params, const TrainState& state, const std::string& path);
// Reads the header text only.
TrainState peek_state(const std::string& path);
// Fills the masters, m and v; throws an Error when they do not fit this run.
TrainState load_state(Backend& backend, ParamStore& params, const std::string& path);

std::string json_number(double x);  // shortest text that reads back as x; null for NaN
std::string json_text(const std::string& s);

}  // namespace irq
