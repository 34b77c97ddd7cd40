#include "src/autograd/tape.h"

#include <chrono>
#include <utility>

namespace irq {

Tape::Tape(Backend& backend, Arena& arena, ParamStore* params, bool recording)
    : backend_(backend),
      arena_(arena),
      params_(params),
      recording_(recording),
      training_(recording),
      last_mark_(arena.mark()) {}

Tape::~Tape() {
  for (State& s : vars_) free_grad(s), free_value(s);
  for (const Tensor& t : loose_) arena_.give(t);
}

Var Tape::leaf(const Tensor& value) {
  State s;
  s.value = value;
  s.place = Place::external;
  s.name = value.name;
  s.rows = value.rows, s.cols = value.cols;
  vars_.push_back(std::move(s));
  return {static_cast<int>(vars_.size()) - 1};
}

Var Tape::make(const char* name, int64_t rows, int64_t cols, int64_t spare, bool on_stack) {
  State s;
  s.name = name;
  s.rows = rows, s.cols = cols, s.spare = spare;
  s.value =
      on_stack ? arena_.push(name, storage(), rows, cols, spare) : arena_.take(name, storage(), rows, cols, spare);
  s.place = on_stack ? Place::stack : Place::scratch;
  vars_.push_back(std::move(s));
  return {static_cast<int>(vars_.size()) - 1};
}

Var Tape::saved(const char* name, int64_t rows, int64_t cols, int64_t spare_cols) {
  return make(name, rows, cols, spare_cols, recording_);
}

Var Tape::transient(const char* name, int64_t rows, int64_t cols, int64_t spare_cols) {
  const Var v = make(name, rows, cols, spare_cols, false);
  at(v).is_transient = true;
  return v;
}

Tensor Tape::keep(const char* name, DType dtype, int64_t rows, int64_t cols) {
  if (recording_) return arena_.push(name, dtype, rows, cols);
  loose_.push_back(arena_.take(name, dtype, rows, cols));
  return loose_.back();
}

Tensor Tape::value(Var v) {
  if (at(v).place == Place::absent) {
    IRQ_CHECK(at(v).rebuild != nullptr, "%s is gone and cannot be rebuilt", at(v).name);
    const Tensor t = arena_.take(at(v).name, storage(), at(v).rows, at(v).cols, at(v).spare);
    at(v).value = t;
    at(v).place = Place::scratch;
    const Rebuild rebuild = at(v).rebuild;  // may grow vars_
    rebuild(t);
  }
  return at(v).value;
}

void Tape::free_value(State& s) {
  if (s.place != Place::scratch) return;
  arena_.give(s.value);
  s.value = {};
  s.place = Place::absent;
}

void Tape::free_grad(State& s) {
  if (s.grad && !s.grad_is_value) arena_.give(s.grad);
  s.grad = {};
  s.grad_is_value = false;
}

void Tape::done(Var v) {
  if (!recording_ || at(v).is_transient) free_value(at(v));
}

void Tape::record(const char* op, std::initializer_list<Var> outs, bool needs_grad, Backward backward,
                  Rebuild rebuild) {
  if (!recording_) {
    for (const Tensor& t : loose_) arena_.give(t);
    loose_.clear();
    return;
  }
  Node node{op, {}, last_mark_, needs_grad ? std::move(backward) : Backward{}, rows_.size()};
  std::string shape;
  for (const Var v : outs) {
    node.outs.push_back(v.id);
    at(v).needs_grad = needs_grad;
    at(v).rebuild = rebuild;
    shape += strf("%s(%ld, %ld)", shape.empty() ? "" : " ", at(v).rows, at(v).cols);
  }
  rows_.push_back({op, shape, arena_.mark() - last_mark_, lap(), 0});
  nodes_.push_back(std::move(node));
  last_mark_ = arena_.mark();
}

Tensor Tape::out_grad(Var v) const {
  IRQ_CHECK(static_cast<bool>(at(v).grad), "no gradient reached %s", at(v).name);
  return at(v).grad;
}

GradSlot Tape::grad(Var v) {
  State& s = at(v);
  if (s.grad) return {s.grad, 1};
  s.grad = arena_.take("gradients of activations", storage(), s.rows, s.cols, s.spare);
  return {s.grad, 0};
}

GradSlot Tape::grad_over_value(Var v) {
  const Tensor value_now = value(v);
  State& s = at(v);
  IRQ_CHECK(!s.grad && s.place != Place::external, "%s cannot be overwritten by its gradient", s.name);
  s.grad = value_now;
  s.grad_is_value = true;
  return {s.grad, 0};
}

void Tape::use_later(Var v, std::function<void(const Tensor&)> use) {
  if (comes_later(v)) at(v).uses.push_back(std::move(use));
  else use(value(v));
}

void Tape::deliver(Var v, const Tensor& value) {
  for (const auto& use : std::exchange(at(v).uses, {})) use(value);
}

bool Tape::hand_over(Var from, Var to) {
  State &f = at(from), &t = at(to);
  IRQ_CHECK(f.rows == t.rows && f.cols == t.cols, "%s and %s differ in shape", f.name, t.name);
  if (!t.grad && !f.grad_is_value && f.spare == t.spare) {
    t.grad = f.grad;
    f.grad = {};
    return true;
  }
  const GradSlot slot = grad(to);
  backend_.axpby(slot.tensor, f.grad, 1, slot.beta);
  return false;
}

void Tape::run_back_to(size_t first_node) {
  while (nodes_.size() > first_node) {
    Node node = std::move(nodes_.back());
    nodes_.pop_back();
    bool reached = node.outs.empty();
    for (const int id : node.outs) {
      State& s = vars_[static_cast<size_t>(id)];
      if (s.is_transient && !s.grad_is_value) free_value(s);  // a producer's backward never reads its transient output
      reached = reached || s.grad;
    }
    if (node.backward && reached) node.backward();
    for (const int id : node.outs)
      IRQ_CHECK(vars_[static_cast<size_t>(id)].uses.empty(), "%s was promised and not delivered",
                vars_[static_cast<size_t>(id)].name);
    for (const int id : node.outs) {
      State& s = vars_[static_cast<size_t>(id)];
      free_grad(s);
      free_value(s);
    }
    arena_.pop_to(node.mark);
    rows_[node.row].backward_ms += lap() + replayed_ms_;
    replayed_ms_ = 0;
  }
}

void Tape::backward() {
  lap();
  run_back_to(0);
}

Var Tape::without_recording(const std::function<Var()>& f) {
  const bool was = recording_;
  recording_ = false;
  const Var v = f();
  recording_ = was;
  return v;
}

void Tape::replay(Var out, const std::function<Var()>& forward) {
  const size_t first_node = nodes_.size(), first_var = vars_.size();
  const int64_t mark = arena_.mark();
  last_mark_ = mark;
  const size_t first_row = rows_.size();
  replaying_ = true;
  const Var again = forward();
  replaying_ = false;
  std::swap(at(again).grad, at(out).grad);
  std::swap(at(again).grad_is_value, at(out).grad_is_value);
  run_back_to(first_node);
  for (size_t i = first_var; i < vars_.size(); ++i) free_grad(vars_[i]), free_value(vars_[i]);
  vars_.resize(first_var);
  for (size_t i = first_row; i < rows_.size(); ++i) replayed_ms_ += rows_[i].forward_ms + rows_[i].backward_ms;
  rows_.resize(first_row);
  arena_.pop_to(mark);
}

Var recompute(Tape& t, const char* name, Var x, int64_t out_rows, const std::function<Var(Var)>& block) {
  if (!t.recording()) return block(x);
  const Tensor in = t.value(x);
  const Var out = t.saved(name, out_rows, in.cols, in.stride - in.cols);
  const Var inner = t.without_recording([&] { return block(x); });
  t.backend().copy(t.value(out), t.value(inner));
  t.without_recording([&] { return t.done(inner), inner; });
  t.record(name, {out}, true, [&t, out, x, block] { t.replay(out, [&] { return block(x); }); });
  return out;
}

void Tape::set_timing(bool on) {
  timing_ = on;
  lap();
}

double Tape::lap() {
  if (!timing_) return 0;
  backend_.synchronize();
  const double now =
      std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
  const double passed = now - last_time_;
  last_time_ = now;
  return passed;
}

std::string Tape::print() const {
  std::string text =
      strf("%-5s %-16s %-30s %14s %12s %12s\n", "node", "op", "output", "saved bytes", "forward ms", "backward ms");
  int64_t bytes = 0;
  double forward = 0, backward = 0;
  for (size_t i = 0; i < rows_.size(); ++i) {
    const Row& r = rows_[i];
    text += strf("%-5zu %-16s %-30s %14s %12.3f %12.3f\n", i, r.op, r.shape.c_str(), with_commas(r.saved_bytes).c_str(),
                 r.forward_ms, r.backward_ms);
    bytes += r.saved_bytes, forward += r.forward_ms, backward += r.backward_ms;
  }
  return text +
         strf("%-5s %-16s %-30s %14s %12.3f %12.3f\n", "", "total", "", with_commas(bytes).c_str(), forward, backward);
}

}  // namespace irq
