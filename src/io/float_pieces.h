// What every importer does to a piece of a tensor: values to another float type, rows to another order, a look for NaN.
#pragma once
#include <cstdint>

#include "src/core/dtype.h"

namespace irq {

// count values of type `from` at `in` -> type `to` at `out`, rounded to nearest even; f32, f16, bf16. Equal types: a copy.
// In parallel where it is worth it. `in` and `out` are aligned to their elements and do not overlap.
void convert_values(void* out, DType to, const void* in, DType from, int64_t count);

// The index of the first value that is NaN or infinite; -1 if all are finite.
int64_t first_not_finite(const void* values, DType type, int64_t count);

// Interleaved RoPE (Meta, llama2.c, llm.c, GGUF: pairs 2j, 2j+1) -> half-split (Hugging Face, here: pairs j, j + D/2), head by
// head: out row j + p D/2 = in row 2j + p, p in {0, 1}. (heads * head_dim) rows of row_bytes each, no overlap.
void half_split_rows(void* out, const void* in, int64_t heads, int64_t head_dim, int64_t row_bytes);

}  // namespace irq
