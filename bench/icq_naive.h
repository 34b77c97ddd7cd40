// ICQ's search the way one writes it down: what the CPU's search is measured against.
#pragma once
#include "kernels/quantized_matrix.h"

namespace irq {

// tau[b] of every whole block of 64 weights of w (n of them, n % 64 = 0, all finite): each of the candidates shifts and
// quantizes all weights and counts the codes; the first of the highest entropy wins. The same arithmetic as the engine's, so
// the same bits; one thread per block of weights, as the engine has.
void icq_search_naive(float* tau, const float* w, int64_t n, int bits, const IcqSpec& spec);

}  // namespace irq
