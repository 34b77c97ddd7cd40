#include "src/train/quantize_base.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>

#include "src/core/file.h"
#include "src/model/method.h"
#include "src/quant/icq_options.h"
#include "src/quant/quantize.h"
#include "src/train/quantize_pipeline.h"

namespace irq {
namespace {

// ".int4-g128-sym-clip-l0.1-n50" | ".gptq3-channel-order-0123456789ab": what decides the codes.
std::string integer_words(const IrqInfo& info) {
  const IntInfo& i = info.integers;
  std::string text = strf(".%s%d-%s", i.gptq ? "gptq" : "int", info.format.bits,
                          info.format.group == kPerChannel ? "channel" : strf("g%d", info.format.group).c_str());
  if (i.symmetric) text += "-sym";
  if (i.search != IntSearch::none)
    text += strf("-%s-l%s-n%d", i.search == IntSearch::clip ? "clip" : "shift", shortest(info.icq.lambda).c_str(),
                 info.icq.n);
  if (i.act_order) text += "-order";
  if (i.fresh) text += "-fresh";
  if (i.gptq) text += strf("-%012llx", static_cast<unsigned long long>(i.calibration >> 16));
  return text;
}

}  // namespace

BaseFormat base_format(const std::string& name) {
  return name == "int" ? BaseFormat::integer : name == "gptq" ? BaseFormat::gptq : BaseFormat::nf;
}

int parse_group(const std::string& text) {
  if (text == "channel") return kPerChannel;
  int group = 0;
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), group);
  if (problem != std::errc{} || end != text.data() + text.size() || group < 8 || group > 1 << 17)
    throw Error("--group " + text + ": not a number of weights", Exit::usage)
        .line("expected", "8 to 131072, or channel (a scale for each row); usual are 32, 64 and 128");
  return group;
}

std::string group_text(int group) { return group == kPerChannel ? "channel" : std::to_string(group); }

IntSpec integer_spec(const QuantizeOptions& options) {
  IntSpec spec = options.integers;
  spec.bits = options.bits;
  return spec;
}

IrqInfo quantized_info(const BaseSource& in, const QuantizeOptions& options) {
  IrqInfo info;
  info.config = in.config();
  info.dtype = in.dtype();
  info.source_hash = in.hash();
  if (options.format != BaseFormat::nf) {
    const IntSpec spec = integer_spec(options);
    info.format = integer_format(spec);
    if (spec.search != IntSearch::none) info.icq.lambda = spec.range, info.icq.n = spec.n;
    info.integers.search = spec.search, info.integers.symmetric = spec.symmetric;
    if (options.format == BaseFormat::integer) return info;
    info.integers.gptq = true, info.integers.act_order = options.act_order, info.integers.fresh = options.fresh;
    info.integers.tokens = options.calibration.tokens, info.integers.calibration = options.calibration.hash;
    return info;
  }
  info.format.bits = options.bits;
  info.format.shift = options.icq ? ShiftKind::tau : ShiftKind::none;
  info.icq = options.icq ? options.spec : IcqSpec{};
  return info;
}

bool same_quantization(const IrqInfo& a, const IrqInfo& b) {
  const bool integer = a.format.kind == QuantKind::integer;
  bool same_search = integer || a.format.shift != ShiftKind::tau || a.icq == b.icq;
  if (integer && a.integers.search != IntSearch::none) same_search = a.icq.lambda == b.icq.lambda && a.icq.n == b.icq.n;
  return a.config == b.config && a.source_hash == b.source_hash && a.format == b.format && same_search &&
         (!integer || a.integers == b.integers);
}

std::string cached_name(const std::string& base_path, const IrqInfo& info, const std::optional<LoftqSpec>& loftq) {
  std::string stem = base_path;
  if (const size_t dot = stem.rfind('.'); dot != std::string::npos && stem.find('/', dot) == std::string::npos)
    stem.resize(dot);
  const std::string source = strf("-%012llx.irq", static_cast<unsigned long long>(info.source_hash >> 16));
  if (info.format.kind == QuantKind::integer) return stem + integer_words(info) + source;
  std::string name = strf("%s.nf%d", stem.c_str(), info.format.bits);
  if (info.format.shift == ShiftKind::tau) name += "-icq-" + name_part(info.icq);
  if (loftq) {
    name += strf("-loftq-r%ld-t%d", loftq->rank, loftq->turns);
    if (loftq->targets != kAllTargets) name += "-" + targets_text(loftq->targets);
  }
  return name + source;
}

void begin_summary(QuantizeSummary& summary, int bits) {
  summary.histogram_plain.resize(static_cast<size_t>(bits * QuantizeSummary::kBinsPerBit + 1));
  summary.histogram = summary.histogram_plain;
}

void add_matrix(QuantizeSummary& summary, const MatrixReport& m, int64_t source_bytes, int64_t bytes) {
  const int64_t n = m.rows * m.cols;
  const auto weights = static_cast<double>(n);
  summary.matrices.push_back(m);
  summary.weights += n;
  summary.source_bytes += source_bytes;
  summary.bytes += bytes;
  summary.entropy_plain += m.entropy_plain * weights, summary.entropy += m.entropy * weights;
  summary.error_plain += m.error_plain * weights, summary.error += m.error * weights;
  summary.device_seconds += m.seconds;
}

namespace {
void count_blocks(std::span<const float> entropy, std::vector<int64_t>& histogram) {
  for (const float h : entropy) {
    const double bin = std::floor(static_cast<double>(h) * QuantizeSummary::kBinsPerBit);
    ++histogram[static_cast<size_t>(std::clamp(bin, 0.0, static_cast<double>(histogram.size() - 1)))];
  }
}
}  // namespace

void count_entropies(QuantizeSummary& summary, std::span<const float> plain, std::span<const float> stored) {
  count_blocks(plain, summary.histogram_plain);
  count_blocks(stored, summary.histogram);
}

void end_summary(QuantizeSummary& summary, const std::string& path) {
  summary.file_bytes = static_cast<int64_t>(std::filesystem::file_size(path));
  for (double* sum : {&summary.entropy_plain, &summary.entropy, &summary.error_plain, &summary.error})
    *sum /= static_cast<double>(std::max<int64_t>(summary.weights, 1));
}

QuantizeSummary quantize_base(Backend& backend, BaseSource& in, const std::string& out_path,
                              const QuantizeOptions& options, const QuantizeProgress& progress) {
  QuantizePipeline pipeline(backend, in, out_path, options);
  pipeline.run(progress);
  return pipeline.finish();
}

void write_quantize_report(const std::string& dir, const QuantizeSummary& summary) {
  std::error_code problem;
  std::filesystem::create_directories(dir, problem);
  if (problem) throw Error(dir + ": cannot make this folder: " + problem.message());
  std::string text = "name,rows,cols,entropy_plain,entropy,mse_plain,mse,seconds\n";
  for (const MatrixReport& m : summary.matrices)
    text += strf("%s,%ld,%ld,%.6f,%.6f,%.9g,%.9g,%.4f\n", m.name.c_str(), m.rows, m.cols, m.entropy_plain, m.entropy,
                 m.error_plain, m.error, m.seconds);
  write_text_file(dir + "/" + kReportTables[0], text);
  text = "bits_from,bits_to,blocks_plain,blocks\n";
  constexpr double kBin = 1.0 / QuantizeSummary::kBinsPerBit;
  for (size_t i = 0; i < summary.histogram.size(); ++i)
    text += strf("%.2f,%.2f,%ld,%ld\n", static_cast<double>(i) * kBin, static_cast<double>(i + 1) * kBin,
                 summary.histogram_plain[i], summary.histogram[i]);
  write_text_file(dir + "/" + kReportTables[1], text);
  const auto line = [](const char* name, double value) { return strf("%s,%.9g\n", name, value); };
  text = "quantity,value\n" + line("weights", static_cast<double>(summary.weights)) +
         line("bytes", static_cast<double>(summary.bytes)) + line("entropy_plain", summary.entropy_plain) +
         line("entropy", summary.entropy) + line("mse_plain", summary.error_plain) + line("mse", summary.error) +
         line("seconds", summary.seconds) + line("device_seconds", summary.device_seconds);
  write_text_file(dir + "/" + kReportTables[2], text);
  if (summary.factors.empty()) return;
  text = "name,turn,quantized,corrected\n";
  for (const MatrixReport& m : summary.matrices)
    for (size_t i = 0; i < m.loftq.size(); ++i)
      text += strf("%s,%zu,%.8f,%.8f\n", m.name.c_str(), i + 1, m.loftq[i].quantized, m.loftq[i].corrected);
  write_text_file(dir + "/" + kReportTables[3], text);
}

}  // namespace irq
