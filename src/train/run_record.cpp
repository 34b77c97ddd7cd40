#include "src/train/run_record.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "src/core/file.h"
#include "src/io/checkpoint.h"

namespace irq {

std::string json_number(double x) { return std::isfinite(x) ? nlohmann::json(x).dump() : "null"; }
std::string json_text(const std::string& s) {
  return nlohmann::json(s).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

namespace {

// Is a line of the old log true of a run that goes on after `step`?
bool still_holds(const std::string& line, int64_t step) {
  const nlohmann::json j = nlohmann::json::parse(line, nullptr, false);
  if (!j.is_object() || j.contains("finished")) return false;
  return !j.contains("step") || (j["step"].is_number_integer() && j["step"].get<int64_t>() <= step);
}

}  // namespace

RunLog::RunLog(const std::string& path, bool resume, int64_t resumed_step) : path_(path) {
  std::string kept;
  if (resume && file_exists(path)) {
    const std::string old = read_text_file(path);
    for (size_t begin = 0; begin < old.size();) {
      const size_t end = old.find('\n', begin);
      if (end == std::string::npos) break;  // a line cut by a crash
      const std::string line = old.substr(begin, end - begin);
      if (still_holds(line, resumed_step)) kept += line + "\n";
      begin = end + 1;
    }
  }
  write_text_file(path, kept);
  fd_ = open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  if (fd_ < 0) throw Error(path + ": cannot be written").line("try", "another --out folder");
}

bool log_is_finished(const std::string& path, int64_t step) {
  if (!file_exists(path)) return false;
  const std::string text = read_text_file(path);
  if (text.empty() || text.back() != '\n') return false;
  const size_t before = text.size() > 1 ? text.rfind('\n', text.size() - 2) : std::string::npos;
  const nlohmann::json j =
      nlohmann::json::parse(text.substr(before == std::string::npos ? 0 : before + 1), nullptr, false);
  return j.is_object() && j.contains("finished") && j.value("step", int64_t{-1}) == step;
}

RunLog::~RunLog() {
  if (fd_ >= 0) close(fd_);
}

void RunLog::write(const std::string& json_object) {
  const std::string line = json_object + "\n";
  const off_t whole = lseek(fd_, 0, SEEK_END);
  for (size_t done = 0; done < line.size();) {
    const ssize_t n = ::write(fd_, line.data() + done, line.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      const int error = n < 0 ? errno : ENOSPC;
      if (ftruncate(fd_, whole) != 0) { /* then a resumed run drops the cut line */
      }
      throw Error(path_ + ": cannot be written: " + std::strerror(error)).line("try", "free some space, then --resume");
    }
    done += static_cast<size_t>(n);
  }
}

void save_state(Backend& backend, ParamStore& params, const TrainState& s, const std::string& path) {
  const nlohmann::json text = {{"step", s.step},           {"cursor", s.cursor},     {"seed", s.seed},
                               {"base_hash", s.base_hash}, {"finished", s.finished}, {"loss_before", s.loss_before},
                               {"identity", s.identity},   {"matmul", s.matmul}};
  std::vector<std::vector<float>> values;
  std::vector<Tensor> arrays;
  const std::pair<const char*, Tensor> all[] = {
      {"masters", params.values()}, {"adam_m", params.adam_m()}, {"adam_v", params.adam_v()}};
  for (const auto& [name, tensor] : all) {
    values.emplace_back(static_cast<size_t>(tensor.numel()));
    backend.download(values.back().data(), tensor);
    arrays.push_back(make_view(values.back().data(), DType::F32, 1, tensor.numel(), name));
  }
  write_state(path, text.dump(), arrays);
}

namespace {

TrainState parse(const std::string& text, const std::string& path) {
  const nlohmann::json j = nlohmann::json::parse(text, nullptr, false);
  if (j.is_discarded() || !j.is_object())
    throw Error(path + ": the state's text is not JSON").line("try", "--overwrite");
  try {
    return {j.at("step"),     j.at("cursor"),      j.at("seed"),     j.at("base_hash"),
            j.at("finished"), j.at("loss_before"), j.at("identity"), j.value("matmul", "")};
  } catch (const nlohmann::json::exception& e) {
    throw Error(path + ": the state is not one of irq_train's").line("found", e.what()).line("try", "--overwrite");
  }
}

}  // namespace

TrainState peek_state(const std::string& path) { return parse(StateReader(path).text(), path); }

TrainState load_state(Backend& backend, ParamStore& params, const std::string& path) {
  StateReader reader(path);
  const std::pair<const char*, Tensor> all[] = {
      {"masters", params.values()}, {"adam_m", params.adam_m()}, {"adam_v", params.adam_v()}};
  for (const auto& [name, tensor] : all) {
    const TensorSpec* spec = reader.layout().find(name);
    if (spec == nullptr || spec->rows * spec->cols != tensor.numel())
      throw Error(path + ": this state belongs to another run")
          .line("expected", with_commas(tensor.numel()) + " values of " + name)
          .line("found", spec ? with_commas(spec->rows * spec->cols) : "none")
          .line("try", "the options of the first run, or --overwrite");
    backend.upload(tensor, reader.tensor(name).data);
  }
  return parse(reader.text(), path);
}

}  // namespace irq
