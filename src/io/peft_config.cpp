// adapter_config.json of a PEFT folder.
#include <cmath>
#include <nlohmann/json.hpp>

#include "src/io/initial_adapter.h"
#include "src/io/printable.h"
#include "src/model/method.h"
#include "src/text/json_file.h"

namespace irq {
namespace {

using Json = nlohmann::json;

Error refusal(const std::string& path, const std::string& reason) {
  return Error(path + ": not an adapter that this engine can train on: " + reason)
      .line("expected", "plain LoRA on q_proj k_proj v_proj o_proj gate_proj up_proj down_proj, one rank for all");
}

bool is_on(const Json& j, const char* key) {
  if (!j.contains(key)) return false;
  const Json& x = j.at(key);
  return x.is_boolean() ? x.get<bool>() : !x.is_null();
}
// A list, an object or a text with something in it.
bool is_filled(const Json& j, const char* key) { return j.contains(key) && !j.at(key).is_null() && !j.at(key).empty(); }

std::string shown(const Json& j, const char* key) {
  return std::string(key) + " = " + j.at(key).dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 60);
}

// Each of these changes what the adapter computes, or which weights it belongs to.
void refuse_other_kinds(const Json& j, const std::string& path) {
  const auto text = [&](const char* key, const std::string& fallback) {
    return j.contains(key) && j.at(key).is_string() ? j.at(key).get<std::string>() : fallback;
  };
  if (text("peft_type", "LORA") != "LORA") throw refusal(path, "its peft_type is " + printable(text("peft_type", "")));
  const std::pair<const char*, const char*> switches[] = {
      {"use_rslora", "use_rslora divides alpha by the root of the rank"},
      {"use_dora", "use_dora adds a trained norm to every weight (DoRA)"},
      {"use_qalora", "use_qalora pools the input by groups"},
      {"lora_bias", "lora_bias gives B a bias"},
      {"fan_in_fan_out", "fan_in_fan_out transposes the weights"}};
  for (const auto& [key, reason] : switches)
    if (is_on(j, key)) throw refusal(path, reason);
  if (text("bias", "none") != "none")
    throw refusal(path, "bias is \"" + printable(text("bias", "")) + "\": it trains biases");
  const std::pair<const char*, const char*> lists[] = {
      {"modules_to_save", "modules_to_save holds whole weights beside the adapter"},
      {"rank_pattern", "rank_pattern gives linears different ranks"},
      {"alpha_pattern", "alpha_pattern gives linears different alphas"},
      {"layer_replication", "layer_replication repeats layers"},
      {"target_parameters", "target_parameters adapts what is no linear"},
      {"trainable_token_indices", "trainable_token_indices trains embeddings"},
      {"layers_to_transform", "layers_to_transform leaves layers out"}};
  for (const auto& [key, reason] : lists)
    if (is_filled(j, key)) throw refusal(path, reason).line("found", shown(j, key));
  // These start by taking a part out of the base weights: the adapter fits the changed base only.
  const std::string init = text("init_lora_weights", "");
  for (const char* changes_base : {"pissa", "olora", "loftq", "corda"})
    if (init.rfind(changes_base, 0) == 0)
      throw refusal(path,
                    "init_lora_weights is \"" + printable(init) + "\": it belongs to a base whose weights were changed")
          .line("try",
                "convert it to plain LoRA with PEFT first (save_pretrained, path_initial_model_for_weight_conversion)");
}

double number(const Json& j, const char* key, double lowest, double highest, const std::string& path) {
  if (!j.contains(key)) throw Error(path + ": has no " + key).line("likely", "not a LoRA's adapter_config.json");
  const Json& x = j.at(key);
  if (!x.is_number() || !(x.get<double>() >= lowest && x.get<double>() <= highest))
    throw Error(path + ": cannot be understood")
        .line("expected", strf("%s to be a number from %g to %g", key, lowest, highest))
        .line("found", shown(j, key));
  return x.get<double>();
}

uint32_t targets_of(const Json& j, const std::string& path) {
  const char* key = "target_modules";
  if (!j.contains(key) || !j.at(key).is_array()) return 0;
  uint32_t mask = 0;
  for (const Json& item : j.at(key)) {
    const std::string name = item.is_string() ? item.get<std::string>() : item.dump().substr(0, 60);
    const size_t dot = name.rfind('.');
    try {
      mask |= parse_targets(dot == std::string::npos ? name : name.substr(dot + 1));
    } catch (const Error&) { throw refusal(path, "it adapts " + printable(name)); }
  }
  return mask;
}

}  // namespace

PeftConfig parse_peft_config(const std::string& json_text, const std::string& path) {
  Json j;
  try {
    j = parse_shallow_json(json_text, path);
  } catch (const Json::exception&) {}  // no JSON is no object either
  if (!j.is_object())
    throw Error(path + ": is not an adapter's configuration").line("expected", "a JSON object {\"r\": 64, ...}");
  refuse_other_kinds(j, path);
  PeftConfig c;
  const double rank = number(j, "r", 1, 4096, path);
  if (rank != std::floor(rank)) throw Error(path + ": r is not a whole number").line("found", shown(j, "r"));
  c.rank = static_cast<int64_t>(rank);
  c.alpha = number(j, "lora_alpha", 0, 1e6, path);
  if (j.contains("lora_dropout") && !j.at("lora_dropout").is_null()) c.dropout = number(j, "lora_dropout", 0, 1, path);
  c.targets = targets_of(j, path);
  return c;
}

}  // namespace irq
