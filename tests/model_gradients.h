// What is checked of a whole tiny model: its gradients, by finite differences in F64, and the memory that is planned for it.
#pragma once
#include <gtest/gtest.h>

#include "src/train/memory_plan.h"
#include "tests/tiny_model.h"

namespace irq {

inline OptimizerConfig frozen() {
  OptimizerConfig c;
  c.lr = 0;
  return c;
}

// d loss / d parameter along a random direction, one parameter at a time, against the tape.
inline void check_gradients(const ModelPlan& plan) {
  Backend& b = cpu_backend(DType::F64);
  TinyModel tiny(b, plan);
  const std::vector<Example> examples = tiny_examples(4);
  const std::vector<Batch> window = {pack_range(examples, 0, 3), pack_range(examples, 3, 4)};
  tiny.trainer->step(window, 1, frozen());
  const std::vector<double> grads = tiny.grads();
  ParamStore& store = tiny.model().params();
  const auto loss_at = [&](const Tensor& t, const std::vector<double>& v) {
    put(b, t, v);
    tiny.model().refresh();
    return tiny.trainer->step(window, 1, frozen()).loss;
  };
  for (size_t i = 0; i < store.params().size(); ++i) {
    const Param& p = store.params()[i];
    const Tensor t = store.value(static_cast<int>(i));
    const std::vector<double> value = get(b, t), direction = normals(99, i, t.numel(), 1);
    double expected = 0;
    for (size_t j = 0; j < value.size(); ++j) expected += grads[static_cast<size_t>(p.offset) + j] * direction[j];
    const double h = 2e-6;
    const auto moved = [&](double by) {
      std::vector<double> v = value;
      for (size_t j = 0; j < v.size(); ++j) v[j] += by * direction[j];
      return loss_at(t, v);
    };
    // Five-point rule: its error is h^4 / 30 times the fifth derivative, the losses' rounding gives 1e-15 / h. The sharpest
    // case (attention's logits, plain LoRA with dropout) errs by 2e-5 with h = 1e-5, 2e-7 with 3e-6, 2e-9 with 1e-6.
    const double slope = (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h);
    loss_at(t, value);
    EXPECT_NEAR(expected, slope, 1e-7 * (1 + std::abs(slope))) << p.name;
  }
}

// A step and an evaluation of the plan on the CPU, in exactly the memory that was planned for them, reach it to the byte.
inline void expect_plan_is_the_peak(const ModelPlan& p, const Batch& batch) {
  Backend& b = cpu_backend(DType::F32);
  const MemoryPlan plan = plan_memory(Device::CPU, b.precision(), p, {shape_of(batch)}, {shape_of(batch)});
  DeviceMemory memory(b);
  Arena arena(memory.take(plan.peak_bytes), plan.peak_bytes, Device::CPU);
  Trainer trainer(b, arena, p, plan.max_labels);
  trainer.model().init_rope();
  trainer.step({batch}, 1, frozen());
  trainer.evaluate(batch);
  EXPECT_EQ(arena.peak(), plan.peak_bytes) << describe(plan);
}

}  // namespace irq
