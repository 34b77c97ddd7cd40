// What converting does to a piece of a tensor: values to another float type, and a look for NaN.
#pragma once
#include <cstdint>

#include "src/core/dtype.h"

namespace irq {

// count values of type `from` at `in` -> type `to` at `out`, rounded to nearest even; f32, f16, bf16. Equal types: a copy.
// In parallel where it is worth it. `in` and `out` are aligned to their elements and do not overlap.
void convert_values(void* out, DType to, const void* in, DType from, int64_t count);

// The index of the first value that is NaN or infinite; -1 if all are finite.
int64_t first_not_finite(const void* values, DType type, int64_t count);

}  // namespace irq
