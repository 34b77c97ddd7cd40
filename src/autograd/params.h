// ParamStore: everything that is trained, as one flat master buffer (and one each for gradients, Adam's m and v), so
// that clipping, AdamW, saving and all-reduce are single passes. The order of add() is the order in memory.
#pragma once
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "src/core/arena.h"

namespace irq {

// Where a gradient goes: out = beta * out + contribution (BLAS's rule: 0 on the first touch, 1 after).
struct GradSlot {
  Tensor tensor;
  double beta;
};

struct Param {
  std::string name;
  int64_t rows, cols, offset;
};

class ParamStore {
 public:
  int add(const std::string& name, int64_t rows, int64_t cols);  // returns the parameter's index; before allocate()
  // Values, with training also gradients, m and v; all zero (the gaps between parameters stay so).
  void allocate(Backend& backend, Arena& arena, bool training);

  int64_t size() const { return size_; }
  const std::vector<Param>& params() const { return params_; }
  int find(const std::string& name) const;  // -1 if there is none

  Tensor value(int index) const { return slice(values_, index); }
  Tensor values() const { return values_; }  // (1, size)
  Tensor grads() const { return grads_; }
  Tensor adam_m() const { return m_; }
  Tensor adam_v() const { return v_; }

  // Which gradients were touched in this step: what a pass over a micro-batch leaves, beside the gradients themselves.
  const std::vector<uint8_t>& touched() const { return touched_; }
  void set_touched(const std::vector<uint8_t>& touched) { touched_ = touched; }
  void begin_step();         // forgets which gradients were touched
  GradSlot grad(int index);  // marks it as touched
  // Marks it as touched without a slot: somebody will overwrite it before the norm.
  void claim(int index) { touched_[static_cast<size_t>(index)] = 1; }
  Tensor grad_value(int index) const { return slice(grads_, index); }
  void zero_untouched(Backend& backend);  // before the norm: a parameter nobody touched has gradient 0

 private:
  Tensor slice(const Tensor& flat, int index) const;

  std::vector<Param> params_;
  std::vector<uint8_t> touched_;
  int64_t size_ = 0;
  Tensor values_, grads_, m_, v_;
};

}  // namespace irq
