// Quantizing a file from end to end, against the time that reading it takes.
#pragma once
#include <string>

#include "kernels/backend.h"
#include "src/model/config.h"

namespace irq {

struct QuantizeBenchOptions {
  std::string
      model = "7b",
      file;  // file: made with random BF16 weights and removed again if it is not there; "" = a name in the current folder
  ModelConfig config;
  int bits = 4;
  bool csv = false;
  uint64_t seed = 1;
};
// First with the file in the page cache, then, where the file system lets go of it, without.
void run_quantize_bench(CheckedBackend& backend, const QuantizeBenchOptions& options);

}  // namespace irq
