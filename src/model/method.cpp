#include "src/model/method.h"

#include <sstream>

#include "src/core/check.h"

namespace irq {
namespace {

constexpr const char* kLinearNames[7] = {"wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down"};
constexpr const char* kHfNames[7] = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};

}  // namespace

const std::vector<Method>& methods() {
  //                                   name       quant  icq    lora   u1     u2     full
  static const std::vector<Method> all = {
      {"ir-qlora", true, true, true, true, true, false, "ICQ base, LoRA with IEC (the paper's method)"},
      {"qlora", true, false, true, false, false, false, "NF-k base, plain LoRA"},
      {"icq", true, true, true, false, false, false, "ICQ base, plain LoRA (ablation)"},
      {"iec", true, false, true, true, true, false, "NF-k base, LoRA with IEC (ablation)"},
      {"iec-u1", true, false, true, true, false, false, "NF-k base, IEC on the input side only (ablation)"},
      {"iec-u2", true, false, true, false, true, false, "NF-k base, IEC on the output side only (ablation)"},
      {"lora16", false, false, true, false, false, false, "the base as it is, plain LoRA"},
      {"full", false, false, false, false, false, true, "every parameter trains"}};
  return all;
}

const Method& find_method(const std::string& name) {
  std::string known;
  for (const Method& m : methods()) {
    if (name == m.name) return m;
    known += known.empty() ? m.name : std::string(" ") + m.name;
  }
  throw Error("unknown method '" + name + "'", Exit::usage).line("allowed", known);
}

uint32_t parse_targets(const std::string& list) {
  if (list == "all") return kAllTargets;
  uint32_t mask = 0;
  std::stringstream stream(list);
  for (std::string item; std::getline(stream, item, ',');) {
    int found = -1;
    for (int i = 0; i < 7; ++i)
      if (item == kLinearNames[i] || item == kHfNames[i]) found = i;
    if (found < 0)
      throw Error("--target-modules: unknown linear '" + item + "'", Exit::usage)
          .line("allowed", "all, or a list of q_proj k_proj v_proj o_proj gate_proj up_proj down_proj");
    mask |= 1u << found;
  }
  if (mask == 0) throw Error("--target-modules names no linear", Exit::usage);
  return mask;
}

std::string targets_text(uint32_t mask) {
  std::string text;
  for (int i = 0; i < 7; ++i)
    if (mask >> i & 1u) text += (text.empty() ? "" : ",") + std::string(kLinearNames[i]);
  return text;
}

}  // namespace irq
