#include "src/io/adapter_base.h"

#include <filesystem>

#include "src/io/checkpoint.h"

namespace irq {
namespace {

std::string hex(uint64_t hash) { return strf("%016llx", static_cast<unsigned long long>(hash)); }

// The quantized base with this hash among the files of a folder, "" if it is not there: irq_train keeps it beside its BASE.
std::string find_quantized(const std::string& folder, uint64_t hash) {
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    if (entry.path().extension() != ".irq") continue;
    try {
      if (IrqReader(entry.path().string()).hash() == hash) return entry.path().string();
    } catch (const Error&) {  // a broken file is not the one
    }
  }
  return "";
}

}  // namespace

void require_adapter_base(const BaseIdentity& base, uint64_t wanted, const std::string& adapter_path,
                          const std::string& why) {
  if (wanted == base.hash || (base.quantized && wanted == base.source_hash)) return;
  std::string found = hex(base.hash) + " (" + base.path + ")";
  if (base.quantized) found += ", made from " + hex(base.source_hash);
  std::string right = find_quantized(parent_path(base.path), wanted);
  if (right.empty()) right = find_quantized(parent_path(adapter_path), wanted);
  const char* likely = !right.empty()   ? "it was trained on the quantized base, which is a file of its own"
                       : base.quantized ? "a base quantized with other options, or another model"
                                        : "it was trained on a quantized base (.irq), or on another model";
  Error error(adapter_path + ": this adapter was trained on another base");
  error.line("expected", "base " + hex(wanted)).line("found", found).line("likely", likely);
  if (!why.empty()) error.line("why", why);
  throw error.line("try", !right.empty() ? right + "    in the place of    " + base.path
                                         : "the base that irq_train named; ./irq_inspect FILE shows a file's hash");
}

void require_integer_base(const AdapterFile& adapter, const IrqReader* base, const std::string& adapter_path) {
  if (!adapter.trains_scales() || (base != nullptr && base->format().kind == QuantKind::integer)) return;
  throw Error(adapter_path + ": holds the scales of an integer base")
      .line("found", base ? base->path() + ", NF codes" : "a base that is not quantized")
      .line("try", "the integer base (.irq) that it was trained on");
}

}  // namespace irq
