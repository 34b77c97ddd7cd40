#include "src/autograd/params.h"

namespace irq {

int ParamStore::add(const std::string& name, int64_t rows, int64_t cols) {
  IRQ_CHECK(!values_, "%s added after allocate()", name.c_str());
  // Matrices start at a multiple of 64 elements so that kernels may use their widest accesses; the gaps stay zero.
  if (rows * cols > 1) size_ = (size_ + 63) / 64 * 64;
  params_.push_back({name, rows, cols, size_});
  size_ += rows * cols;
  return static_cast<int>(params_.size()) - 1;
}

void ParamStore::allocate(Backend& backend, Arena& arena, bool training) {
  const DType master = backend.precision().master;
  size_ = (size_ + 63) / 64 * 64;
  touched_.assign(params_.size(), 0);
  values_ = arena.push("trained parameters (master)", master, 1, size_);
  backend.fill(values_, 0);
  if (!training) return;
  grads_ = arena.push("gradients of trained parameters", master, 1, size_);
  m_ = arena.push("Adam m", master, 1, size_);
  v_ = arena.push("Adam v", master, 1, size_);
  for (const Tensor& t : {grads_, m_, v_}) backend.fill(t, 0);
}

int ParamStore::find(const std::string& name) const {
  for (size_t i = 0; i < params_.size(); ++i)
    if (params_[i].name == name) return static_cast<int>(i);
  return -1;
}

Tensor ParamStore::slice(const Tensor& flat, int index) const {
  const Param& p = params_[static_cast<size_t>(index)];
  return flat.slice_cols(p.offset, p.rows * p.cols).reshape(p.rows, p.cols);
}

void ParamStore::begin_step() { touched_.assign(params_.size(), 0); }

GradSlot ParamStore::grad(int index) {
  uint8_t& touched = touched_[static_cast<size_t>(index)];
  const double beta = touched ? 1 : 0;
  touched = 1;
  return {slice(grads_, index), beta};
}

void ParamStore::zero_untouched(Backend& backend) {
  for (size_t i = 0; i < params_.size(); ++i)
    if (!touched_[i]) backend.fill(slice(grads_, static_cast<int>(i)), 0);
}

}  // namespace irq
