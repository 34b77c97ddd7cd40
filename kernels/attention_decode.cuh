// The decoding kernel of attention_fwd (attention_decode.cu), for attention_fwd.cu to choose.
#pragma once
#include "kernels/attention.cuh"

namespace irq {

bool attention_decode_takes(const AttentionArgs& a);       // BF16 with rows aligned to 16 bytes is the caller's to know
int64_t attention_decode_scratch(const AttentionArgs& a);  // bytes of `partial`
// meet: a zero counter for each query row and key/value head; zero again behind it.
void attention_decode(const AttentionArgs& a, float* partial, int* meet, cudaStream_t stream);

}  // namespace irq
