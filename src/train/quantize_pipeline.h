// Quantizing a base as a pipeline. All of it runs at once, on different tensors:
//
//   reading threads   file -> ring of chunks, verified (tensor_stream.h)
//   this thread       linears: ring -> device, quantize, -> one of two host images of a matrix
//                     embed, norms, head: checked for NaN where they lie in the ring
//   writing thread    image, or piece of the ring -> file, in the file's order, with
//     beside it       a thread that hashes the same bytes (flat_file.h) and one that counts the matrix's entropies
//
// Memory, whatever the model's size in layers. Host: the ring (268 MB) and two images of the largest quantized matrix with its
// blocks' entropies (NF4 of a 7B: 2 * 30 MB), pinned where there is a GPU. Device: the largest matrix as the file has it, in F32, and
// quantized, with 20 bytes per block of scratch (NF4 of a 7B: 310 MB).
#pragma once
#include <future>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "src/io/tensor_stream.h"
#include "src/quant/quantize.h"
#include "src/train/quantize_base.h"

namespace irq {

// One matrix on its way from the device to the file, its blocks' entropies on their way to the histograms. Used again.
struct MatrixImage {
  std::optional<HostMemory> memory;
  int64_t bytes = 0;  // of it
  QuantizedMatrix q;
  std::span<float> entropy_plain, entropy;
};

class QuantizePipeline {
 public:
  QuantizePipeline(Backend& backend, BaseSource& in, const std::string& out_path, const QuantizeOptions& options);
  ~QuantizePipeline();
  QuantizePipeline(const QuantizePipeline&) = delete;
  QuantizePipeline& operator=(const QuantizePipeline&) = delete;

  void run(const QuantizeProgress& progress);
  QuantizeSummary finish();  // the file gets its name

 private:
  class DeviceBuffers;
  void copy(const TensorSpec& tensor);
  void quantize(const TensorSpec& tensor, int64_t linear);
  int64_t load(const TensorSpec& tensor, Tensor* w, const char* shown);
  QuantizeStats compute(const QuantizedMatrix& q, const Tensor& w, bool adapted);
  void download(MatrixImage& image, QuantizedMatrix& device, const Quantizer& quantizer);
  void take_factors(const std::string& name);
  void write_behind(std::function<void()> job);
  void wait_for_writer();

  Backend& backend_;
  BaseSource& in_;
  std::string out_path_;
  const QuantizeOptions& options_;
  double start_;
  IrqInfo info_;
  IrqWriter writer_;
  std::unique_ptr<DeviceBuffers> device_;
  Quantizer quantizer_;
  LoftqSpec loftq_spec_;
  Loftq loftq_;
  QuantizeSummary summary_;
  MatrixImage images_[2];  // one is written while the other is filled
  std::unique_ptr<TensorStream> stream_;
  std::future<void> writing_;  // the last member: it waits in its destructor for what uses the others
};

}  // namespace irq
