// The way from icq_search.cu, which has the default search, to icq_search_general.cu, which has all others.
#pragma once
#include <cuda_runtime.h>

#include "kernels/quantized_matrix.h"

namespace irq {

// Arguments as those of icq_search; on `stream`.
void icq_search_general(cudaStream_t stream, Tensor tau, Tensor entropy_plain, Tensor entropy_best, Tensor w, int bits,
                        const IcqSpec& spec);

}  // namespace irq
