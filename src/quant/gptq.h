// GPTQ (fidelity 5.3): integer codes of a matrix that make the least error on the inputs it was measured on. The Hessian of
// the squared error of one output is the same for all of them: H = 2/n X^T X over the rows of X, the matrix's inputs.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels/device_memory.h"
#include "src/quant/quantize.h"

namespace irq {

struct GptqOptions {
  // Columns in the order of their diagonal of H, largest first. Only with one group per row: with several, a group's columns
  // would be met far apart, and its range would have to be fixed before any error was carried into it.
  bool act_order = false;
  // The range of a group shorter than 128 columns is read with all errors carried over so far. The released code reads it as
  // the matrix stood at the start of its 128 columns.
  bool fresh = false;
  double damping = 0.01;  // of the mean of H's diagonal, added to it; tenfold where H is not positive definite with it
};

// Factorizes one H and quantizes all matrices that read the same inputs. Holds device memory: H and U (cols, cols) F32, and
// per matrix a byte a weight, 128 columns of errors and a copy of it where columns are reordered.
class GptqSolver {
 public:
  explicit GptqSolver(Backend& backend) : backend_(backend), memory_(backend) {}
  // Room for all matrices to come, at most (max_rows, max_cols), `largest` weights.
  void reserve(int64_t max_rows, int64_t max_cols, int64_t largest);

  void begin(int64_t cols);                     // H = 0
  void measure(const Tensor& x, double scale);  // H += scale x^T x;  x (rows, cols) S
  // To be called once before run(). Throws an Error with `name` if no damping up to the mean itself helps.
  void factorize(const char* name, const GptqOptions& options);
  // Fills `out`, as Quantizer::run_integer does, and changes w (rows, cols) F32. entropy_plain: of w's codes rounded to
  // nearest without a search.
  QuantizeStats run(const QuantizedMatrix& out, const Tensor& w, const IntSpec& spec, const GptqOptions& options);

  Tensor hessian() const { return h_; }
  double damping() const { return damping_; }  // what was added to the diagonal
  // Of the last run: (1, blocks) F32 on the device.
  Tensor entropy_plain() const { return entropy_plain_; }
  Tensor entropy() const { return entropy_; }

 private:
  std::vector<float> diagonal() const;
  void measure_groups(const QuantizedMatrix& out, const Tensor& w, const IntSpec& spec, int64_t first, int64_t count);
  void solve_blocks(const QuantizedMatrix& out, const Tensor& w, const IntSpec& spec, const GptqOptions& options);
  void reject_unusable(const QuantizedMatrix& out, const Tensor& w, const IntSpec& spec);

  Backend& backend_;
  DeviceMemory memory_;
  int64_t max_rows_ = 0, max_cols_ = 0, largest_ = 0;
  Tensor h_all_, u_all_, bytes_all_, err_all_, copy_all_, order_all_, stats_all_, info_;
  Tensor h_, u_, order_, entropy_plain_, entropy_;
  std::vector<int32_t> dead_;  // columns that no input ever reaches
  double damping_ = 0;
};

}  // namespace irq
