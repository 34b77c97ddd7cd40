// Hugging Face folders for tests: safetensors files written from the format's description, and small models in them.
#pragma once
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "src/core/rng.h"
#include "src/io/layout.h"
#include "tests/io_files.h"

namespace irq {

struct RawTensor {
  std::string name, dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};

inline std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t d : shape) text += (text.empty() ? "" : ",") + std::to_string(d);
  return "[" + text + "]";
}

// `length` -1: the header's true length.
inline std::string safetensors_file(const std::string& header, const std::string& data, int64_t length = -1) {
  const int64_t n = length < 0 ? static_cast<int64_t>(header.size()) : length;
  return std::string(reinterpret_cast<const char*>(&n), 8) + header + data;
}

// The data begin at 8 + a multiple of 8, plus `odd` bytes.
inline std::string safetensors_file(const std::vector<RawTensor>& tensors, size_t odd = 0) {
  std::string header = R"({"__metadata__":{"format":"pt"})", data;
  for (const RawTensor& t : tensors) {
    header += ",\"" + t.name + "\":{\"dtype\":\"" + t.dtype + "\",\"shape\":" + shape_text(t.shape) +
              strf(",\"data_offsets\":[%zu,%zu]}", data.size(), data.size() + t.bytes.size());
    data += t.bytes;
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8 + odd, ' ');
  return safetensors_file(header, data);
}

inline std::string config_text(const ModelConfig& c, const std::string& more = "") {
  return strf(
             R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": %ld, "intermediate_size": %ld,
  "num_hidden_layers": %ld, "num_attention_heads": %ld, "num_key_value_heads": %ld, "head_dim": %ld, "vocab_size": %ld,
  "max_position_embeddings": %ld, "rms_norm_eps": %.17g, "rope_theta": %.17g, "tie_word_embeddings": %s, "bos_token_id": %d,
  "eos_token_id": %d)",
             c.dim, c.ffn, c.layers, c.heads, c.kv_heads, c.head_dim, c.vocab, c.max_seq, c.norm_eps, c.rope_theta,
             c.tied ? "true" : "false", c.bos, c.eos) +
         more + "}";
}

inline const char* spelled(DType t) { return t == DType::F32 ? "F32" : t == DType::F16 ? "F16" : "BF16"; }

// Any bits but NaN and infinity.
inline std::string random_floats(Rng& rng, DType type, int64_t count) {
  std::string s = random_string(rng, count * size_of(type));
  const size_t width = static_cast<size_t>(size_of(type));
  for (size_t top = width - 1; top < s.size(); top += width)
    s[top] = static_cast<char>(s[top] & 0xbb);  // one exponent bit 0
  return s;
}

// This engine's name -> Hugging Face's, spelled out here once more.
inline std::string foreign_name(const std::string& name) {
  const std::map<std::string, std::string> leaf = {{"embed", "model.embed_tokens"},
                                                   {"norm", "model.norm"},
                                                   {"head", "lm_head"},
                                                   {"attn_norm", "input_layernorm"},
                                                   {"ffn_norm", "post_attention_layernorm"},
                                                   {"wq", "self_attn.q_proj"},
                                                   {"wk", "self_attn.k_proj"},
                                                   {"wv", "self_attn.v_proj"},
                                                   {"wo", "self_attn.o_proj"},
                                                   {"w_gate", "mlp.gate_proj"},
                                                   {"w_up", "mlp.up_proj"},
                                                   {"w_down", "mlp.down_proj"}};
  const size_t dot = name.find_last_of('.');
  if (dot == std::string::npos) return leaf.at(name) + ".weight";
  return "model." + name.substr(0, dot + 1) + leaf.at(name.substr(dot + 1)) + ".weight";
}

// Every tensor of the model in `type`, random, in the order of names (not the layout's).
inline std::vector<RawTensor> random_model(const ModelConfig& c, DType type, uint64_t seed = 1) {
  Rng rng(seed);
  std::map<std::string, RawTensor> sorted;
  const Layout layout = base_layout(c, type, "test");
  for (const TensorSpec& spec : layout.tensors()) {
    RawTensor t{foreign_name(spec.name), spelled(type), {spec.rows, spec.cols}, {}};
    if (spec.name.find("norm") != std::string::npos) t.shape = {spec.cols};
    t.bytes = random_floats(rng, type, spec.rows * spec.cols);
    sorted[t.name] = t;
  }
  std::vector<RawTensor> tensors;
  for (auto& [name, t] : sorted) tensors.push_back(t);
  return tensors;
}

inline RawTensor& named(std::vector<RawTensor>& tensors, const std::string& name) {
  for (RawTensor& t : tensors)
    if (t.name == name) return t;
  throw Error("no tensor " + name);
}

// config.json and the tensors in `shards` files with an index, or in model.safetensors.
inline void write_folder(const std::string& folder, const std::string& config, const std::vector<RawTensor>& tensors,
                         size_t shards = 1) {
  std::filesystem::create_directories(folder);
  write_bytes(folder + "/config.json", config);
  if (shards == 1) return write_bytes(folder + "/model.safetensors", safetensors_file(tensors));
  std::string map;
  for (size_t s = 0; s < shards; ++s) {
    const std::string name = strf("model-%05zu-of-%05zu.safetensors", s + 1, shards);
    std::vector<RawTensor> part;
    for (size_t i = s; i < tensors.size(); i += shards) {
      part.push_back(tensors[i]);
      map += (map.empty() ? "\"" : ",\"") + tensors[i].name + "\":\"" + name + "\"";
    }
    write_bytes(folder + "/" + name, safetensors_file(part));
  }
  write_bytes(folder + "/model.safetensors.index.json", R"({"metadata":{"total_size":1},"weight_map":{)" + map + "}}");
}

}  // namespace irq
