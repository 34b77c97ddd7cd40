// Names of this engine's tensors in other programs' files, and the lines that say where weights come from.
#include <algorithm>
#include <array>

#include "src/io/export.h"

namespace irq {
namespace {

struct Names {
  const char *own, *hugging_face, *gguf;
};
constexpr std::array<Names, 3> kWhole = {{{"embed", "model.embed_tokens", "token_embd"},
                                          {"norm", "model.norm", "output_norm"},
                                          {"head", "lm_head", "output"}}};
constexpr std::array<Names, 9> kOfLayer = {{{"attn_norm", "input_layernorm", "attn_norm"},
                                            {"wq", "self_attn.q_proj", "attn_q"},
                                            {"wk", "self_attn.k_proj", "attn_k"},
                                            {"wv", "self_attn.v_proj", "attn_v"},
                                            {"wo", "self_attn.o_proj", "attn_output"},
                                            {"ffn_norm", "post_attention_layernorm", "ffn_norm"},
                                            {"w_gate", "mlp.gate_proj", "ffn_gate"},
                                            {"w_up", "mlp.up_proj", "ffn_up"},
                                            {"w_down", "mlp.down_proj", "ffn_down"}}};

std::string renamed(const std::string& name, const char* Names::*whose, const char* layers) {
  for (const Names& n : kWhole)
    if (name == n.own) return n.*whose;
  const size_t first = name.find('.'), last = name.rfind('.');
  IRQ_CHECK(first != std::string::npos && last > first, "no tensor is called %s", name.c_str());
  for (const Names& n : kOfLayer)
    if (name.compare(last + 1, std::string::npos, n.own) == 0)
      return layers + name.substr(first + 1, last - first - 1) + "." + n.*whose;
  IRQ_CHECK(false, "no tensor is called %s", name.c_str());
}

}  // namespace

std::string hugging_face_module(const std::string& name) {
  return renamed(name, &Names::hugging_face, "model.layers.");
}
std::string gguf_module(const std::string& name) { return renamed(name, &Names::gguf, "blk."); }

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
    text["irq.quantization"] = strf("NF%d, blocks of %d", f.bits, f.group);
    text["irq.source_hash"] = strf("%016lx", irq->source_hash());
    if (f.shift == ShiftKind::tau)
      text["irq.icq"] = strf("lambda %g, n %d, entropy %s", irq->info().icq.lambda, irq->info().icq.n,
                             irq->info().icq.fp32_entropy ? "fp32" : "exact");
  }
  const std::string weight = source.quantized() ? "level * scale + tau in F32" : "the base's";
  const std::string rounded = strf(", rounded once to %s", name_of(dtype));
  text["irq.weights"] = source.merges() ? "W + (alpha / r) B~ A~ in F32" + rounded + "; W = " + weight +
                                              "; A~ = A + beta1 P, B~ = B + beta2 E"
                                        : weight + rounded;
  if (const AdapterReader* adapter = source.adapter()) {
    const AdapterFile& a = adapter->info();
    text["irq.method"] = a.method;
    text["irq.adapter"] = strf("rank %ld, alpha %g, dropout %g, IEC expands by %s", a.rank, a.alpha, a.dropout,
                               a.tile ? "tile" : "interleave");
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
