// The finetuning methods as presets of one engine: which base, and which adapter on it.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/group_pool.h"

namespace irq {

struct Method {
  const char* name = "";
  const char* format = "";  // of the base: "nf", "int", "gptq"; "" as the file holds it
  bool icq = false;         // ... calibrated by ICQ
  bool lora = false;        // adapters on the linears
  bool u1 = false;          // IEC's connection from the pooled input (beta1)
  bool u2 = false;          // ... and from the expanded rank vector (beta2)
  bool pooled = false;      // QA-LoRA: A sees the input pooled over the groups of the base's integers
  bool scales = false;      // PEQA: the scales of the base's integers train, no adapters
  bool loftq = false;       // base and initial adapter are found together
  bool requantize = false;  // the result is the 16-bit base with the adapter merged, quantized again by GPTQ
  bool full = false;        // every parameter trains, no adapters
  const char* what = "";
  bool quantized() const { return *format != 0; }
  bool needs_integers() const { return pooled || scales; }
  bool operator==(const Method&) const = default;  // names by address: for two that share them
};
const std::vector<Method>& methods();
const Method& find_method(const std::string& name);  // usage Error listing the methods

// Bit i of a target mask = linear i of layer_linears().
constexpr uint32_t kAllTargets = 0x7f;
uint32_t parse_targets(const std::string& list);  // "q_proj,v_proj" or "wq,wv" or "all"
std::string targets_text(uint32_t mask);          // "wq,wk,..."

// QA-LoRA's conventions by name: "mean", "sum", "peft".
PoolKind parse_pool(const std::string& name);
const char* name_of(PoolKind kind);

struct LoraConfig {
  int64_t rank = 64;
  double alpha = 16;
  double dropout = 0;
  uint32_t targets = kAllTargets;
  bool u1 = true, u2 = true;
  bool tile = false;    // expansion by tiling (paper Eq. 14) instead of interleaving (Eq. 16 and the released code)
  InputPool pool = {};  // QA-LoRA: A is (r, groups of the input)
  double scale() const { return alpha / static_cast<double>(rank); }
};

}  // namespace irq
