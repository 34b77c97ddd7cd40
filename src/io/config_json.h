// Hugging Face's config.json -> ModelConfig.
#pragma once
#include <string>

#include "src/model/config.h"

namespace irq {

// Throws an Error that names the key and the reason where the file describes a model this engine would run wrongly.
ModelConfig model_config_from_json(const std::string& path);

}  // namespace irq
