// Random contents for a Llama that was built in an arena.
#pragma once
#include "bench/random_data.h"
#include "src/model/llama.h"

namespace irq {

// Packed codes and scales are uploaded as they are; cached weights are dequantized once from such. Weights come to about
// N(0, 0.02^2); A, B and the betas are all non-zero, so that every product of a step has real operands.
void fill_model(Backend& backend, Arena& arena, Llama& model, RandomData& random);

}  // namespace irq
