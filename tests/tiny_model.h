// A tiny random LLaMA for whole-model tests: any precision, any adapter, on either device.
#pragma once
#include <cmath>
#include <memory>
#include <vector>

#include "kernels/device_memory.h"
#include "src/core/rng.h"
#include "src/train/trainer.h"
#include "tests/op_case.h"

namespace irq {

inline ModelConfig tiny_config() {
  ModelConfig c;
  c.dim = 24, c.ffn = 40, c.layers = 2, c.heads = 3, c.kv_heads = 1, c.head_dim = 8, c.vocab = 37, c.max_seq = 32;
  return c;
}

inline ModelPlan tiny_plan(bool lora, double dropout = 0) {
  ModelPlan p;
  p.config = tiny_config();
  p.lora = lora, p.full = !lora, p.training = true, p.positions = 32;
  p.lora_config.rank = 4;
  p.lora_config.dropout = dropout;
  return p;
}

inline void put(Backend& b, const Tensor& t, const std::vector<double>& v) {
  std::vector<char> bytes(v.size() * static_cast<size_t>(size_of(t.dtype)));
  for (size_t i = 0; i < v.size(); ++i) {
    char* p = bytes.data() + i * static_cast<size_t>(size_of(t.dtype));
    if (t.dtype == DType::F64) std::memcpy(p, &v[i], 8);
    if (t.dtype == DType::F32) {
      const float f = static_cast<float>(v[i]);
      std::memcpy(p, &f, 4);
    }
    if (t.dtype == DType::BF16) {
      const Bf16 h = to_bf16(static_cast<float>(v[i]));
      std::memcpy(p, &h, 2);
    }
  }
  b.upload(t, bytes.data());
}

inline std::vector<double> get(Backend& b, const Tensor& t) {
  std::vector<double> v(static_cast<size_t>(t.numel()));
  if (t.dtype == DType::F64) {
    b.download(v.data(), t);
    return v;
  }
  std::vector<float> f(v.size());
  b.download(f.data(), t);
  return {f.begin(), f.end()};
}

inline std::vector<double> normals(uint64_t seed, uint64_t id, int64_t n, double scale) {
  Rng rng(seed, id);
  std::vector<double> v(static_cast<size_t>(n));
  for (double& x : v) x = rng.normal() * scale;
  return v;
}

// A trainer on its own memory, with every weight and every trained parameter random (B and the betas too, so that each
// gradient is exercised).
struct TinyModel {
  Backend& backend;
  DeviceMemory memory;
  Arena arena;
  std::unique_ptr<Trainer> trainer;

  // deviation: of weights and trained parameters
  explicit TinyModel(Backend& b, const ModelPlan& plan, int64_t capacity = int64_t{64} << 20, double deviation = 0.3)
      : backend(b),
        memory(b),
        arena(memory.take(capacity), capacity, b.device()),
        trainer(std::make_unique<Trainer>(b, arena, plan, 1024)) {
    Llama& m = trainer->model();
    m.init_rope();
    for (size_t i = 0; i < m.params().params().size(); ++i) {
      const Tensor t = m.params().value(static_cast<int>(i));
      std::vector<double> v = normals(7, i, t.numel(), deviation);
      if (plan.full && t.rows == 1)
        for (double& x : v) x += 1;
      if (plan.scales)  // 2-bit codes times this are as large as the other models' weights
        for (double& x : v) x = 0.2 + 0.3 * x;
      put(b, t, v);
      b.fill(m.params().grad_value(static_cast<int>(i)), std::nan(""));  // read before it is written, it would show
    }
    if (!plan.full) {
      uint64_t id = 1000;
      const auto fill_weight = [&](const Tensor& t, double mean, double scale) {
        std::vector<double> v = normals(7, id++, t.numel(), scale);
        for (double& x : v) x += mean;
        put(b, t, v);
      };
      fill_weight(m.embed().value, 0, 1);
      fill_weight(m.head().value, 0, 0.3);
      fill_weight(m.norm().value, 1, 0.1);
      for (Layer& layer : m.layers()) {
        fill_weight(layer.attn_norm.value, 1, 0.1);
        fill_weight(layer.ffn_norm.value, 1, 0.1);
        for (LinearGroup* g : layer.groups()) {
          if (!plan.scales) fill_weight(g->resident.slice_rows(0, g->out).slice_cols(0, g->in), 0, deviation);
          for (LinearPart& part : g->parts)
            if (plan.scales) fill_codes(part.packed, id++);
        }
      }
    }
    m.refresh();
  }
  // Random codes and zero points of integers.
  void fill_codes(QuantizedMatrix& q, uint64_t id) {
    Rng rng(7, id);
    for (const MatrixPart& part : matrix_parts(q)) {
      if (part.dtype == DType::F32) continue;
      std::vector<uint8_t> bytes(static_cast<size_t>(part.count));
      for (uint8_t& x : bytes)
        x = static_cast<uint8_t>(rng.below(part.tensor == &q.zeros ? uint64_t{1} << q.format.bits : 256));
      backend.upload(*part.tensor, bytes.data());
    }
  }
  Llama& model() { return trainer->model(); }
  std::vector<double> grads() { return get(backend, model().params().grads()); }
  std::vector<double> values() { return get(backend, model().params().values()); }
};

inline std::vector<Example> tiny_examples(int count, uint64_t seed = 3) {
  std::vector<Example> examples;
  for (int e = 0; e < count; ++e) {
    Rng rng(seed, static_cast<uint64_t>(e));
    Example x;
    const uint64_t length = 3 + rng.below(9);
    for (uint64_t i = 0; i < length; ++i) {
      x.ids.push_back(static_cast<int32_t>(rng.below(37)));
      x.trainable.push_back(i >= length / 2);
    }
    examples.push_back(x);
  }
  return examples;
}

inline Batch pack_range(const std::vector<Example>& examples, size_t begin, size_t end) {
  std::vector<const Example*> chosen;
  std::vector<int32_t> numbers;
  for (size_t i = begin; i < end; ++i) chosen.push_back(&examples[i]), numbers.push_back(static_cast<int32_t>(i));
  return pack(chosen, numbers);
}

}  // namespace irq
