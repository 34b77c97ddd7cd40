// What the variants share: the stream they run on, and the quantized matrix among a case's tensors.
#pragma once
#include "bench/variants.h"
#include "kernels/nfk_block.cuh"
#include "tests/cases/nfk.h"

namespace irq {

inline cudaStream_t stream_of(Backend& backend) { return dynamic_cast<CudaBackend&>(backend).stream(); }

// NF4 with double-quantized scales and shifts, whose parts begin at t[first] (tests/cases/nfk.h).
inline PackedView nf4_view(const std::vector<Tensor>& t, size_t first, int64_t rows, int64_t cols) {
  return packed_view(matrix_of(t, first, rows, cols, {}));
}

}  // namespace irq
