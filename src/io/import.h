// Models in other programs' formats, opened for conversion: every reader gives the tensors of base_layout() (layout.h) under
// this engine's names, rows in Hugging Face's order (half-split RoPE), one tensor at a time.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "src/core/dtype.h"
#include "src/core/file.h"
#include "src/core/tensor.h"
#include "src/model/config.h"
#include "src/text/side_file.h"

namespace irq {

class ImportedModel {
 public:
  virtual ~ImportedModel() = default;
  const ModelConfig& config() const { return config_; }
  // f32, f16 or bf16: what --dtype source gives. f32 if any matrix is F32 or quantized, or if the matrices' types mix.
  DType dtype() const { return dtype_; }
  // What the format does not say and was assumed, or what was left out: one line each, shown to the user.
  const std::vector<std::string>& notes() const { return notes_; }
  // (rows, cols) of base_layout(config(), ...) in a plain float type of the reader's choice; the view is valid until the next
  // call. "head" is asked for only if the model is not tied. Throws an Error that names the file's own tensor.
  virtual Tensor tensor(const std::string& name) = 0;
  // A hint while the last view is read from front to back: its first done_bytes will not be read again. A reader that gives
  // mapped memory lets these pages go and fetches the next ones; for others there is nothing to do.
  virtual void advance(int64_t /*done_bytes*/) {}
  virtual std::vector<SideFile> side_files() = 0;

 protected:
  ModelConfig config_;
  DType dtype_ = DType::F32;
  std::vector<std::string> notes_;
};

// Each checks the whole header (every name, shape, type and offset against the file's size) before it returns, and reads no
// tensor's bytes. A model that this engine would run wrongly is refused with the reason.
// path: the folder, or its config.json, or the one of its .safetensors files that holds the model.
std::unique_ptr<ImportedModel> import_hugging_face(const std::string& path);
std::unique_ptr<ImportedModel> import_gguf(const std::string& path);
std::unique_ptr<ImportedModel> import_llama2c(const std::string& path);  // .bin versions 0 and 1
std::unique_ptr<ImportedModel> import_llmc(const std::string& path);     // LLaMA .bin versions 3 and 5
// Version 0 has no magic: true if the first seven int32 are a possible configuration whose size is the file's.
bool is_llama2c_v0(const MappedFile& file);
// Finds out which of these it is.
std::unique_ptr<ImportedModel> open_import(const std::string& path);

}  // namespace irq
