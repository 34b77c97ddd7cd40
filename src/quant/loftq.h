// LoftQ: one weight matrix W -> codes Q and a low-rank pair L R with Q + L R close to W, found in turns.
#pragma once
#include <cmath>
#include <vector>

#include "src/quant/quantize.h"

namespace irq {

// ||W - Q|| and ||W - Q - L R|| (Frobenius) after one turn, both over ||W||; of a zero matrix as they are.
struct LoftqStep {
  double quantized = 0, corrected = 0;
};

struct LoftqSpec {
  int64_t rank = 64;
  int turns = 5;            // T
  uint32_t targets = 0x7f;  // bit i: linear i of a layer (layer_linears()); the others are quantized plainly
};

// T turns of  Q = dequant(quant(W - L R)),  L R = low_rank(W - Q),  from L R = 0 (the paper's algorithm 1; one turn is
// PEFT's default). quant is this engine's own NF-k with the double quantization of its scales, so that L R corrects that
// error too; the authors' code and PEFT leave the scales in F32. The last turn's Q, L and R are kept, as in the paper.
// Scratch: two F32 matrices of the largest size so far, L and R, and Quantizer's. Not for use inside a training step.
class Loftq {
 public:
  // The backend's master type must be F32.
  Loftq(Backend& backend, const LoftqSpec& spec) : backend_(backend), quantizer_(backend), spec_(spec) {}
  ~Loftq();
  Loftq(const Loftq&) = delete;
  Loftq& operator=(const Loftq&) = delete;

  // Fills the tensors of `out` from w (o, h) F32, contiguous on the backend's device; out.format.shift is none.
  // Errors as Quantizer::run and low_rank; Ctrl-C ends it between two turns. Of the statistics, error_plain is that of the
  // first turn's Q, what plain quantization has, and error that of Q + L R.
  QuantizeStats run(const QuantizedMatrix& out, Tensor w);

  // Of the last run, until the next one: L (o, r) and R (r, h) F32 on the device, and every turn's errors.
  Tensor left() const { return left_; }
  Tensor right() const { return right_; }
  const std::vector<LoftqStep>& steps() const { return steps_; }
  const Quantizer& quantizer() const { return quantizer_; }

 private:
  void reserve(const Tensor& w);
  double norm(const Tensor& x);

  Backend& backend_;
  Quantizer quantizer_;
  LoftqSpec spec_;
  void* scratch_ = nullptr;
  int64_t scratch_bytes_ = 0;
  Tensor rest_, error_, left_, right_, norm_;  // W - L R, W - Q, ...
  std::vector<LoftqStep> steps_;
};

}  // namespace irq
