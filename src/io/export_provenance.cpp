// The lines that say where exported weights come from.
#include <algorithm>

#include "src/io/export.h"
#include "src/quant/icq_options.h"

namespace irq {

DType export_dtype(const ExportSource& source, const ExportOptions& options) {
  if (options.dtype) return *options.dtype;
  return source.quantized() ? DType::BF16 : source.dtype();
}

std::map<std::string, std::string> provenance(ExportSource& source, DType dtype) {
  std::map<std::string, std::string> text;
  text["irq.base"] = base_name(source.path());
  text["irq.base_hash"] = strf("%016lx", source.hash());
  if (const IrqReader* irq = source.irq()) {
    const QuantFormat& f = irq->format();
    text["irq.quantization"] = f.kind == QuantKind::nf ? strf("NF%d, blocks of %d", f.bits, f.group)
                               : f.group > 0           ? strf("INT%d, groups of %d", f.bits, f.group)
                                                       : strf("INT%d, per channel", f.bits);
    text["irq.source_hash"] = strf("%016lx", irq->source_hash());
    if (f.shift == ShiftKind::tau) text["irq.icq"] = describe(irq->info().icq);
  }
  const bool integer = source.irq() && source.irq()->format().kind == QuantKind::integer;
  const std::string weight = integer              ? "scale * (code - zero) in F32"
                             : source.quantized() ? "level * scale + tau in F32"
                                                  : "the base's";
  const std::string rounded = strf(", rounded once to %s", name_of(dtype));
  const bool scales = source.adapter() && source.adapter()->info().trains_scales();
  text["irq.weights"] = scales            ? weight + " with the trained scales" + rounded
                        : source.merges() ? "W + (alpha / r) B~ A~ in F32" + rounded + "; W = " + weight +
                                                "; A~ = A + beta1 P, B~ = B + beta2 E"
                                          : weight + rounded;
  if (const AdapterReader* adapter = source.adapter()) {
    const AdapterFile& a = adapter->info();
    text["irq.method"] = a.method;
    text["irq.adapter"] = strf("rank %ld, alpha %g, dropout %g, IEC expands by %s", a.rank, a.alpha, a.dropout,
                               a.tile ? "tile" : "interleave");
    if (a.pool.on()) text["irq.pooling"] = describe(a.pool);
  }
  return text;
}

void append_merge_note(const ExportSource& source, DType dtype, ExportReport& report) {
  const std::vector<MergeChange>& changes = source.changes();
  if (changes.empty()) return;
  double sum = 0, rounding = 0;
  for (const MergeChange& c : changes) sum += c.change, rounding += c.rounding;
  const auto most = std::max_element(changes.begin(), changes.end(),
                                     [](const MergeChange& a, const MergeChange& b) { return a.change < b.change; });
  const double n = static_cast<double>(changes.size());
  report.notes.push_back(
      strf("merged into %zu matrices: relative change %.3g on average, most in %s (%.3g); rounding to %s "
           "afterwards: %.2g",
           changes.size(), sum / n, most->matrix.c_str(), most->change, name_of(dtype), rounding / n));
}

}  // namespace irq
