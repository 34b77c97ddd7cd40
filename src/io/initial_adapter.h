// An adapter that training starts from: a PEFT folder of whatever program, or an own .lora.
#pragma once
#include <string>

#include "src/io/checkpoint.h"

namespace irq {

struct InitialAdapter {
  // rank, alpha, dropout, targets, tile; tensors "layers.N.wq.A" (R, in), ".B" (out, R), and ".beta1", ".beta2" (1, 1) of
  // every adapted linear or of none. base_hash means something only if knows_base.
  AdapterFile adapter;
  bool knows_base = false;                      // the file says which base it was trained on
  bool uses_beta1 = false, uses_beta2 = false;  // some beta is not 0
  uint64_t hash = 0;                            // of all of that
  std::string description;                      // "a PEFT adapter, rank 64, alpha 16, wq,wv"
};

// path: a folder with adapter_model.safetensors and adapter_config.json, or a .lora. In a folder, keys may have the
// prefixes base_model. and model. in any number (the released IR-QLoRA code saves every key twice), matrices may be F32,
// F16 or BF16, and betas are taken from the released code's lora_default_A_scale and lora_default_B_scale. An Error with
// the reason where the folder holds something that this engine's adapters are not (DoRA, biases, ranks by layer, ...), or
// where a tensor does not fit the model.
InitialAdapter read_initial_adapter(const std::string& path, const ModelConfig& config);

// Exactly those keys of adapter_config.json that this engine needs; refuses what it cannot run. `path` for messages.
struct PeftConfig {
  int64_t rank = 0;
  double alpha = 0, dropout = 0;
  uint32_t targets = 0;  // 0: the file does not list plain names (a regular expression, "all-linear")
};
PeftConfig parse_peft_config(const std::string& json_text, const std::string& path);

}  // namespace irq
