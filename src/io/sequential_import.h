// Models whose file is a header and then every tensor in an order that the format fixes, without names (llama2.c, llm.c).
#pragma once
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "src/core/file.h"
#include "src/io/import.h"
#include "src/text/vocabulary.h"

namespace irq {

class SequentialModel : public ImportedModel {
 public:
  Tensor tensor(const std::string& name) override;
  // The tokenizer files that lie beside the model, as they are; else those of its own vocabulary.
  std::vector<SideFile> side_files() override;
  const std::optional<Vocabulary>& vocabulary() const { return vocabulary_; }  // its own, where side_files() needs one

 protected:
  explicit SequentialModel(const std::string& path) : file_(path) {}
  int32_t slot(int64_t i) const;  // the file's i-th int32; an Error if it is shorter
  // Tensors from byte `begin` on, each at the end of the former, of dtype_; the rows of wq and wk are interleaved in all of them.
  void start(int64_t begin) { at_ = begin; }
  void place(const std::string& name, int64_t rows, int64_t cols);
  void place_layers(const char* name, int64_t rows, int64_t cols);  // "layers.0.NAME", "layers.1.NAME", ...
  void skip(int64_t elements) { at_ += elements * size_of(dtype_); }
  // An Error unless the file ends where the last tensor does. `what` describes the header.
  void check_end(const std::string& what) const;
  // Finds tokenizer.model or tokenizer.json beside the model; false if there is none.
  bool find_tokenizer_files();

  MappedFile file_;
  std::optional<Vocabulary> vocabulary_;

 private:
  struct Place {
    int64_t begin = 0, rows = 0, cols = 0, bytes = 0;
  };

  std::map<std::string, Place> places_;
  std::vector<std::string> order_;
  int64_t at_ = 0;
  const Place* last_ = nullptr;
  std::vector<unsigned char> buffer_;
  std::vector<std::string> tokenizer_paths_;
};

}  // namespace irq
