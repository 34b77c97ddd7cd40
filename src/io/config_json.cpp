#include "src/io/config_json.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "src/core/check.h"
#include "src/core/file.h"
#include "src/text/json_file.h"

namespace irq {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMaxConfigBytes = int64_t{4} << 20;  // real ones have a few kB

class ConfigReader {
 public:
  ConfigReader(const std::string& path, Json json) : path_(path), json_(std::move(json)) {}

  Error refuse(const std::string& reason) const {
    return Error(path_ + ": not a LLaMA this engine can run: " + reason)
        .line("expected", "LLaMA's architecture: RMSNorm, rotary positions, SwiGLU, linears without bias");
  }
  bool given(const char* key) const { return json_.contains(key) && !json_.at(key).is_null(); }
  const Json& at(const char* key) const { return json_.at(key); }
  int64_t integer(const char* key, int64_t fallback) const {  // fallback < 0: the key must be there
    if (!given(key)) {
      if (fallback < 0)
        throw Error(path_ + ": has no " + key).line("likely", "not a model's config.json, or a cut one");
      return fallback;
    }
    if (!at(key).is_number_integer()) throw wrong_type(key, "a whole number");
    const int64_t x = at(key).get<int64_t>();
    if (x < 0 || x > int64_t{1} << 40) throw wrong_type(key, "a sensible size");
    return x;
  }
  double number(const char* key, double fallback) const {
    if (!given(key)) return fallback;
    if (!at(key).is_number()) throw wrong_type(key, "a number");
    return at(key).get<double>();
  }
  bool flag(const char* key, bool fallback) const {
    if (!given(key)) return fallback;
    if (!at(key).is_boolean()) throw wrong_type(key, "true or false");
    return at(key).get<bool>();
  }
  std::string text(const char* key, const std::string& fallback) const {
    if (!given(key)) return fallback;
    if (!at(key).is_string()) throw wrong_type(key, "a text");
    return at(key).get<std::string>();
  }
  // A token id, or a list of them of which the first is taken.
  int32_t token(const char* key, int32_t fallback) const {
    if (!given(key)) return fallback;
    const Json& x = at(key).is_array() && !at(key).empty() ? at(key).front() : at(key);
    if (!x.is_number_integer() || x.get<int64_t>() < 0 || x.get<int64_t>() > INT32_MAX)
      throw wrong_type(key, "a token id");
    return x.get<int32_t>();
  }

 private:
  Error wrong_type(const char* key, const char* expected) const {
    return Error(path_ + ": cannot be understood")
        .line("expected", std::string(key) + " to be " + expected)
        .line("found", std::string(key) + " = " + at(key).dump().substr(0, 60));
  }
  const std::string& path_;
  Json json_;
};

std::string lower(std::string s) {
  std::transform(s.begin(), s.end(), s.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return s;
}

// What the configuration asks for beyond plain LLaMA. Each of these changes results, so each is refused.
void refuse_other_models(const ConfigReader& r) {
  const std::string type = r.text("model_type", "");
  if (!type.empty() && lower(type) != "llama") throw r.refuse("model_type is " + type);
  if (r.given("architectures") && r.at("architectures").is_array() && !r.at("architectures").empty()) {
    const Json& a = r.at("architectures").front();
    const std::string name = a.is_string() ? a.get<std::string>() : a.dump().substr(0, 60);
    if (lower(name) != "llamaforcausallm") throw r.refuse("its architecture is " + name);
  } else if (r.given("architectures") && !r.at("architectures").is_array()) {
    throw r.refuse("its architecture is " + r.at("architectures").dump().substr(0, 60));
  }
  // What models near to LLaMA add; 1 (a multiplier) and null or false (a window) change nothing.
  for (const char* key :
       {"embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling", "logit_scale"})
    if (r.number(key, 1.0) != 1.0) throw r.refuse(std::string(key) + " is not 1");
  if (r.given("sliding_window") && !(r.at("sliding_window").is_boolean() && !r.at("sliding_window").get<bool>()))
    throw r.refuse("sliding_window is set");
  if (r.flag("attention_bias", false)) throw r.refuse("attention_bias is set (its attention has biases)");
  if (r.flag("mlp_bias", false)) throw r.refuse("mlp_bias is set (its feed-forward part has biases)");
  const std::string act = r.text("hidden_act", "silu");
  if (act != "silu" && act != "swish") throw r.refuse("hidden_act is " + act);
  if (r.flag("rope_interleaved", false)) throw r.refuse("rope_interleaved is set");
  if (r.number("partial_rotary_factor", 1.0) != 1.0) throw r.refuse("partial_rotary_factor is not 1");
}

// quantization_config: only bitsandbytes' NF4, and that only where `nf4` says that the caller reads its tensors.
void check_quantization(const ConfigReader& r, const std::string& path, bool nf4) {
  if (!r.given("quantization_config")) {
    if (nf4) throw r.refuse("it has no quantization_config").line("expected", "a model that bitsandbytes quantized");
    return;
  }
  const Json& q = r.at("quantization_config");
  const auto text = [&](const char* key, const char* fallback) {
    if (!q.is_object() || !q.contains(key)) return std::string(fallback);
    return q.at(key).is_string() ? q.at(key).get<std::string>() : q.at(key).dump().substr(0, 60);
  };
  const bool four_bits = text("load_in_4bit", "false") == "true";
  const std::string method = text("quant_method", four_bits ? "bitsandbytes" : "unknown");
  const std::string kind = text("bnb_4bit_quant_type", "fp4");  // what bitsandbytes takes where it is not said
  std::string reason;
  if (method != "bitsandbytes") reason = "quant_method is " + method;
  else if (!four_bits) reason = "bitsandbytes with 8 bits";
  else if (kind != "nf4") reason = "bnb_4bit_quant_type is " + kind;
  if (reason.empty() && nf4) return;
  Error e = r.refuse("it is quantized already (" + (reason.empty() ? "bitsandbytes, NF4" : reason) + ")");
  e.line("try", reason.empty() ? "./irq_convert " + shell_quoted(parent_path(path)) + " model.irq"
                               : "take the 16-bit original instead; of quantized models irq_convert reads NF4 only");
  throw e;
}

// rope_scaling (and its successor rope_parameters): only the plain kind. Returns a theta given there, else `theta`.
double check_rope(const ConfigReader& r, const char* key, double theta) {
  if (!r.given(key)) return theta;
  const Json& rope = r.at(key);
  if (!rope.is_object()) throw r.refuse(std::string(key) + " = " + rope.dump().substr(0, 60));
  std::string kind = "default";
  for (const char* name : {"rope_type", "type"})
    if (rope.contains(name) && rope.at(name).is_string()) kind = rope.at(name).get<std::string>();
  const bool plain = kind == "default" && !rope.contains("factor");
  if (!plain)
    throw r.refuse(std::string(key) + " = " + rope.dump().substr(0, 80) + " (stretched positions are not supported)");
  return rope.contains("rope_theta") && rope.at("rope_theta").is_number() ? rope.at("rope_theta").get<double>() : theta;
}

Json read_config(const std::string& path) {
  Json json = read_json_file(path, kMaxConfigBytes);
  if (!json.is_object())
    throw Error(path + ": is not a model's config.json").line("expected", "an object {\"hidden_size\": ...}");
  return json;
}

}  // namespace

bool says_bitsandbytes(const std::string& path) {
  const Json json = read_config(path);
  if (!json.contains("quantization_config") || !json.at("quantization_config").is_object()) return false;
  const Json& q = json.at("quantization_config");
  if (q.contains("quant_method")) return q.at("quant_method") == "bitsandbytes";
  return q.contains("load_in_4bit") || q.contains("load_in_8bit");
}

ModelConfig model_config_from_json(const std::string& path, bool nf4) {
  Json json = read_config(path);
  const ConfigReader r(path, std::move(json));
  refuse_other_models(r);
  check_quantization(r, path, nf4);
  ModelConfig c;
  c.dim = r.integer("hidden_size", -1);
  c.ffn = r.integer("intermediate_size", -1);
  c.layers = r.integer("num_hidden_layers", -1);
  c.heads = r.integer("num_attention_heads", -1);
  c.vocab = r.integer("vocab_size", -1);
  c.kv_heads = r.integer("num_key_value_heads", c.heads);
  c.head_dim = r.integer("head_dim", c.heads > 0 ? c.dim / c.heads : 0);
  if (!r.given("head_dim") && c.heads > 0 && c.dim % c.heads)
    throw r.refuse(strf("hidden_size %ld is not a multiple of %ld heads", c.dim, c.heads));
  c.max_seq = r.integer("max_position_embeddings", r.integer("max_sequence_length", 2048));
  c.norm_eps = r.number("rms_norm_eps", 1e-6);
  c.rope_theta = check_rope(r, "rope_parameters", check_rope(r, "rope_scaling", r.number("rope_theta", 10000.0)));
  c.tied = r.flag("tie_word_embeddings", false);
  c.bos = r.token("bos_token_id", 1);
  c.eos = r.token("eos_token_id", 2);
  validate(c, path);
  if (c.bos >= c.vocab || c.eos >= c.vocab)
    throw r.refuse(strf("bos_token_id %d or eos_token_id %d is outside its vocabulary of %ld", c.bos, c.eos, c.vocab));
  return c;
}

}  // namespace irq
