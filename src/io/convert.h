// A model in another program's format -> a base (.bin), streamed: never more than one tensor and a few small buffers in memory.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "src/io/checkpoint.h"
#include "src/io/import.h"

namespace irq {

struct ConvertSummary {
  DType dtype = DType::F32;  // of the matrices
  int64_t tensors = 0;
  int64_t source_bytes = 0;  // of the tensors as the reader gave them
  int64_t file_bytes = 0;
  uint64_t hash = 0;               // of the file written
  double seconds = 0;              // side files not counted
  double code_entropy = 0;         // of an .irq: mean bits per weight
  std::vector<std::string> notes;  // about the side files, one line each
};

// dtype: none keeps in.dtype(). Equal types keep every bit; f32 -> f16 and bf16 round to nearest even, and a value that would
// become infinite is an Error. So is a weight that is NaN or infinite already. Ctrl-C ends it between two pieces. The file
// appears when it is whole, then the tokenizer's files beside it.
ConvertSummary convert(ImportedModel& in, const std::string& out_path, std::optional<DType> dtype = {},
                       const ByteProgress& progress = {});

// Writes each file beside `model_path`: under its own name, or, where the folder has a tokenizer of another model, under
// STEM.NAME (STEM: the model's name without its ending), which only this model looks for. Returns lines to show.
std::vector<std::string> write_side_files(const std::vector<SideFile>& files, const std::string& model_path);

}  // namespace irq
