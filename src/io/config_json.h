// Hugging Face's config.json -> ModelConfig.
#pragma once
#include <string>

#include "src/model/config.h"

namespace irq {

// Throws an Error that names the key and the reason where the file describes a model this engine would run wrongly.
// nf4: quantization_config must be there and must be bitsandbytes' NF4; otherwise any quantization is refused.
ModelConfig model_config_from_json(const std::string& path, bool nf4 = false);
// Has it a quantization_config of bitsandbytes, NF4 or not?
bool says_bitsandbytes(const std::string& path);

}  // namespace irq
