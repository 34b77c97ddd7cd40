#include "src/report/run_folder.h"

#include <filesystem>
#include <sstream>

#include "src/core/file.h"
#include "src/io/checkpoint.h"
#include "src/quant/quantize.h"

namespace irq {
namespace {

std::optional<double> optional_number(const Report& j, const char* key) {
  const auto it = j.find(key);
  if (it == j.end() || !it->is_number()) return std::nullopt;
  return it->get<double>();
}

std::string text_of(const Report& j, const char* key) {
  const auto it = j.find(key);
  return it != j.end() && it->is_string() ? it->get<std::string>() : "";
}

// The line that opens a run, or a resumption of it.
void read_header(const Report& line, FinishedRun& run) {
  run.device = text_of(line, "device"), run.base_hash = text_of(line, "base");
  run.trained_parameters = line.value("trained_parameters", int64_t{0});
  run.quantized = text_of(line, "quantized");
  if (!run.quantize_seconds) run.quantize_seconds = optional_number(line, "quantize_seconds");
}

// The one place that knows what a method leaves: the log's last line names the file. A model stands for itself (qlora-gptq
// leaves an adapter too, from before the weights were quantized again); an adapter belongs to the base.
void find_result(const Report& last, FinishedRun& run) {
  const std::string result = text_of(last, "result");
  if (result.empty()) run.finished = false;  // a line of another version: train on, and have it written again
  else if (result.ends_with(".lora")) run.adapter = result;
  else run.model = result;
}

}  // namespace

FinishedRun read_run(const std::string& folder) {
  FinishedRun run;
  const std::string path = folder + "/log.jsonl";
  if (!file_exists(path)) return run;
  std::istringstream in(read_text_file(path));
  for (std::string text; std::getline(in, text);) {
    if (in.eof()) break;  // the last line has no end: it was cut
    const Report line = Report::parse(text, nullptr, false);
    if (!line.is_object()) continue;
    if (line.contains("command")) read_header(line, run);
    run.train_seconds += optional_number(line, "seconds").value_or(0);
    const int64_t step = line.value("step", int64_t{-1});
    if (step >= 0) run.steps = step;
    run.finished = line.contains("finished");
    if (line.contains("held_out_loss"))
      (step == 0 && !run.finished ? run.loss_before : run.loss_after) = optional_number(line, "held_out_loss");
    if (!run.finished) continue;
    run.peak_bytes = line.value("peak_bytes", int64_t{0});
    run.requantize_seconds = optional_number(line, "requantize_seconds").value_or(0);
    find_result(line, run);
  }
  return run;
}

Report model_facts(const std::string& path) {
  std::error_code failed;
  const auto file_bytes = static_cast<int64_t>(std::filesystem::file_size(path, failed));
  ModelConfig config;
  int64_t linear_bytes = 0;
  Report facts;
  if (sniff(path) == FileKind::quantized) {
    IrqReader in(path);
    config = in.config();
    for (const LinearShape& l : layer_linears(config))
      linear_bytes += config.layers * quantized_bytes(l.out, l.in, in.format());
    const auto [plain, stored] = in.mean_entropy();
    facts = {{"kind", "quantized"}, {"bits", in.format().bits}, {"entropy_plain", plain}, {"entropy", stored}};
  } else {
    BaseReader in(path);
    config = in.config();
    linear_bytes = linear_weights(config) * size_of(in.dtype());
    facts = {{"kind", "plain"}, {"bits", 8 * size_of(in.dtype())}, {"entropy_plain", nullptr}, {"entropy", nullptr}};
  }
  const int64_t weights = linear_weights(config);
  facts["weights"] = weights, facts["linear_bytes"] = linear_bytes;
  facts["bits_per_weight"] = 8.0 * static_cast<double>(linear_bytes) / static_cast<double>(weights);
  facts["file_bytes"] = file_bytes;
  return facts;
}

}  // namespace irq
