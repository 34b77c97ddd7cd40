#include "src/train/quantize_base.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <future>

#include "kernels/device_memory.h"
#include "kernels/nf_codebook.h"
#include "src/core/clock.h"
#include "src/core/file.h"
#include "src/core/interrupt.h"
#include "src/io/float_pieces.h"
#include "src/model/method.h"
#include "src/quant/icq_options.h"
#include "src/quant/quantize.h"

namespace irq {
namespace {

// One matrix on its way from the device to the file, and its blocks' entropies on their way to the histograms. Used again: fresh
// memory would cost more than the transfer into it.
struct HostMatrix {
  std::vector<char> memory;
  QuantizedMatrix q;
  std::vector<float> entropy_plain, entropy;
};

// Device memory for the largest matrix: as the file holds it, as F32, and quantized.
class DeviceBuffers {
 public:
  DeviceBuffers(Backend& backend, const BaseSource& in, const QuantFormat& format) : backend_(backend) {
    int64_t source = 0, wide = 0, packed = 0;
    for (const LinearShape& s : layer_linears(in.config())) {
      source = std::max(source, s.out * s.in * size_of(in.dtype()));
      wide = std::max(wide, s.out * s.in * size_of(DType::F32));
      packed = std::max(packed, placed_bytes(s.out, s.in, format));
    }
    map_ = memory_.take(DType::F32, 1, 256, "map");
    wide_ = memory_.take(wide);
    if (in.dtype() != DType::F32) source_ = memory_.take(source);
    packed_ = memory_.take(packed);
    backend.upload(map_, dynamic_map().data());
  }

  // The host's matrix on the device in F32 (rows, cols).
  Tensor load(const Tensor& host, const char* name) {
    Tensor w = make_view(wide_, DType::F32, host.rows, host.cols, name, backend_.device());
    if (host.dtype == DType::F32) {
      backend_.upload(w, host.data);
    } else {
      Tensor narrow = make_view(source_, host.dtype, host.rows, host.cols, name, backend_.device());
      backend_.upload(narrow, host.data);
      backend_.copy(w, narrow);
    }
    return w;
  }
  QuantizedMatrix place(int64_t rows, int64_t cols, const QuantFormat& format) {
    return place_quantized(packed_, rows, cols, format, map_, backend_.device());
  }

 private:
  Backend& backend_;
  DeviceMemory memory_{backend_};
  Tensor map_;
  void *source_ = nullptr, *wide_ = nullptr, *packed_ = nullptr;
};

void download(HostMatrix& host, Backend& backend, QuantizedMatrix& device, const Quantizer& quantizer) {
  const auto bytes = static_cast<size_t>(placed_bytes(device.rows, device.cols, device.format));
  if (host.memory.size() < bytes) host.memory.resize(bytes);
  const Tensor map = make_view(const_cast<float*>(dynamic_map().data()), DType::F32, 1, 256, "map");
  host.q = place_quantized(host.memory.data(), device.rows, device.cols, device.format, map, Device::CPU);
  const auto from = matrix_parts(device), to = matrix_parts(host.q);
  for (size_t i = 0; i < from.size(); ++i) backend.download(to[i].tensor->data, *from[i].tensor);
  for (const auto& [values, tensor] :
       {std::pair{&host.entropy_plain, quantizer.entropy_plain()}, std::pair{&host.entropy, quantizer.entropy()}}) {
    values->resize(static_cast<size_t>(tensor.numel()));
    backend.download(values->data(), tensor);
  }
}

// Embeddings and norms are copied, not quantized: nothing else would notice. Right before the copy, which reads them too.
void require_finite(const Tensor& host, const std::string& name) {
  const int64_t at = first_not_finite(host);
  if (at >= 0) reject_weight(name, host.cols, at, value_at(host.data, host.dtype, at));
}

void count_blocks(const std::vector<float>& entropy, std::vector<int64_t>& histogram) {
  for (const float h : entropy) {
    const double bin = std::floor(static_cast<double>(h) * QuantizeSummary::kBinsPerBit);
    ++histogram[static_cast<size_t>(std::clamp(bin, 0.0, static_cast<double>(histogram.size() - 1)))];
  }
}

void take_factors(Backend& backend, const Loftq& loftq, const std::string& name, std::vector<NamedArray>& factors) {
  for (const auto& [part, t] : {std::pair<const char*, Tensor>{".A", loftq.right()}, {".B", loftq.left()}}) {
    NamedArray array{name + part, t.rows, t.cols, {}};
    array.data.resize(static_cast<size_t>(t.numel()));
    backend.download(array.data.data(), t);
    factors.push_back(std::move(array));
  }
}

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

void count_entropies(QuantizeSummary& summary, const std::vector<float>& plain, const std::vector<float>& stored) {
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
  const double start = now_seconds();
  const IrqInfo info = quantized_info(in, options);
  IrqWriter writer(out_path, info);
  DeviceBuffers device(backend, in, info.format);
  Quantizer quantizer(backend);
  const LoftqSpec loftq_spec = options.loftq.value_or(LoftqSpec{.targets = 0});
  Loftq loftq(backend, loftq_spec);
  QuantizeSummary summary;
  begin_summary(summary, options.bits);
  const bool nf = options.format == BaseFormat::nf;
  IRQ_CHECK(options.format != BaseFormat::gptq, "GPTQ sees more than one matrix at a time");

  const std::vector<TensorSpec>& tensors = in.layout().tensors();
  const int64_t matrices = 7 * in.config().layers;
  // One thread at a time touches the source, one the writer. The futures wait in their destructors. Reading tensor i
  // begins when i - 1 has just been handed over and i - 2 is used up.
  const auto read = [&](size_t i) {
    return std::async(std::launch::async, [&in, &tensors, i] {
      if (i >= 2) in.dont_need(tensors[i - 2].name);
      if (i + 1 < tensors.size()) in.will_need(tensors[i + 1].name);  // so that the disk never waits for the check of i
      return in.tensor(tensors[i].name);
    });
  };
  HostMatrix slots[2];  // one is written while the other is filled
  std::future<void> writing;
  std::future<Tensor> reading = read(0);
  for (size_t i = 0; i < tensors.size(); ++i) {
    throw_if_interrupted();
    const std::string& name = tensors[i].name;
    const Tensor host = reading.get();
    if (i + 1 < tensors.size()) reading = read(i + 1);
    const std::string shown = in.path() + ": " + name;
    const int64_t linear = linear_index(in.config(), name);
    if (linear < 0) {
      require_finite(host, shown);
      if (writing.valid()) writing.get();
      writer.write(name, host.data, host.bytes());
      continue;
    }
    const double began = now_seconds();
    const Tensor w = device.load(host, shown.c_str());
    QuantizedMatrix q = device.place(host.rows, host.cols, info.format);
    const bool adapted = loftq_spec.targets >> (linear % 7) & 1u;
    const Quantizer& used = adapted ? loftq.quantizer() : quantizer;
    const QuantizeStats stats = adapted ? loftq.run(q, w)
                                : nf    ? quantizer.run(q, w, options.icq ? &options.spec : nullptr, options.errors)
                                        : quantizer.run_integer(q, w, integer_spec(options), options.errors);
    HostMatrix& done = slots[summary.matrices.size() % 2];
    download(done, backend, q, used);
    if (adapted) take_factors(backend, loftq, name, summary.factors);
    const double seconds = now_seconds() - began;

    if (writing.valid()) writing.get();
    writing = std::async(std::launch::async, [&writer, &done, &summary, name, stats] {
      writer.write_matrix(name, done.q, stats.entropy_plain, stats.entropy);
      count_entropies(summary, done.entropy_plain, done.entropy);
    });
    add_matrix(summary,
               {name, host.rows, host.cols, stats.entropy_plain, stats.entropy, stats.error_plain, stats.error, seconds,
                adapted ? loftq.steps() : std::vector<LoftqStep>{}},
               host.bytes(), quantized_bytes(host.rows, host.cols, info.format));
    if (progress) progress(static_cast<int64_t>(summary.matrices.size()), matrices, name);
  }
  if (writing.valid()) writing.get();
  summary.hash = writer.finish();
  end_summary(summary, out_path);
  summary.seconds = now_seconds() - start;
  return summary;
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
