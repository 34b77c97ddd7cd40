// A base model -> a quantized base, matrix by matrix (quantize_pipeline.h says how, and what it keeps in memory).
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "src/io/checkpoint.h"
#include "src/quant/loftq.h"

namespace irq {

// Token ids, one sequence each, that GPTQ measures the model's activations on; with what identifies them.
struct Calibration {
  std::vector<std::vector<int32_t>> sequences;
  int64_t tokens = 0;
  uint64_t hash = 0;
};

enum class BaseFormat { nf, integer, gptq };      // GPTQ makes integers too
BaseFormat base_format(const std::string& name);  // "nf", "int", "gptq"
// "channel" or a number of weights, as --group has it; a usage Error for anything else.
int parse_group(const std::string& text);
std::string group_text(int group);

struct QuantizeOptions {
  int bits = 4;
  bool icq = true;  // NF
  IcqSpec spec;     // NF
  bool errors =
      false;  // measure the squared errors too: two passes over the weights more, and room for one more matrix
  std::optional<LoftqSpec> loftq;  // NF, instead of ICQ: with the low-rank factors that belong to the codes
  BaseFormat format = BaseFormat::nf;
  IntSpec integers;                       // integer and gptq; its bits are taken from above
  bool act_order = false, fresh = false;  // gptq
  Calibration calibration;                // gptq
};

IntSpec integer_spec(const QuantizeOptions& options);  // of integer and gptq

struct MatrixReport {
  std::string name;
  int64_t rows = 0, cols = 0;
  double entropy_plain = 0, entropy = 0;  // bits, mean over blocks: of the codes of w | of the codes stored
  double error_plain = 0, error = 0;      // mean squared, as QuantizeStats has them
  double seconds = 0;                     // on the device, transfers included; not waiting for the source
  std::vector<LoftqStep> loftq;           // of every turn, where LoftQ was asked for
};

// Where the thread that drives the device spent its seconds, and for how long the others were busy beside it.
struct QuantizeTimes {
  double read = 0;      // waiting for the source
  double check = 0;     // looking for NaN in what is copied
  double upload = 0;    // the copy alone
  double compute = 0;   // on the device, means of the entropies included
  double download = 0;  // of what is to be written
  double write = 0;     // waiting for the writer
  double finish = 0;    // header, fsync, the file's name
  double writing = 0;   // beside all this: the writer's busy time
};

struct QuantizeSummary {
  std::vector<MatrixReport> matrices;
  std::vector<NamedArray> factors;      // of LoftQ, in layer order: "layers.N.wq.A" = R (r, h), ".B" = L (o, r)
  int64_t weights = 0;                  // in the quantized matrices
  int64_t source_bytes = 0, bytes = 0;  // of these matrices: in the source, and now (codes, scales, shifts)
  int64_t file_bytes = 0;
  double entropy_plain = 0, entropy = 0;  // means over all weights
  double error_plain = 0, error = 0;      // mean squared, over all weights; 0 unless asked for
  double seconds = 0, device_seconds = 0;
  QuantizeTimes times;  // of quantize_base alone
  uint64_t hash = 0;    // of the file written
  // Blocks by entropy: bin i holds [i, i + 1) / kBinsPerBit bits.
  static constexpr int kBinsPerBit = 20;
  std::vector<int64_t> histogram_plain, histogram;
};

// done, of: matrices; `name`: the one just finished.
using QuantizeProgress = std::function<void(int64_t done, int64_t of, const std::string& name)>;

// NF and integers by rounding; GPTQ's way is gptq_base.h.
// What comes next is read and checked, and the last matrix written, while the device works on the present one. Ctrl-C
// ends it between two matrices; the file at out_path appears when it is whole, or not at all.
QuantizeSummary quantize_base(Backend& backend, BaseSource& in, const std::string& out_path,
                              const QuantizeOptions& options, const QuantizeProgress& progress = {});

// A summary's sums begun and ended, and one matrix added: for whoever writes a base.
void begin_summary(QuantizeSummary& summary, int bits);
void add_matrix(QuantizeSummary& summary, const MatrixReport& matrix, int64_t source_bytes, int64_t bytes);
void count_entropies(QuantizeSummary& summary, std::span<const float> plain, std::span<const float> stored);
void end_summary(QuantizeSummary& summary, const std::string& path);

// What a quantized base of these options is: the header of the file, and the test whether a cached one still fits.
IrqInfo quantized_info(const BaseSource& in, const QuantizeOptions& options);
bool same_quantization(const IrqInfo& a, const IrqInfo& b);
// The name of the cached quantized base of `base_path`: it holds bits, all of ICQ's settings, rank and turns of LoftQ, and the
// source's hash: "llama7b.nf4-icq-l0.1-n100-exact-0123456789ab.irq", "llama7b.nf2-loftq-r64-t5-0123456789ab.irq".
std::string cached_name(const std::string& base_path, const IrqInfo& info,
                        const std::optional<LoftqSpec>& loftq = std::nullopt);

// Tables for people and plots. summary: what holds for all matrices together; loftq: its turns, where it was asked for.
inline constexpr const char* kReportTables[] = {"matrices.csv", "block_entropy.csv", "summary.csv", "loftq.csv"};
void write_quantize_report(const std::string& dir, const QuantizeSummary& summary);

}  // namespace irq
