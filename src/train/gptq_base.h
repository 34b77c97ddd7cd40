// A base model -> a base quantized by GPTQ, layer by layer: a linear sees the inputs that come out of the layers and linears
// before it as they are stored, quantized.
#pragma once
#include "src/ops/batch.h"
#include "src/train/quantize_base.h"

namespace irq {

constexpr int64_t kCalibrationSamples = 128, kCalibrationLength = 2048;  // fidelity 5.3

// Examples in an order that `seed` decides, cut to `length` tokens, until samples * length tokens are together or all are
// taken. Only their ids count. An Error with `subject` if no example has two tokens.
Calibration choose_calibration(const std::vector<Example>& examples, int64_t samples, int64_t length, uint64_t seed,
                               const std::string& subject);

// As quantize_base, with options.format gptq and options.calibration. On the device: the residual stream of all calibration
// tokens, one layer's weights in storage type, and what GptqSolver and one matrix in F32 take.
QuantizeSummary gptq_base(Backend& backend, BaseSource& in, const std::string& out_path, const QuantizeOptions& options,
                          const QuantizeProgress& progress = {});

// Whichever of the two options.format asks for.
QuantizeSummary quantize_as_asked(Backend& backend, BaseSource& in, const std::string& out_path,
                                  const QuantizeOptions& options, const QuantizeProgress& progress = {});

}  // namespace irq
