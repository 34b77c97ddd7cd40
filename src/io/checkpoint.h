// The four files: base model (.bin), quantized base (.irq), adapter (.lora), training state (.state).
// Readers give views into the mapped file and check it as they go; writers stream, and the file has its name only when
// it is whole. Formats: flat_file.h (container), layout.h (tensors).
#pragma once
#include <array>
#include <functional>
#include <string>
#include <vector>

#include "kernels/group_pool.h"
#include "kernels/quantized_matrix.h"
#include "src/io/flat_file.h"
#include "src/io/layout.h"
#include "src/io/tensor_stream.h"
#include "src/model/config.h"

namespace irq {

using ByteProgress = std::function<void(int64_t done_bytes, int64_t all_bytes)>;

// ---- base model ------------------------------------------------------------------------------------------------------
// Where the weights of an unquantized model come from: a .bin (BaseReader), or random numbers (synthetic.h).
class BaseSource {
 public:
  virtual ~BaseSource() = default;
  const ModelConfig& config() const { return config_; }
  DType dtype() const { return dtype_; }  // of the matrices; norms are f32
  virtual uint64_t hash() const = 0;      // identifies the content
  virtual const std::string& path() const = 0;
  virtual const Layout& layout() const = 0;
  // View (rows, cols) in the source's type, verified; "head" of a tied model is its "embed".
  virtual Tensor tensor(const std::string& name) = 0;
  // All tensors once, in pieces; those of a file from memory that `device` copies from at full speed.
  virtual std::unique_ptr<TensorStream> stream(Device device);
  virtual void dont_need(const std::string& name) = 0;  // its memory may go; the view must not be read any more

 protected:
  ModelConfig config_;
  DType dtype_ = DType::F32;
};

class BaseReader final : public BaseSource {
 public:
  explicit BaseReader(const std::string& path);
  uint64_t hash() const override { return file_.hash(); }
  const std::string& path() const override { return file_.path(); }
  const Layout& layout() const override { return file_.layout(); }
  Tensor tensor(const std::string& name) override;
  std::unique_ptr<TensorStream> stream(Device device) override;
  void dont_need(const std::string& name) override;
  void verify_all(const ByteProgress& progress = {}) { file_.verify_all(progress); }
  FlatReader& file() { return file_; }

 private:
  FlatReader file_;
};

class BaseWriter {
 public:
  BaseWriter(const std::string& path, const ModelConfig& config, DType dtype);
  // In layout order, already in the file's type (norms f32); a tensor may come in pieces under the same name.
  void write(const std::string& name, const void* data, int64_t bytes) { file_.write(name, data, bytes); }
  const TensorSpec* next() const { return file_.next(); }  // what is due; null at the end
  const Layout& layout() const { return file_.layout(); }
  uint64_t finish() { return file_.finish(); }

 private:
  FlatWriter file_;
};

// ---- quantized base --------------------------------------------------------------------------------------------------
// How integer codes were made; without meaning for NF. The width and the number of steps of a search are icq.lambda, icq.n.
struct IntInfo {
  IntSearch search = IntSearch::none;
  bool symmetric = false;
  bool gptq = false;         // else rounded to nearest
  bool act_order = false;    // GPTQ: columns by descending diagonal of the Hessian
  bool fresh = false;        // GPTQ: groups measured with all updates, not as they stood at their block's start
  int64_t tokens = 0;        // GPTQ: calibration tokens
  uint64_t calibration = 0;  // ... and their hash
  bool operator==(const IntInfo&) const = default;
};

struct IrqInfo {
  ModelConfig config;
  DType dtype = DType::F32;  // of embed and head: the source's
  QuantFormat format;
  IcqSpec icq;  // how tau was searched; without meaning where format.shift is none
  IntInfo integers;
  uint64_t source_hash = 0;  // BaseReader::hash() of what was quantized; of a converted NF4 folder, its tensors' hash
};

class IrqReader {
 public:
  explicit IrqReader(const std::string& path);
  const IrqInfo& info() const { return info_; }
  const ModelConfig& config() const { return info_.config; }
  const QuantFormat& format() const { return info_.format; }
  uint64_t source_hash() const { return info_.source_hash; }
  uint64_t hash() const { return file_.hash(); }
  const std::string& path() const { return file_.path(); }
  const Layout& layout() const { return file_.layout(); }
  Tensor tensor(const std::string& name);  // embed, norms, head (or embed where tied); any single part
  bool is_matrix(const std::string& name) const { return linear_index(info_.config, name) >= 0; }
  QuantizedMatrix matrix(const std::string& name);  // "layers.3.wq": host views
  // Mean code entropy in bits per weight: {without calibration, as stored}. Of one matrix; of all, weighted by size.
  std::array<double, 2> entropy(const std::string& name);
  std::array<double, 2> mean_entropy();
  void dont_need(const std::string& name);  // a plain tensor or a whole matrix
  void verify_all(const ByteProgress& progress = {}) { file_.verify_all(progress); }
  FlatReader& file() { return file_; }

 private:
  FlatReader file_;
  IrqInfo info_;
};

class IrqWriter {
 public:
  IrqWriter(const std::string& path, const IrqInfo& info);
  // Both in layout order: embed, layers.0.attn_norm, layers.0.wq, ..., norm, head. `q`'s tensors are host memory.
  void write(const std::string& name, const void* data, int64_t bytes) { file_.write(name, data, bytes); }
  void write_matrix(const std::string& name, const QuantizedMatrix& q, double entropy_plain, double entropy_stored);
  const TensorSpec* next() const { return file_.next(); }
  const Layout& layout() const { return file_.layout(); }
  void set_source_hash(uint64_t hash);  // instead of info.source_hash, before finish()
  uint64_t finish();                    // appends `entropy` and `map` by itself

 private:
  IrqInfo info_;
  FlatWriter file_;
  std::vector<float> entropy_;  // (7 * layers, 2)
  std::vector<float> map_;      // (1, 256), the first matrix's; all others must have the same
};

// ---- adapter ---------------------------------------------------------------------------------------------------------
struct NamedArray {
  std::string name;
  int64_t rows = 0, cols = 0;
  std::vector<float> data;
};

struct AdapterFile {
  std::string method;  // "ir-qlora", ...: at most 31 characters
  int64_t rank = 0;
  double alpha = 0, dropout = 0;
  uint32_t targets = 0;    // bit i: the i-th of layer_linears() has an adapter
  bool tile = false;       // IEC expands by tiling (m1 m2 .. m1 m2 ..), not by interleaving (m1 m1 .. m2 m2 ..)
  uint64_t base_hash = 0;  // of the .bin or .irq it was trained on
  InputPool pool = {};     // QA-LoRA: A is (R, groups of the input)
  // "layers.N.wq.A" (R, in), ".B" (out, R), ".beta1", ".beta2", ...; PEQA: "layers.N.wq.scales" (out, groups) alone
  std::vector<NamedArray> tensors;
  bool trains_scales() const { return method == "peqa"; }
  const NamedArray* find(const std::string& name) const;
};
// The header's fields at once, the tensors as views when asked for.
class AdapterReader {
 public:
  explicit AdapterReader(const std::string& path);
  const AdapterFile& info() const { return info_; }  // its `tensors` is empty
  Tensor tensor(const std::string& name) { return file_.tensor(name); }
  const Layout& layout() const { return file_.layout(); }
  FlatReader& file() { return file_; }

 private:
  FlatReader file_;
  AdapterFile info_;
};
AdapterFile read_adapter(const std::string& path);  // everything, copied
std::string describe(const InputPool& pool);        // "mean over groups of 32 features, beta1 over raw features"
void write_adapter(const std::string& path, const AdapterFile& adapter);

// ---- training state --------------------------------------------------------------------------------------------------
// Named f32 arrays (masters, m, v) and one text (JSON: step, cursor, seeds, resolved configuration).
class StateReader {
 public:
  explicit StateReader(const std::string& path);
  const std::string& text() const { return text_; }
  bool has(const std::string& name) const { return file_.layout().find(name) != nullptr; }
  Tensor tensor(const std::string& name) { return file_.tensor(name); }  // verified view
  const Layout& layout() const { return file_.layout(); }  // opens with the two texts "(directory)" and "(text)"
  FlatReader& file() { return file_; }

 private:
  FlatReader file_;
  std::string text_;
};
// Each array is a contiguous f32 host tensor under its Tensor::name.
void write_state(const std::string& path, const std::string& text, const std::vector<Tensor>& arrays);

}  // namespace irq
