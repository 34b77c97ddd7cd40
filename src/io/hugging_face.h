// A Hugging Face folder: its safetensors files as one set of tensors, and the names in it. Shared by the importers of plain
// and of NF4 weights.
#pragma once
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "src/io/foreign_names.h"
#include "src/io/import.h"
#include "src/io/safetensors.h"

namespace irq {

// "model.layers.3.self_attn.q_proj.weight" of "layers.3.wq".
inline std::string hugging_face_name(const std::string& name) { return hugging_face_module(name) + ".weight"; }

struct FolderTensor {
  const SafetensorsReader* file = nullptr;
  const SafetensorsEntry* entry = nullptr;
  const unsigned char* data() const { return file->data(*entry); }
  std::string where() const { return file->path() + ": tensor " + printable(entry->name); }  // opens a message
  std::string shape() const;                                                                 // "F16 [24, 16]"
};

// model.safetensors, or the shards of model.safetensors.index.json, or the folder's only .safetensors file. Every header is
// checked; each tensor is in exactly one file, each file and tensor that the index lists is there.
class FolderTensors {
 public:
  explicit FolderTensors(const std::string& path);  // the folder, or a file in it: that .safetensors, or config.json
  const std::string& folder() const { return folder_; }
  std::string config_path() const { return folder_ + "/config.json"; }
  const std::map<std::string, FolderTensor>& tensors() const { return tensors_; }
  const FolderTensor* find(const std::string& name) const;     // null if there is none
  const FolderTensor& require(const std::string& name) const;  // an Error if there is none
  const std::vector<std::string>& notes() const { return notes_; }
  // Throws unless every tensor is one of `known`, or a rotary_emb.inv_freq buffer; returns how many of these there are.
  int64_t refuse_unknown(const std::set<std::string>& known) const;

 private:
  std::vector<std::string> choose_files(const std::string& picked);
  std::vector<std::string> choose_unnamed() const;
  void open_files(const std::vector<std::string>& names);

  std::string folder_;
  std::vector<std::string> notes_;
  std::map<std::string, std::string> index_;  // tensor -> file, where there is an index
  std::vector<std::unique_ptr<SafetensorsReader>> files_;
  std::map<std::string, FolderTensor> tensors_;
};

bool same_values(const FolderTensor& a, const FolderTensor& b);  // type, shape and every bit
// A tied model may carry lm_head.weight all the same. Equal to embed_tokens it is left out. Different, it is the head and
// config.tied becomes false: dropping trained weights silently would be the worse guess. An untied model must have one.
void resolve_head(const FolderTensors& folder, ModelConfig& config, std::vector<std::string>& notes);

// f32, f16 or bf16; an Error (naming the tensor) for any other type.
DType float_type(const FolderTensor& tensor);
// An Error unless its shape is (rows, cols); a vector (1, cols) has one dimension.
void check_shape(const FolderTensor& tensor, int64_t rows, int64_t cols);

// tokenizer.model, tokenizer.json and tokenizer_config.json, those that the folder has.
std::vector<SideFile> folder_side_files(const std::string& folder);
// What generation_config.json says about the end of a text beyond what config.json's first token id does; "" if nothing.
std::string eos_note(const std::string& folder, const ModelConfig& config);

}  // namespace irq
