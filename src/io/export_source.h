// What is exported: a base's tensors in a plain type, dequantized as the engine dequantizes them and, if asked for, with an
// adapter merged in (PEQA: dequantized with its scales). One matrix is in memory at a time.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "src/io/adapter_base.h"
#include "src/io/adapter_fold.h"
#include "src/io/checkpoint.h"

namespace irq {

// What merging did to one matrix, as relative Frobenius norms.
struct MergeChange {
  std::string matrix;
  double change = 0;    // |s B~ A~| / |W|
  double rounding = 0;  // |round(W + s B~ A~) - (W + s B~ A~)| / |W|
};

class ExportSource {
 public:
  // model: a .bin, a .irq, or a config.json's random weights. adapter may be "". Throws an Error unless the adapter was
  // trained on this base.
  ExportSource(const std::string& model, const std::string& adapter, bool merge);

  const std::string& path() const { return path_; }
  const ModelConfig& config() const { return quantized_ ? quantized_->config() : base_->config(); }
  bool quantized() const { return quantized_ != nullptr; }
  IrqReader* irq() const { return quantized_.get(); }
  DType dtype() const { return quantized_ ? quantized_->info().dtype : base_->dtype(); }  // of embed and head at least
  uint64_t hash() const { return quantized_ ? quantized_->hash() : base_->hash(); }
  bool merges() const { return merge_; }
  AdapterReader* adapter() const { return adapter_.get(); }  // null without one

  // The rows of a tensor of base_layout() as bytes of type `to`, in pieces. Row i of the output is row order(i); null:
  // as they are. W_hat = level * scale + tau in F32; with an adapter W_hat + s B~ A~ in F32; then one rounding. What is of
  // type `to` already passes through bit by bit. An Error if a weight does not fit (f16 ends at 65504).
  using RowOrder = std::function<int64_t(int64_t)>;
  using Sink = std::function<void(const void* data, int64_t bytes)>;
  void stream(const std::string& name, DType to, const RowOrder& order, const Sink& sink);

  // True if every norm weight is a value of this type: then nothing is lost by storing them so.
  bool norms_fit(DType to);
  const std::vector<MergeChange>& changes() const { return changes_; }  // of the matrices streamed so far

 private:
  struct Opened;
  Opened open(const std::string& name);
  void close(const std::string& name);

  std::string path_;
  std::unique_ptr<BaseSource> base_;  // one of these two
  std::unique_ptr<IrqReader> quantized_;
  std::unique_ptr<AdapterReader> adapter_;
  bool merge_ = false;
  std::vector<MergeChange> changes_;
};

}  // namespace irq
