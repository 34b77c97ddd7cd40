// A Hugging Face folder whose linears bitsandbytes quantized to NF4 -> a quantized base (.irq), codes and scales as they are.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "src/io/convert.h"

namespace irq {

// Does config.json in this folder (or beside this file) say so? False where there is none.
bool is_bitsandbytes(const std::string& path);

// Opening checks every name, type, shape and code table, and reads nothing but the tables. Taken: quant_type nf4, blocks of 64,
// scales in f32 or in 8 bits with one f32 per 256 (then with one table for all matrices); embeddings, norms and head in F32,
// F16 or BF16; the head may not be quantized.
class BitsandbytesFolder {
 public:
  explicit BitsandbytesFolder(const std::string& path);
  ~BitsandbytesFolder();
  const ModelConfig& config() const;
  DType dtype() const;  // of embed and head in the .irq: theirs, f32 if they differ
  bool nested() const;  // 8-bit scales
  const std::vector<std::string>& notes() const;
  std::vector<SideFile> side_files();
  // The .irq's dequantized weights are bit for bit level[code] * scale with the folder's own numbers. Its source hash covers
  // every tensor's name, type, shape and bytes, in the order of the layout.
  ConvertSummary write(const std::string& out_path, const ByteProgress& progress = {});

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace irq
