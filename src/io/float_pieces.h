// What converting does to a piece of a tensor: values to another float type, and a look for NaN. f32, f16 and bf16 only.
#pragma once
#include <cstdint>

#include "src/core/check.h"
#include "src/core/tensor.h"

namespace irq {

// count values of type `from` at `in` -> type `to` at `out`, rounded to nearest even. Equal types: a copy.
// In parallel where it is worth it. `in` and `out` are aligned to their elements and do not overlap.
void convert_values(void* out, DType to, const void* in, DType from, int64_t count);

// The index of the first value that is NaN or infinite; -1 if all are finite.
int64_t first_not_finite(const void* values, DType type, int64_t count);
int64_t first_not_finite(const Tensor& t);  // of contiguous host memory, counted row by row

// values[i] of type `type`, widened.
inline float value_at(const void* values, DType type, int64_t i) {
  switch (type) {
    case DType::F32: return static_cast<const float*>(values)[i];
    case DType::F16: return to_float(static_cast<const F16*>(values)[i]);
    case DType::BF16: return to_float(static_cast<const Bf16*>(values)[i]);
    default: IRQ_CHECK(false, "value_at: %s", name_of(type));
  }
}

}  // namespace irq
