// A group of packed linears that share an input, made into the one matrix that products take: what op dequant_group is called with.
#pragma once
#include <array>

#include "kernels/quantized_matrix.h"

namespace irq {

//   ext = [ W  sB' ]   (out + R, in + R): W stacks the parts, sB' is block-diagonal and 0 elsewhere.
//         [ A'  -  ]   The corner is not written.
struct PackedGroup {
  static constexpr int kParts = 3;
  int parts = 1;
  std::array<QuantizedMatrix, kParts> w;  // (out_i, in) each, NF or integers
  Tensor a;                               // A' (R, in) S, or null: R = 0
  std::array<Tensor, kParts> b;           // s B'_i (out_i, r_i) S; null: this part has no adapter
  std::array<int64_t, kParts> column{};   // of b_i among the R columns

  int64_t out() const {
    int64_t n = 0;
    for (int i = 0; i < parts; ++i) n += w[static_cast<size_t>(i)].rows;
    return n;
  }
};

class Backend;
// The same from the ops it is made of (nfk_dequant or int_dequant, fill, copy): the CPU's body, and the way of a GPU for what its
// kernel does not take. Every element is the same bits either way.
void dequant_group_by_ops(Backend& backend, const Tensor& ext, const PackedGroup& group);

}  // namespace irq
