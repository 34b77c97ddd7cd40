// Tape: reverse-mode differentiation as one stack. An op runs its forward line and records its backward closure right
// behind it; what backward needs is pushed on the arena's stack in forward and popped in reverse. No reference counts,
// no graph, no allocation inside a step.
#pragma once
#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "src/autograd/params.h"
#include "src/core/arena.h"

namespace irq {

// A value on the tape.
struct Var {
  int id = -1;
  explicit operator bool() const { return id >= 0; }
};

class Tape {
 public:
  // recording = false: an inference pass; nothing is kept, done() frees a value.
  Tape(Backend& backend, Arena& arena, ParamStore* params, bool recording);
  ~Tape();
  Tape(const Tape&) = delete;

  Backend& backend() const { return backend_; }
  Arena& arena() const { return arena_; }
  bool recording() const { return recording_; }
  bool replaying() const { return replaying_; }  // inside recompute()'s backward: the block's result is known already
  bool training() const { return training_; }    // also while recompute() looks away: dropout is on
  DType storage() const { return backend_.precision().storage; }
  DType master() const { return backend_.precision().master; }

  // --- values ---
  Var leaf(const Tensor& value);  // somebody else's memory, no gradient
  // A new value. `saved` stays on the stack until its producer's backward; `transient` lives in scratch until done()
  // and is rebuilt in backward. Without recording both are scratch. The gradient gets the same spare columns.
  Var saved(const char* name, int64_t rows, int64_t cols, int64_t spare_cols = 0);
  Var transient(const char* name, int64_t rows, int64_t cols, int64_t spare_cols = 0);
  Tensor value(Var v);  // rebuilds a transient that was given up
  // May v's value be given up and rebuilt, without what others left in its spare columns?
  bool is_transient(Var v) const { return at(v).is_transient; }
  void done(Var v);  // the forward pass has no further use for v
  // Memory that belongs to a node beside its output: kept for backward when recording, else scratch until record().
  Tensor keep(const char* name, DType dtype, int64_t rows, int64_t cols);

  // --- recording ---
  using Backward = std::function<void()>;
  using Rebuild = std::function<void(Tensor)>;
  // Records the op that made `outs`; call it once the forward has run. needs_grad: does anything below train?
  void record(const char* op, std::initializer_list<Var> outs, bool needs_grad, Backward backward,
              Rebuild rebuild = {});
  bool needs_grad(Var v) const { return at(v).needs_grad; }

  // --- backward, for closures ---
  Tensor out_grad(Var v) const;     // the finished gradient of an op's own output
  GradSlot grad(Var v);             // where to add to the gradient of an input
  GradSlot grad_over_value(Var v);  // the same, but overwriting v's value, which nobody reads any more
  // to's gradient += from's; free when `to` has none yet: true then, and the memory, spare columns too, lives on as to's.
  bool hand_over(Var from, Var to);
  // For an op whose backward computes its own output again on the way (swiglu): record() it, then say so. use_later() then
  // keeps `use` until that backward delivers; where nobody will, or the value is there, it runs at once.
  void will_deliver(Var v) { at(v).delivers = recording_; }
  void use_later(Var v, std::function<void(const Tensor&)> use);
  bool awaited(Var v) const { return !at(v).uses.empty(); }
  bool comes_later(Var v) const { return at(v).delivers && at(v).place == Place::absent; }  // use_later() will wait
  void deliver(Var v, const Tensor& value);
  ParamStore& params() const { return *params_; }
  GradSlot param_grad(int index) { return params_->grad(index); }

  void backward();
  // For recompute(): runs `forward` recording, then only its part of the backward, starting from out's gradient.
  void replay(Var out, const std::function<Var()>& forward);
  // Runs f without recording (its values are scratch) and returns its result, still alive.
  Var without_recording(const std::function<Var()>& f);

  // --- the teaching view: one row per node, times in ms (only with timing on, which synchronizes) ---
  void set_timing(bool on);
  std::string print() const;

 private:
  enum class Place { external, stack, scratch, absent };
  struct State {
    Tensor value, grad;
    Place place = Place::absent;
    const char* name = "";
    int64_t rows = 0, cols = 0, spare = 0;
    bool needs_grad = false, is_transient = false, grad_is_value = false;
    Rebuild rebuild;
    bool delivers = false;
    std::vector<std::function<void(const Tensor&)>> uses;  // that wait for the value
  };
  struct Node {
    const char* op;
    std::vector<int> outs;
    int64_t mark;  // arena stack before the node
    Backward backward;
    size_t row;  // in rows_
  };
  struct Row {
    const char* op;
    std::string shape;
    int64_t saved_bytes;
    double forward_ms, backward_ms;
  };

  State& at(Var v) { return vars_[static_cast<size_t>(v.id)]; }
  const State& at(Var v) const { return vars_[static_cast<size_t>(v.id)]; }
  Var make(const char* name, int64_t rows, int64_t cols, int64_t spare, bool on_stack);
  void free_value(State& s);
  void free_grad(State& s);
  void run_back_to(size_t first_node);
  double lap();

  Backend& backend_;
  Arena& arena_;
  ParamStore* params_;
  bool recording_;
  const bool training_;
  bool replaying_ = false;
  std::vector<State> vars_;
  std::vector<Node> nodes_;
  int64_t last_mark_;
  std::vector<Tensor> loose_;  // keep() without recording
  bool timing_ = false;
  double last_time_ = 0, replayed_ms_ = 0;
  std::vector<Row> rows_;
};

// Runs `block` keeping only its input and output (out_rows, as wide as x); backward runs it again. The one way to trade
// time for memory.
Var recompute(Tape& t, const char* name, Var x, int64_t out_rows, const std::function<Var(Var)>& block);

}  // namespace irq
