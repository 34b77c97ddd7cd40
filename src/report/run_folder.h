// What a finished run of irq_train left in its folder, and the true sizes of a model file.
#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace irq {

using Report = nlohmann::ordered_json;

struct FinishedRun {
  bool finished = false;
  int64_t steps = 0;
  std::optional<double> loss_before, loss_after;  // held-out
  double train_seconds = 0;                       // of the steps that count: those redone after a cut once
  int64_t peak_bytes = 0, trained_parameters = 0;
  std::string device, base_hash;
  std::string quantized;                   // name of the quantized base's file; "" where there is none
  std::optional<double> quantize_seconds;  // where this run made that file
  double requantize_seconds = 0;           // of what the run quantized again at its end
  // What is to be evaluated: `model` with `adapter` ("": none) on it. Names of files in the run's folder; model "" is the
  // base that was trained on (`quantized`, or the base as it was given).
  std::string model, adapter;
};
// From log.jsonl and the files beside it. Not finished: the rest holds what is known so far.
FinishedRun read_run(const std::string& folder);

// Of a .bin or .irq: {"kind", "bits", "weights", "linear_bytes", "bits_per_weight", "file_bytes", "entropy_plain",
// "entropy"}. weights: in the layers' linears; linear_bytes: what is stored for these (codes, scales, shifts, without
// padding); entropies in bits per weight, means over all weights, null where nothing is quantized.
Report model_facts(const std::string& path);

}  // namespace irq
