// The finetuning methods as presets of one engine: which base, and which adapter on it.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace irq {

struct Method {
  const char* name;
  bool quantized;  // base in NF-k (else 16-bit or what the file holds)
  bool icq;        // ... searched by ICQ
  bool lora;       // adapters on the linears
  bool u1, u2;     // IEC's two connections: beta1 (pooled input), beta2 (expanded rank vector)
  bool full;       // every parameter trains, no adapters
  const char* what;
  bool operator==(const Method&) const = default;  // names by address: for two that share them
};
const std::vector<Method>& methods();
const Method& find_method(const std::string& name);  // usage Error listing the methods

// Bit i of a target mask = linear i of layer_linears().
constexpr uint32_t kAllTargets = 0x7f;
uint32_t parse_targets(const std::string& list);  // "q_proj,v_proj" or "wq,wv" or "all"
std::string targets_text(uint32_t mask);          // "wq,wk,..."

struct LoraConfig {
  int64_t rank = 64;
  double alpha = 16;
  double dropout = 0;
  uint32_t targets = kAllTargets;
  bool u1 = true, u2 = true;
  bool tile = false;  // expansion by tiling (paper Eq. 14) instead of interleaving (Eq. 16 and the released code)
  double scale() const { return alpha / static_cast<double>(rank); }
};

}  // namespace irq
