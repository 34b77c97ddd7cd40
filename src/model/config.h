// ModelConfig: the shape of a LLaMA (1, 2, and every model of its architecture with half-split RoPE).
#pragma once
#include <array>
#include <cstdint>
#include <string>

namespace irq {

struct ModelConfig {
  int64_t dim = 0;  // C
  int64_t ffn = 0;  // F
  int64_t layers = 0;
  int64_t heads = 0;     // H
  int64_t kv_heads = 0;  // G, divides H
  int64_t head_dim = 0;  // D, usually dim / heads
  int64_t vocab = 0;     // V
  int64_t max_seq = 0;   // positions the model was made for
  double rope_theta = 10000.0;
  double norm_eps = 1e-6;
  bool tied = false;  // head = embed
  int32_t bos = 1, eos = 2;

  int64_t q_width() const { return heads * head_dim; }
  int64_t kv_width() const { return kv_heads * head_dim; }
  bool operator==(const ModelConfig&) const = default;
};

// The seven linears of a layer in file order, with their shapes W (out, in).
struct LinearShape {
  const char* name;  // "wq" "wk" "wv" "wo" "w_gate" "w_up" "w_down"
  int64_t out, in;
};
std::array<LinearShape, 7> layer_linears(const ModelConfig& c);
int64_t narrowest_linear(const ModelConfig& c);  // the least of all widths: the largest rank that an adapter may have
int64_t linear_weights(const ModelConfig& c);    // weights in all layers' linears: 6,476,005,376 for 7B
int64_t total_parameters(const ModelConfig& c);  // 6,738,415,616 for 7B

// Throws an Error naming `subject` when a field cannot be (zero, heads not divisible, sizes beyond any real model).
void validate(const ModelConfig& c, const std::string& subject);
// "7b", "13b", "30b", "65b" (LLaMA-1), "2-7b", "2-13b", "2-70b"; throws a usage Error listing them.
ModelConfig preset_config(const std::string& name);
// "LLaMA, 32 layers, dim 4096, ffn 11008, 32 heads, vocabulary 32000"
std::string describe(const ModelConfig& c);

}  // namespace irq
