// A random model in a file, and an adapter for it, for the tests of src/eval.
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <memory>
#include <numeric>

#include "src/eval/generate.h"
#include "src/eval/perplexity.h"
#include "src/io/checkpoint.h"
#include "tests/text_fixtures.h"

namespace irq {

inline ModelConfig eval_config() {
  ModelConfig c;
  c.dim = 64, c.ffn = 96, c.layers = 2, c.heads = 4, c.kv_heads = 2, c.head_dim = 16, c.vocab = 259, c.max_seq = 64;
  return c;
}

using Weights = std::map<std::string, std::vector<float>>;

// Matrices N(0, 2/sqrt(in)), so that the logits differ by far more than rounding does; norms near 1.
inline Weights random_weights(const ModelConfig& c, uint64_t seed) {
  Weights weights;
  uint64_t stream = 0;
  const Layout layout = base_layout(c, DType::F32, "test");
  for (const TensorSpec& t : layout.tensors()) {
    Rng rng(seed, stream++);
    std::vector<float>& w = weights[t.name];
    w.resize(static_cast<size_t>(t.rows * t.cols));
    for (float& x : w)
      x = static_cast<float>(t.rows == 1 ? 1 + 0.1 * rng.normal()
                                         : 2 * rng.normal() / std::sqrt(static_cast<double>(t.cols)));
  }
  return weights;
}

inline uint64_t write_weights(const std::string& path, const ModelConfig& c, const Weights& weights) {
  BaseWriter w(path, c, DType::F32);
  while (const TensorSpec* t = w.next()) {
    const std::string name = t->name;
    w.write(name, weights.at(name).data(), t->bytes());
  }
  return w.finish();
}

// An adapter with every tensor random, on the linears of `targets`.
inline AdapterFile random_adapter(const ModelConfig& c, uint32_t targets, bool u1, bool u2, uint64_t base_hash,
                                  uint64_t seed = 5) {
  AdapterFile a;
  a.method = "ir-qlora", a.rank = 8, a.alpha = 16, a.dropout = 0.1, a.targets = targets, a.base_hash = base_hash;
  Rng rng(seed, 77);
  const auto add = [&](const std::string& name, int64_t rows, int64_t cols, double scale) {
    NamedArray t{name, rows, cols, {}};
    for (int64_t i = 0; i < rows * cols; ++i) t.data.push_back(static_cast<float>(scale * rng.normal()));
    a.tensors.push_back(t);
  };
  for (int64_t l = 0; l < c.layers; ++l)
    for (int i = 0; i < 7; ++i) {
      if (!(targets >> i & 1u)) continue;
      const LinearShape s = layer_linears(c)[static_cast<size_t>(i)];
      const std::string name = strf("layers.%ld.%s.", l, s.name);
      add(name + "A", a.rank, s.in, 0.2), add(name + "B", s.out, a.rank, 0.2);
      if (u1) add(name + "beta1", 1, 1, 1);
      if (u2) add(name + "beta2", 1, 1, 1);
    }
  return a;
}

inline std::unique_ptr<CheckedBackend> eval_backend() { return make_backend(Device::CPU, {DType::F32, DType::F32}); }

inline std::vector<int32_t> random_ids(size_t count, int64_t vocab, uint64_t seed) {
  Rng rng(seed, 3);
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = static_cast<int32_t>(rng.below(static_cast<uint64_t>(vocab)));
  return ids;
}

// Everything a small test may ask of a session of eval_config().
inline Workload small_workload() {
  return {.evaluate = {{256, 256, 16}}, .logits = {{128, 128, 8}}, .positions = 64, .cache_tokens = 64};
}

}  // namespace irq
