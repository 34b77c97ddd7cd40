// A quantized base whose zero points or scales have taken an adapter in.
#include <algorithm>
#include <cmath>

#include "src/core/hash.h"
#include "src/io/export.h"
#include "src/io/inspect.h"

namespace irq {
namespace {

// What merging into one matrix did, as sums of squares over its weights.
struct Merged {
  std::vector<float> values;  // its new zero points (rows * groups)
  double weight = 0, change = 0, lost = 0;
};

void require_mergeable(ExportSource& source) {
  AdapterReader& adapter = *source.adapter();
  const AdapterFile& info = adapter.info();
  const std::string& path = adapter.file().path();
  if (!source.irq() || source.irq()->format().kind != QuantKind::integer)
    throw Error(source.path() + ": --irq merges into the zero points or scales of integers")
        .line("found", source.irq() ? "NF codes, which have neither" : "a base that is not quantized")
        .line("try", "--hf DIR --merge or --gguf FILE --merge");
  if (info.trains_scales()) return;
  const int group = source.irq()->format().group;
  if (!info.pool.on())
    throw Error(path + ": --irq cannot take this adapter")
        .line("found", "method " + info.method + ", whose A multiplies every feature by a number of its own")
        .line("expected", strf("one number for each group of the base (%s): qa-lora, ir-qa-lora or peqa",
                               group > 0 ? strf("%d features", group).c_str() : "a row"))
        .line("try", "--hf DIR --merge or --gguf FILE --merge");
  if (info.pool.group != group)
    throw Error(path + ": this adapter pools other groups than the base has")
        .line("expected", strf("%d", group))
        .line("found", strf("%ld", info.pool.group));
}

// zero - s (B~ a~)[o, g] / scale[o, g]: y stays what it was (fidelity 5.5), since every feature of a group has the same a~.
Merged merge_zeros(ExportSource& source, const std::string& name, const QuantizedMatrix& q, const LinearShape& shape,
                   bool nearest) {
  AdapterReader& adapter = *source.adapter();
  const GroupedAdapter f = fold_into_groups(adapter, name, shape, nearest);
  const double s = adapter.info().alpha / static_cast<double>(f.rank);
  Merged out;
  out.values.resize(static_cast<size_t>(q.blocks()));
  std::vector<double> updates(static_cast<size_t>(f.groups));
  for (int64_t o = 0; o < q.rows; ++o) {
    std::fill(updates.begin(), updates.end(), 0.0);
    for (int64_t k = 0; k < f.rank; ++k) {
      const double b = s * f.b[static_cast<size_t>(o * f.rank + k)];
      const double* a = f.a.data() + k * f.groups;
      for (int64_t g = 0; g < f.groups; ++g) updates[static_cast<size_t>(g)] += b * a[g];
    }
    for (int64_t g = 0; g < f.groups; ++g) {
      const double update = updates[static_cast<size_t>(g)];
      const int64_t block = o * f.groups + g;
      const double scale = static_cast<double>(q.scales.as<float>()[block]);
      const double zero = q.zeros.dtype == DType::F32 ? static_cast<double>(q.zeros.as<float>()[block])
                                                      : static_cast<double>(q.zeros.as<uint8_t>()[block]);
      const float moved = static_cast<float>(update == 0 ? zero : zero - update / scale);
      if (!std::isfinite(moved))
        throw Error(source.path() + ": a group has no zero point that could hold the adapter")
            .line("found", strf("%s, row %ld, group %ld: scale %g, update %g", name.c_str(), o, g, scale, update))
            .line("why", "a group of scale 0 is 0 whatever its zero point")
            .line("try", "--hf DIR --merge, or quantize the base again");
      out.values[static_cast<size_t>(block)] = moved;
    }
  }
  if (f.exact) return out;
  // What the nearest zero points miss: the update per feature against the mean over its group.
  const FoldedAdapter whole = fold_adapter(adapter, name, shape);
  const std::vector<float> w = dequantize_on_host(q);
  for (const float x : w) out.weight += static_cast<double>(x) * static_cast<double>(x);
  for (int64_t o = 0; o < q.rows; ++o)
    for (int64_t i = 0; i < q.cols; ++i) {
      double update = 0, kept = 0;
      for (int64_t k = 0; k < f.rank; ++k) {
        const double b = f.b[static_cast<size_t>(o * f.rank + k)];
        update += b * static_cast<double>(whole.a[static_cast<size_t>(k * q.cols + i)]);
        kept += b * f.a[static_cast<size_t>(k * f.groups + i / q.group_size())];
      }
      out.change += s * s * update * update, out.lost += s * s * (update - kept) * (update - kept);
    }
  return out;
}

// The new matrix's parts; `memory` holds what the base's file does not.
QuantizedMatrix merged_matrix(ExportSource& source, const std::string& name, QuantFormat format, bool nearest,
                              Merged* memory) {
  LinearShape shape{};
  const int64_t index = linear_index(source.config(), name, &shape);
  QuantizedMatrix q = source.irq()->matrix(name);
  AdapterReader& adapter = *source.adapter();
  if (adapter.info().trains_scales()) {
    q.scales = trained_scales(adapter, name, q).flat();
    return q;
  }
  if (adapter.info().targets >> (index % 7) & 1u) {
    *memory = merge_zeros(source, name, q, shape, nearest);
  } else {  // no adapter here: the same zero points as F32
    memory->values.resize(static_cast<size_t>(q.blocks()));
    for (int64_t i = 0; i < q.blocks(); ++i)
      memory->values[static_cast<size_t>(i)] =
          q.zeros.dtype == DType::F32 ? q.zeros.as<float>()[i] : static_cast<float>(q.zeros.as<uint8_t>()[i]);
  }
  q.format = format;
  q.zeros = make_view(memory->values.data(), DType::F32, 1, q.blocks(), "zeros");
  return q;
}

void note_nearest(double weight, double change, double lost, ExportReport& report) {
  if (change <= 0) return;
  report.notes.push_back(
      strf("not exact: IEC's slices cut groups; the zero points hold all of the adapter but %.3g of its "
           "size, %.3g of the weights' (relative Frobenius norms)",
           std::sqrt(lost / change), std::sqrt(lost / std::max(weight, 1e-300))));
}

}  // namespace

ExportReport export_irq(ExportSource& source, const std::string& path, const ExportOptions& options,
                        const ByteProgress& progress) {
  if (file_exists(path) && !options.overwrite)
    throw Error(path + ": the file exists").line("try", "--overwrite, or another name");
  require_mergeable(source);
  IrqReader& in = *source.irq();
  IrqInfo info = in.info();
  if (!source.adapter()->info().trains_scales()) info.format.shift = ShiftKind::float_zero;
  // Made from this base with this adapter: an adapter of either alone does not fit the result.
  const uint64_t from[] = {in.hash(), source.adapter()->file().hash()};
  info.source_hash = hash_bytes(from, sizeof from);
  IrqWriter writer(path, info);
  const int64_t all = writer.layout().payload_bytes();
  double weight = 0, change = 0, lost = 0;
  int64_t done = 0;
  while (writer.next() && writer.next()->name != "entropy") {
    std::string name = writer.next()->name;
    const size_t dot = name.find_last_of('.');
    if (dot != std::string::npos && in.is_matrix(name.substr(0, dot))) {
      name.resize(dot);
      Merged merged;
      const QuantizedMatrix q = merged_matrix(source, name, info.format, options.nearest, &merged);
      const auto entropy = in.entropy(name);
      writer.write_matrix(name, q, entropy[0], entropy[1]);
      weight += merged.weight, change += merged.change, lost += merged.lost;
      done += q.codes.bytes() + 4 * q.blocks();
    } else {
      const Tensor t = in.tensor(name);
      writer.write(name, t.data, t.bytes());
      done += t.bytes();
    }
    in.dont_need(name);
    if (progress) progress(std::min(done, all), all);
  }
  writer.finish();
  ExportReport report;
  report.files.emplace_back(path, MappedFile(path).size());
  note_nearest(weight, change, lost, report);
  return report;
}

}  // namespace irq
