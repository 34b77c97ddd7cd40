// Which tensors a file holds, in which order, shape and type: the file formats, written down once.
#pragma once
#include <string>
#include <unordered_map>
#include <vector>

#include "kernels/quantized_matrix.h"
#include "src/core/dtype.h"
#include "src/model/config.h"

namespace irq {

constexpr int64_t kTensorAlign = 256;  // every tensor starts at a multiple of this, in the file and in memory

struct TensorSpec {
  std::string name;
  DType dtype;
  int64_t rows, cols;
  int64_t offset = 0;  // bytes from the start of the payload
  int64_t bytes() const { return rows * cols * size_of(dtype); }
};

// Tensors in file order; each begins where the former ends, rounded up to kTensorAlign.
class Layout {
 public:
  // An Error (naming `subject`) if the name is taken, a size is negative, or the sum leaves 62 bits.
  void add(std::string name, DType dtype, int64_t rows, int64_t cols, const std::string& subject);
  const std::vector<TensorSpec>& tensors() const { return tensors_; }
  const TensorSpec* find(const std::string& name) const;    // null if there is none
  int64_t payload_bytes() const { return payload_bytes_; }  // ends with the last tensor, no padding behind it

 private:
  std::vector<TensorSpec> tensors_;
  std::unordered_map<std::string, size_t> index_;
  int64_t payload_bytes_ = 0;
};

// Base: embed (V, C); per layer attn_norm (1, C), wq, wk, wv, wo, ffn_norm (1, C), w_gate, w_up, w_down, all (out, in);
// norm (1, C); head (V, C) unless tied. `dtype` is f32, f16 or bf16; the norms are always f32.
Layout base_layout(const ModelConfig& c, DType dtype, const std::string& subject);

// Quantized base: the same order, each linear W replaced by the parts of its QuantizedMatrix: W.codes, then W.scales or
// W.scale_codes, W.scale_groups, W.scale_offset, then W.tau_codes, W.tau_groups or W.zeros. At the end `entropy` (7 * layers, 2) f32:
// every linear's mean code entropy in bits without and with calibration; and `map` (1, 256) f32 where 8-bit codes are used.
Layout irq_layout(const ModelConfig& c, DType dtype, const QuantFormat& format, const std::string& subject);

// An Error unless this is a format that the engine writes.
void validate(const QuantFormat& format, const std::string& subject);

// The index of "layers.N.wq" .. "layers.N.w_down" in `entropy`; -1 for any other name. `shape` receives (out, in).
int64_t linear_index(const ModelConfig& c, const std::string& name, LinearShape* shape = nullptr);

}  // namespace irq
