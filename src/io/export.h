// A model or an adapter written for other programs: a PEFT adapter folder, a Hugging Face folder, a GGUF file; and a quantized
// base with an adapter merged into its own zero points or scales.
#pragma once
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "src/io/export_source.h"

namespace irq {

struct ExportOptions {
  std::optional<DType> dtype = std::nullopt;  // of the matrices, f32, f16 or bf16; see export_dtype()
  bool overwrite = false;                     // replace what a former export left
  std::string base_name = "";                 // PEFT's base_model_name_or_path; "" = null
  int64_t shard_bytes = 5'000'000'000;        // most bytes of tensors in one .safetensors
  bool nearest = false;                       // export_irq(): where no exact merge exists, the nearest
};

struct ExportReport {
  std::vector<std::pair<std::string, int64_t>> files;  // name in the folder (or the file's path), bytes
  std::vector<std::string> notes;                      // what the user should know, one line each
};

// The type asked for; else a plain base's own, and bf16 for a quantized one (what the engine computes with on a GPU).
DType export_dtype(const ExportSource& source, const ExportOptions& options);

// adapter_model.safetensors with IEC folded into A and B (adapter_fold.h), F32, and adapter_config.json. The raw betas,
// the method, the base's hash and its quantization are in the safetensors' metadata. Needs source.adapter().
ExportReport export_peft(ExportSource& source, const std::string& folder, const ExportOptions& options,
                         const ByteProgress& progress = {});
// config.json, generation_config.json, model.safetensors (or shards with their index), and the tokenizer. Norm weights
// that the type cannot hold exactly stay F32.
ExportReport export_hugging_face(ExportSource& source, const std::string& folder, const ExportOptions& options,
                                 const ByteProgress& progress = {});
// One GGUF file for llama.cpp, with the tokenizer beside the model in it. Norms are F32.
ExportReport export_gguf(ExportSource& source, const std::string& path, const ExportOptions& options,
                         const ByteProgress& progress = {});

// A quantized base with the adapter in it, at the base's own size (fidelity 5.5 to 5.7): QA-LoRA into float zero points, PEQA into
// the scales. Codes and entropies stay as they are. Needs source.adapter() and an integer base. An Error where the zero points
// cannot hold the adapter: slices of IEC that cut groups (unless `nearest`), a group whose scale is 0, an adapter on other groups.
ExportReport export_irq(ExportSource& source, const std::string& path, const ExportOptions& options,
                        const ByteProgress& progress = {});

// ---- what these share ------------------------------------------------------------------------------------------------
// Where the weights come from and what was computed, for a file's metadata.
std::map<std::string, std::string> provenance(ExportSource& source, DType dtype);
void append_merge_note(const ExportSource& source, DType dtype, ExportReport& report);

}  // namespace irq
