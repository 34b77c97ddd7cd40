#include "src/model/method.h"

#include <sstream>

#include "src/core/check.h"

namespace irq {
namespace {

constexpr const char* kLinearNames[7] = {"wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down"};
constexpr const char* kHfNames[7] = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};

}  // namespace

const std::vector<Method>& methods() {
  static const std::vector<Method> all = {
      {.name = "ir-qlora",
       .format = "nf",
       .icq = true,
       .lora = true,
       .u1 = true,
       .u2 = true,
       .what = "ICQ base, LoRA with IEC (the paper's method)"},
      {.name = "qlora", .format = "nf", .lora = true, .what = "NF-k base, plain LoRA"},
      {.name = "icq", .format = "nf", .icq = true, .lora = true, .what = "ICQ base, plain LoRA (ablation)"},
      {.name = "iec",
       .format = "nf",
       .lora = true,
       .u1 = true,
       .u2 = true,
       .what = "NF-k base, LoRA with IEC (ablation)"},
      {.name = "iec-u1",
       .format = "nf",
       .lora = true,
       .u1 = true,
       .what = "NF-k base, IEC on the input side only (ablation)"},
      {.name = "iec-u2",
       .format = "nf",
       .lora = true,
       .u2 = true,
       .what = "NF-k base, IEC on the output side only (ablation)"},
      {.name = "qa-lora",
       .format = "gptq",
       .lora = true,
       .pooled = true,
       .what = "integer base, LoRA on the pooled input: merges into the zero points"},
      {.name = "ir-qa-lora",
       .format = "gptq",
       .icq = true,
       .lora = true,
       .u1 = true,
       .u2 = true,
       .pooled = true,
       .what = "the same with integer ICQ and IEC"},
      {.name = "qlora-gptq",
       .format = "nf",
       .lora = true,
       .requantize = true,
       .what = "qlora, then merged into the 16-bit base and quantized by GPTQ"},
      {.name = "peqa", .format = "int", .scales = true, .what = "integer base, only its scales train"},
      {.name = "loftq",
       .format = "nf",
       .lora = true,
       .loftq = true,
       .what = "NF-k base and LoRA found together by LoftQ, then plain LoRA"},
      {.name = "lora16", .lora = true, .what = "the base as it is, plain LoRA"},
      {.name = "full", .full = true, .what = "every parameter trains"}};
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

PoolKind parse_pool(const std::string& name) {
  for (const PoolKind kind : {PoolKind::mean, PoolKind::sum, PoolKind::peft})
    if (name == name_of(kind)) return kind;
  throw Error("--pool: unknown convention '" + name + "'", Exit::usage).line("allowed", "mean, sum, peft");
}

const char* name_of(PoolKind kind) {
  constexpr const char* kNames[] = {"none", "mean", "sum", "peft"};
  return kNames[static_cast<int>(kind)];
}

std::string targets_text(uint32_t mask) {
  std::string text;
  for (int i = 0; i < 7; ++i)
    if (mask >> i & 1u) text += (text.empty() ? "" : ",") + std::string(kLinearNames[i]);
  return text;
}

}  // namespace irq
