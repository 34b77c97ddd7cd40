// One weight matrix -> NF-k codes, scales and shifts: ICQ's search, the codes, the double quantization, in this order. Or
// -> integer codes, scales and zero points by rounding to nearest (gptq.h: by GPTQ).
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace irq {

// Exact size of what is stored for a matrix: codes, scales, shifts (not the map, which all matrices share).
int64_t quantized_bytes(int64_t rows, int64_t cols, const QuantFormat& format);

// A matrix whose tensors lie in `memory`, each on a 256-byte boundary; placed_bytes says how much that takes.
int64_t placed_bytes(int64_t rows, int64_t cols, const QuantFormat& format);
QuantizedMatrix place_quantized(void* memory, int64_t rows, int64_t cols, const QuantFormat& format, Tensor map,
                                Device device);

// w = w_hat of q, whatever its format; w (rows, cols) S or F32.
void dequantize(Backend& backend, const Tensor& w, const QuantizedMatrix& q);

QuantFormat integer_format(const IntSpec& spec);

struct QuantizeStats {
  double entropy_plain = 0;  // bits, mean over blocks: of the codes of w
  double entropy = 0;        // of the codes that were stored (of w - tau with ICQ, else the same)
  // Mean squared error in F64, 0 unless asked for: of what would be stored without a shift | of what is stored.
  double error_plain = 0, error = 0;
  int64_t blocks = 0;
};

// Throws the Error about element `index` of the tensor `name`, whose rows have `cols` columns: x is NaN or infinite.
[[noreturn]] void reject_weight(const std::string& name, int64_t cols, int64_t index, float x);

// Of the weights of a matrix, in groups of `group` in its rows: throws such an Error if one is not finite, or one that says
// that a group's weights lie too far apart. Called where scales (rows, groups) F32, on the host, are not all finite.
[[noreturn]] void reject_groups(Backend& backend, const Tensor& w, const std::vector<float>& scales, int64_t group);

// Holds the scratch (20 bytes per block; with errors the matrix in F32 and once more quantized) of the largest matrix so far.
// Not for use inside a training step: it allocates
// and waits for results.
class Quantizer {
 public:
  explicit Quantizer(Backend& backend) : backend_(backend) {}
  ~Quantizer();
  Quantizer(const Quantizer&) = delete;
  Quantizer& operator=(const Quantizer&) = delete;

  // Fills the tensors of `out`, which the caller allocated, from w (rows, cols) F32 contiguous on the backend's device.
  // With icq, out.format.shift must be tau; without, none. Throws an Error that names the matrix (w.name) and the
  // element if a weight is NaN or infinite, or if the weights of a block lie further apart than fp32 reaches.
  QuantizeStats run(const QuantizedMatrix& out, Tensor w, const IcqSpec* icq, bool errors = false);

  // The same for integer codes: out.format must be integer_format(spec).
  QuantizeStats run_integer(const QuantizedMatrix& out, Tensor w, const IntSpec& spec, bool errors = false);

  // Of the last run, until the next one: (1, blocks) F32 on the device.
  Tensor tau() const { return tau_; }        // before its double quantization; null without ICQ
  Tensor absmax() const { return absmax_; }  // before its double quantization
  Tensor entropy_plain() const { return entropy_plain_; }
  Tensor entropy() const { return entropy_; }

 private:
  void reserve(int64_t blocks);
  void search(const QuantizedMatrix& out, Tensor flat, const IcqSpec& icq);
  void quantize_scales(const QuantizedMatrix& out, Tensor absmax);
  // `without_search` fills a matrix of the same shape with the plain codes; null: `out` holds those itself.
  void measure_errors(QuantizeStats& stats, const QuantizedMatrix& out, Tensor w,
                      const std::function<void(const QuantizedMatrix&)>& without_search);
  double mean(Tensor x);
  void reject_unusable_weights(Tensor w);

  Backend& backend_;
  void* scratch_ = nullptr;
  int64_t scratch_blocks_ = 0;
  void* error_scratch_ = nullptr;
  int64_t error_scratch_bytes_ = 0;
  Tensor tau_, absmax_, entropy_plain_, entropy_, spare_;  // spare_: tau_hat, then a second absmax
};

}  // namespace irq
