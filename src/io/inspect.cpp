#include "src/io/inspect.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "src/core/check.h"
#include "src/io/config_json.h"
#include "src/io/float_pieces.h"
#include "src/io/npy.h"
#include "src/quant/icq_options.h"

namespace irq {
namespace {

std::string row(const char* label, const std::string& text) { return strf("  %-9s: %s\n", label, text.c_str()); }

std::string config_rows(const ModelConfig& c) {
  return row("model", describe(c)) +
         row("size",
             with_commas(total_parameters(c)) + " parameters, " + with_commas(linear_weights(c)) + " in linears") +
         row("heads", strf("%ld of width %ld, %ld key/value heads", c.heads, c.head_dim, c.kv_heads)) +
         row("positions", strf("%ld, RoPE theta %g", c.max_seq, c.rope_theta)) +
         row("norm eps", strf("%g", c.norm_eps)) + row("tokens", strf("bos %d, eos %d", c.bos, c.eos)) +
         row("head", c.tied ? "tied to embed" : "its own matrix");
}

std::string format_text(const QuantFormat& f) {
  const bool integer = f.kind == QuantKind::integer;
  const std::string blocks =
      integer && f.group == kPerChannel ? "one group a row" : strf(integer ? "groups of %d" : "blocks of %d", f.group);
  const char* shift = f.shift == ShiftKind::tau          ? "shift tau (ICQ)"
                      : f.shift == ShiftKind::int_zero   ? "integer zero points"
                      : f.shift == ShiftKind::float_zero ? "float zero points"
                                                         : "shift none";
  return strf("%s%d, %s, scales %s, %s", integer ? "INT" : "NF", f.bits, blocks.c_str(),
              f.scale == ScaleKind::f32 ? "f32" : "8-bit", shift);
}

std::string integer_text(const IrqInfo& info) {
  const IntInfo& i = info.integers;
  std::string text = !i.gptq ? "rounded to nearest"
                             : strf("GPTQ on %s tokens (hash %016lx)", with_commas(i.tokens).c_str(), i.calibration);
  if (i.act_order) text += ", columns by activity";
  if (i.fresh) text += ", fresh group ranges";
  if (i.symmetric) text += ", symmetric";
  return text;
}

// NaN and infinite values found so far, and the tensor of the first one.
struct NotFinite {
  int64_t count = 0;
  std::string first;
};

// Looks at the payload's bytes [from, to), which have just been verified: they are read once.
void count_not_finite(FlatReader& file, int64_t from, int64_t to, NotFinite& found) {
  for (const TensorSpec& t : file.layout().tensors()) {
    const int64_t begin = std::max(t.offset, from), end = std::min(t.offset + t.bytes(), to);
    if (begin >= end || (t.dtype != DType::F32 && t.dtype != DType::F16 && t.dtype != DType::BF16)) continue;
    const int64_t size = size_of(t.dtype), count = (end - begin) / size;
    const char* values = static_cast<const char*>(file.view(t).data) + (begin - t.offset);
    if (first_not_finite(values, t.dtype, count) < 0) continue;
    if (found.count == 0) found.first = t.name;
    int64_t bad = 0;
#pragma omp parallel for reduction(+ : bad)
    for (int64_t i = 0; i < count; ++i) bad += !std::isfinite(value_at(values, t.dtype, i));
    found.count += bad;
  }
}

// Reads everything; returns the rows that say so.
std::string verified_rows(FlatReader& file, const ByteProgress& progress) {
  NotFinite found;
  int64_t looked_at = 0;
  file.verify_all([&](int64_t done, int64_t all) {
    count_not_finite(file, looked_at, done, found);
    looked_at = done;
    if (progress) progress(done, all);
  });
  const std::string values = found.count == 0
                                 ? ""
                                 : row("values", with_commas(found.count) + " are NaN or infinite, the first in " +
                                                     found.first + ": the file cannot be used");
  return values + row("tensors", with_commas(static_cast<long long>(file.layout().tensors().size()))) +
         row("file",
             with_commas(file.file_bytes()) + " bytes (" + human_bytes(static_cast<double>(file.file_bytes())) + ")") +
         row("hash", strf("%016lx", file.hash())) +
         row("contents", strf("whole; %ld checksums agree", file.chunks() + 2));
}

std::string base_summary(const std::string& path, const ByteProgress& progress) {
  BaseReader r(path);
  return config_rows(r.config()) + row("weights", std::string(name_of(r.dtype())) + ", norms f32") +
         verified_rows(r.file(), progress);
}

std::string irq_summary(const std::string& path, const ByteProgress& progress) {
  IrqReader r(path);
  std::string text = config_rows(r.config()) +
                     row("embed", std::string(name_of(r.info().dtype)) + " (and head), norms f32") +
                     row("linears", format_text(r.format()));
  if (r.format().shift == ShiftKind::tau) text += row("ICQ", describe(r.info().icq));
  if (r.format().kind == QuantKind::integer) {
    text += row("made by", integer_text(r.info()));
    const IntSearch search = r.info().integers.search;
    if (search != IntSearch::none)
      text += row("ICQ", strf("%s, range %g, n %d", search == IntSearch::clip ? "clip range" : "zero point",
                              r.info().icq.lambda, r.info().icq.n));
  }
  double bytes = 0;
  for (const TensorSpec& t : r.layout().tensors())
    if (t.name.find(".w") != std::string::npos) bytes += static_cast<double>(t.bytes());
  text += row("bits", strf("%.4f per weight of a linear", 8 * bytes / static_cast<double>(linear_weights(r.config()))));
  text += row("source", strf("hash %016lx", r.source_hash()));
  text += verified_rows(r.file(), progress);
  const auto entropy = r.mean_entropy();
  return text + row("entropy", strf("%.4f bits per weight (%.4f without calibration)", entropy[1], entropy[0]));
}

std::string adapter_summary(const std::string& path, const ByteProgress& progress) {
  AdapterReader r(path);
  const AdapterFile& a = r.info();
  std::string targets;
  const auto linears = layer_linears(ModelConfig{});  // for the names only
  for (size_t i = 0; i < linears.size(); ++i)
    if (a.targets >> i & 1) targets += std::string(targets.empty() ? "" : " ") + linears[i].name;
  int64_t parameters = 0;
  for (const TensorSpec& t : r.layout().tensors()) parameters += t.dtype == DType::F32 ? t.rows * t.cols : 0;
  std::string text = row("method", a.method);
  if (!a.trains_scales())
    text += row("rank", strf("%ld, alpha %g, dropout %g", a.rank, a.alpha, a.dropout)) + row("targets", targets) +
            row("folding", a.tile ? "tiled where widths do not divide" : "plain");
  if (a.pool.on()) text += row("pooling", describe(a.pool));
  return text + row("size", with_commas(parameters) + " parameters") + row("base", strf("hash %016lx", a.base_hash)) +
         verified_rows(r.file(), progress);
}

// Opens whichever of the four kinds it is and hands its container to f.
template <class F>
void with_file(const std::string& path, F&& f) {
  switch (sniff(path)) {
    case FileKind::base: {
      BaseReader r(path);
      return f(r.file());
    }
    case FileKind::quantized: {
      IrqReader r(path);
      return f(r.file());
    }
    case FileKind::state: {
      StateReader r(path);
      return f(r.file());
    }
    case FileKind::adapter: {
      AdapterReader r(path);
      return f(r.file());
    }
    default: throw_wrong_kind(path, FileKind::unknown);
  }
}

// Throws where a file is JSON lines (data, or the log of a run): its first line is an object and another one follows.
void refuse_json_lines(const std::string& path) {
  const MappedFile file(path);
  const std::string_view text(reinterpret_cast<const char*>(file.data()), static_cast<size_t>(file.size()));
  const size_t end = text.find('\n'), next = end < text.size() ? text.find_first_not_of(" \r\n", end) : end;
  const bool more = next < text.size() && text[next] == '{';
  if (!more && !path.ends_with(".jsonl")) return;
  const auto first = nlohmann::json::parse(text.substr(0, end), nullptr, false);
  if (!first.is_object()) return;
  const bool log = first.contains("command") && first.contains("trained_parameters");
  Error e(path + ": not a model, adapter or training state of these tools");
  e.line("found", log ? "JSON lines: the log of a run of irq_train" : "JSON lines");
  if (log)
    throw e.line("try", "read it as text: one JSON object a line. The result beside it: ./irq_inspect " +
                            shell_quoted(parent_path(path) + "/adapter.lora"));
  throw e.line("likely", "data to train on or questions").line("try", "./irq_train BASE --data " + shell_quoted(path));
}

}  // namespace

std::string inspect_summary(const std::string& path, const ByteProgress& progress) {
  const FileKind kind = sniff(path);
  const std::string title = path + ": " + describe(kind) + "\n";
  switch (kind) {
    case FileKind::base: return title + base_summary(path, progress);
    case FileKind::quantized: return title + irq_summary(path, progress);
    case FileKind::adapter: return title + adapter_summary(path, progress);
    case FileKind::state: {
      StateReader r(path);
      return title + verified_rows(r.file(), progress) + row("text", r.text());
    }
    case FileKind::config_json: refuse_json_lines(path); return title + config_rows(model_config_from_json(path));
    default: throw_wrong_kind(path, FileKind::unknown);
  }
}

std::string inspect_tensors(const std::string& path) {
  std::string text = strf("%-32s %-5s %22s %16s %16s\n", "name", "type", "shape", "offset", "bytes");
  with_file(path, [&](FlatReader& file) {
    for (const TensorSpec& t : file.layout().tensors())
      text += strf("%-32s %-5s %22s %16s %16s\n", t.name.c_str(), name_of(t.dtype),
                   strf("(%ld, %ld)", t.rows, t.cols).c_str(), with_commas(t.offset).c_str(),
                   with_commas(t.bytes()).c_str());
  });
  return text;
}

std::string inspect_entropy(const std::string& path, const ByteProgress& progress) {
  IrqReader r(path);
  const ModelConfig& c = r.config();
  std::string text = strf("%-24s %10s %10s %10s\n", "matrix", "plain", "stored", "recomputed");
  double total = 0, weights = 0;
  for (int64_t l = 0; l < c.layers; ++l) {
    for (const LinearShape& s : layer_linears(c)) {
      const std::string name = strf("layers.%ld.%s", l, s.name);
      const QuantizedMatrix q = r.matrix(name);
      const std::vector<float> blocks = block_entropies(q);
      double sum = 0;
      for (const float h : blocks) sum += static_cast<double>(h);
      const double mean = sum / static_cast<double>(blocks.size());
      const auto recorded = r.entropy(name);
      text += strf("%-24s %10.4f %10.4f %10.4f\n", name.c_str(), recorded[0], recorded[1], mean);
      total += mean * static_cast<double>(q.numel());
      weights += static_cast<double>(q.numel());
      r.dont_need(name);
      if (progress) progress(static_cast<int64_t>(weights), linear_weights(c));
    }
  }
  const auto recorded = r.mean_entropy();
  return text + strf("%-24s %10.4f %10.4f %10.4f\n", "mean over weights", recorded[0], recorded[1], total / weights);
}

// ---- dump ------------------------------------------------------------------------------------------------------------

namespace {

void dump_plain(const Tensor& t, const std::string& npy_path, bool vector_is_flat = true) {
  std::vector<int64_t> shape = {t.rows, t.cols};
  if (vector_is_flat && t.rows == 1) shape = {t.cols};
  if (t.dtype == DType::F32) return write_npy(npy_path, NpyType::f32, shape, t.data);
  if (t.dtype == DType::U8) return write_npy(npy_path, NpyType::u8, shape, t.data);
  std::vector<float> wide(static_cast<size_t>(t.numel()));
  const bool bf16 = t.dtype == DType::BF16;
#pragma omp parallel for
  for (int64_t i = 0; i < t.numel(); ++i)
    wide[static_cast<size_t>(i)] = bf16 ? to_float(t.row<Bf16>(0)[i]) : to_float(t.row<F16>(0)[i]);
  write_npy(npy_path, shape, wide);
}

// True if `name` is a part of a quantized matrix that is dumped otherwise than as the bytes in the file.
bool dump_matrix_part(IrqReader& r, const std::string& name, const std::string& npy_path) {
  const size_t dot = name.find_last_of('.');
  if (dot == std::string::npos || !r.is_matrix(name.substr(0, dot))) return false;
  const std::string part = name.substr(dot + 1);
  const QuantizedMatrix q = r.matrix(name.substr(0, dot));
  const std::vector<int64_t> blocks = {q.blocks()}, full = {q.rows, q.cols};
  if (part == "codes") write_npy(npy_path, NpyType::u8, full, unpack_codes(q).data());
  else if (part == "scales") write_npy(npy_path, blocks, block_scales(q));
  else if (part == "tau" && q.has_tau()) write_npy(npy_path, blocks, block_taus(q));
  else if (part == "entropy") write_npy(npy_path, blocks, block_entropies(q));
  else if (part == "dequant") write_npy(npy_path, full, dequantize_on_host(q));
  else return false;
  return true;
}

}  // namespace

void dump_tensor(const std::string& path, const std::string& name, const std::string& npy_path) {
  if (sniff(path) == FileKind::quantized) {
    IrqReader r(path);
    if (r.is_matrix(name))
      throw Error(path + ": " + name + " is a quantized matrix: name a part of it")
          .line("parts", "codes scales tau entropy scale_codes tau_codes scale_groups tau_groups scale_offset dequant")
          .line("try", "./irq_inspect " + path + " --dump " + name + ".dequant " + npy_path);
    if (dump_matrix_part(r, name, npy_path)) return;
    return dump_plain(r.tensor(name), npy_path);
  }
  if (sniff(path) == FileKind::base) {
    BaseReader r(path);
    return dump_plain(r.tensor(name), npy_path);
  }
  with_file(path, [&](FlatReader& file) { dump_plain(file.tensor(name), npy_path, false); });
}

}  // namespace irq
