// An adapter's matrices as plain LoRA: IEC folded into A and B (paper Eq. 16).
#pragma once
#include <string>
#include <vector>

#include "src/io/checkpoint.h"

namespace irq {

// A~ = A + beta1 P (R, in),  B~ = B + beta2 E (out, R): computed in f64, rounded once to f32. The adapter's output is
// s * B~ (A~ x) with s = alpha / R, exactly what it was with IEC (without dropout).
struct FoldedAdapter {
  int64_t rank = 0;
  std::vector<float> a, b;
  float beta1 = 0, beta2 = 0;  // as they were
};

// Of one linear, "layers.3.wq". An Error that names the tensor if A or B is missing or has another shape.
FoldedAdapter fold_adapter(AdapterReader& adapter, const std::string& linear, const LinearShape& shape);

}  // namespace irq
