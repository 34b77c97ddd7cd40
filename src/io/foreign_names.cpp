#include "src/io/foreign_names.h"

#include <array>

#include "src/core/check.h"

namespace irq {
namespace {

struct Names {
  const char *own, *hugging_face, *gguf;
};
constexpr std::array<Names, 3> kWhole = {{{"embed", "model.embed_tokens", "token_embd"},
                                          {"norm", "model.norm", "output_norm"},
                                          {"head", "lm_head", "output"}}};
constexpr std::array<Names, 9> kOfLayer = {{{"attn_norm", "input_layernorm", "attn_norm"},
                                            {"wq", "self_attn.q_proj", "attn_q"},
                                            {"wk", "self_attn.k_proj", "attn_k"},
                                            {"wv", "self_attn.v_proj", "attn_v"},
                                            {"wo", "self_attn.o_proj", "attn_output"},
                                            {"ffn_norm", "post_attention_layernorm", "ffn_norm"},
                                            {"w_gate", "mlp.gate_proj", "ffn_gate"},
                                            {"w_up", "mlp.up_proj", "ffn_up"},
                                            {"w_down", "mlp.down_proj", "ffn_down"}}};

std::string renamed(const std::string& name, const char* Names::*whose, const char* layers) {
  for (const Names& n : kWhole)
    if (name == n.own) return n.*whose;
  const size_t first = name.find('.'), last = name.rfind('.');
  IRQ_CHECK(first != std::string::npos && last > first, "no tensor is called %s", name.c_str());
  for (const Names& n : kOfLayer)
    if (name.compare(last + 1, std::string::npos, n.own) == 0)
      return layers + name.substr(first + 1, last - first - 1) + "." + n.*whose;
  IRQ_CHECK(false, "no tensor is called %s", name.c_str());
}

}  // namespace

std::string hugging_face_module(const std::string& name) {
  return renamed(name, &Names::hugging_face, "model.layers.");
}
std::string gguf_module(const std::string& name) { return renamed(name, &Names::gguf, "blk."); }

}  // namespace irq
