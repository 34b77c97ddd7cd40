#include "src/model/config.h"

#include <algorithm>
#include <map>

#include "src/core/check.h"

namespace irq {

std::array<LinearShape, 7> layer_linears(const ModelConfig& c) {
  return {{{"wq", c.q_width(), c.dim},
           {"wk", c.kv_width(), c.dim},
           {"wv", c.kv_width(), c.dim},
           {"wo", c.dim, c.q_width()},
           {"w_gate", c.ffn, c.dim},
           {"w_up", c.ffn, c.dim},
           {"w_down", c.dim, c.ffn}}};
}

int64_t narrowest_linear(const ModelConfig& c) { return std::min({c.dim, c.kv_width(), c.ffn}); }

int64_t linear_weights(const ModelConfig& c) {
  int64_t n = 0;
  for (const LinearShape& s : layer_linears(c)) n += s.out * s.in;
  return n * c.layers;
}

int64_t total_parameters(const ModelConfig& c) {
  return linear_weights(c) + (c.tied ? 1 : 2) * c.vocab * c.dim + (2 * c.layers + 1) * c.dim;
}

void validate(const ModelConfig& c, const std::string& subject) {
  auto bad = [&](const std::string& what) { return Error(subject + ": not a LLaMA this engine can run: " + what); };
  const auto in_range = [&](int64_t x, int64_t high, const char* name) {
    if (x < 1 || x > high) throw bad(strf("%s = %ld (allowed: 1 to %ld)", name, x, high));
  };
  in_range(c.dim, 1 << 16, "dim");
  in_range(c.ffn, 1 << 18, "ffn");
  in_range(c.layers, 1 << 10, "layers");
  in_range(c.heads, 1 << 10, "heads");
  in_range(c.kv_heads, c.heads, "kv_heads");
  in_range(c.head_dim, 256, "head_dim");
  in_range(c.vocab, 1 << 21, "vocab");
  in_range(c.max_seq, 1 << 24, "max_seq");
  if (c.heads % c.kv_heads) throw bad(strf("%ld heads are not a multiple of %ld kv_heads", c.heads, c.kv_heads));
  if (c.head_dim % 2) throw bad(strf("head_dim = %ld is odd", c.head_dim));
  if (!(c.norm_eps > 0 && c.norm_eps < 0.1)) throw bad(strf("norm_eps = %g", c.norm_eps));
  if (!(c.rope_theta >= 1 && c.rope_theta < 1e12)) throw bad(strf("rope_theta = %g", c.rope_theta));
}

ModelConfig preset_config(const std::string& name) {
  const auto make = [](int64_t dim, int64_t ffn, int64_t layers, int64_t heads, int64_t kv, double eps, int64_t ctx) {
    ModelConfig c;
    c.dim = dim, c.ffn = ffn, c.layers = layers, c.heads = heads, c.kv_heads = kv;
    c.head_dim = dim / heads, c.vocab = 32000, c.max_seq = ctx, c.norm_eps = eps;
    return c;
  };
  static const std::map<std::string, ModelConfig> presets = {
      {"7b", make(4096, 11008, 32, 32, 32, 1e-6, 2048)},   {"13b", make(5120, 13824, 40, 40, 40, 1e-6, 2048)},
      {"30b", make(6656, 17920, 60, 52, 52, 1e-6, 2048)},  {"65b", make(8192, 22016, 80, 64, 64, 1e-5, 2048)},
      {"2-7b", make(4096, 11008, 32, 32, 32, 1e-5, 4096)}, {"2-13b", make(5120, 13824, 40, 40, 40, 1e-5, 4096)},
      {"2-70b", make(8192, 28672, 80, 64, 8, 1e-5, 4096)}};
  const auto found = presets.find(name);
  if (found == presets.end())
    throw Error("unknown model size '" + name + "'", Exit::usage).line("allowed", "7b 13b 30b 65b 2-7b 2-13b 2-70b");
  return found->second;
}

std::string describe(const ModelConfig& c) {
  return strf("LLaMA, %ld layers, dim %ld, ffn %ld, %ld heads%s, vocabulary %ld", c.layers, c.dim, c.ffn, c.heads,
              c.kv_heads == c.heads ? "" : strf(" (%ld kv)", c.kv_heads).c_str(), c.vocab);
}

}  // namespace irq
