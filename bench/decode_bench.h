// Decoding with a whole model of random packed weights: tokens a second, against the bytes that a token must read.
#pragma once
#include <string>

#include "src/train/memory_plan.h"

namespace irq {

struct DecodeBenchOptions {
  std::string model = "7b";
  ModelConfig config;
  int bits = 4;
  int64_t rank = 64;      // 0: no adapter
  int64_t context = 512;  // keys that the first timed token sees
  int64_t sequences = 1;  // tokens of a step
  std::string residency = "packed";
  int steps = 100, warmup = 5;
  bool profile = false, csv = false;
  uint64_t seed = 1;
};
void run_decode_bench(CheckedBackend& backend, const DecodeBenchOptions& options);

// Bytes that one step must read or write: weights as they lie on the device, adapters, head, and the cached keys and values.
double decode_bytes(const DecodeBenchOptions& o, DType storage);

}  // namespace irq
