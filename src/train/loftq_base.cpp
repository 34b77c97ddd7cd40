#include "src/train/loftq_base.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "src/core/file.h"

namespace irq {

std::string loftq_adapter_path(const std::string& irq_path) {
  return std::filesystem::path(irq_path).replace_extension(".lora").string();
}

QuantizeSummary make_loftq_base(Backend& backend, BaseSource& in, const std::string& irq_path,
                                const QuantizeOptions& options, const QuantizeProgress& progress) {
  const std::string adapter_path = loftq_adapter_path(irq_path);
  QuantizeSummary summary = quantize_base(backend, in, irq_path, options, progress);
  AdapterFile a;
  a.method = kLoftqInit;
  a.rank = options.loftq->rank, a.alpha = static_cast<double>(a.rank);
  a.targets = options.loftq->targets;
  a.base_hash = summary.hash;
  a.tensors = std::move(summary.factors);
  try {
    write_adapter(adapter_path, a);
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove(irq_path, ignored);
    throw;
  }
  summary.factors = std::move(a.tensors);
  return summary;
}

AdapterFile read_loftq_adapter(const std::string& irq_path, uint64_t irq_hash) {
  const std::string path = loftq_adapter_path(irq_path);
  const char* way_out = "the .bin as BASE (quantizes it by LoftQ), or ./irq_quantize MODEL.bin OUT.irq --loftq RANK";
  if (!file_exists(path))
    throw Error(irq_path + ": has no adapter of LoftQ beside it")
        .line("expected", path + ", which LoftQ makes together with the codes")
        .line("likely", "a base quantized without LoftQ, or moved without its .lora")
        .line("try", way_out);
  AdapterFile a = read_adapter(path);
  if (a.method != kLoftqInit)
    throw Error(path + ": is not the adapter that LoftQ made with " + irq_path)
        .line("found", "an adapter of " + a.method)
        .line("try", way_out);
  if (a.base_hash != irq_hash)
    throw Error(path + ": belongs to other codes than those of " + irq_path)
        .line("expected", strf("made with base %016llx", static_cast<unsigned long long>(irq_hash)))
        .line("found", strf("made with base %016llx", static_cast<unsigned long long>(a.base_hash)))
        .line("try", way_out);
  return a;
}

void set_loftq_scale(AdapterFile& adapter, double alpha, bool peft) {
  // Exact where rank / alpha is a power of two, as 64 / 16; else one rounding of each element of B.
  const double factor = peft ? 1 : static_cast<double>(adapter.rank) / alpha;
  adapter.alpha = alpha;
  for (NamedArray& t : adapter.tensors)
    if (t.name.ends_with(".B"))
      for (float& x : t.data) x = static_cast<float>(static_cast<double>(x) * factor);
}

std::string describe_loftq(const QuantizeSummary& summary) {
  double plain = 0;
  std::vector<double> corrected;  // by turn
  int64_t matrices = 0, earlier = 0;
  for (const MatrixReport& m : summary.matrices) {
    if (m.loftq.empty()) continue;
    const auto better = [](const LoftqStep& a, const LoftqStep& b) { return a.corrected < b.corrected; };
    earlier += std::min_element(m.loftq.begin(), m.loftq.end(), better)->corrected < m.loftq.back().corrected;
    plain += m.loftq.front().quantized;
    corrected.resize(m.loftq.size());
    for (size_t t = 0; t < m.loftq.size(); ++t) corrected[t] += m.loftq[t].corrected;
    ++matrices;
  }
  if (matrices == 0) return "";
  const double n = static_cast<double>(matrices);
  std::string text = strf("LoftQ: relative error of %ld matrices, mean: %.4f quantized alone -> %.4f after 1 turn",
                          matrices, plain / n, corrected[0] / n);
  if (corrected.size() > 1) text += strf(" -> %.4f after %zu", corrected.back() / n, corrected.size());
  if (earlier == 0) return text;
  text += strf("\nnote: in %ld of them an earlier turn was better; the last is kept, as the paper does", earlier);
  const auto best = std::min_element(corrected.begin(), corrected.end());
  if (*best < corrected.back())
    text += strf("\nnote: the mean was least after %td: --loftq-iters %td gives %.4f", best - corrected.begin() + 1,
                 best - corrected.begin() + 1, *best / n);
  return text;
}

}  // namespace irq
