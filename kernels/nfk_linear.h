// One group of packed linears for few rows, with what stands around it in a layer: what op nfk_linear is called with.
#pragma once
#include <array>

#include "kernels/quantized_matrix.h"

namespace irq {

// n = norm ? round_S(rmsnorm(x)) * norm : x;   u = n A'^T;   z_i = n W_i^T + u_i sB'_i^T;   what happens to z = [z_0 | z_1 | z_2]:
//   Finish::add     y = z (+ residual)                                                     y, residual (N, sum of out_i) S
//   Finish::swiglu  y = silu(z_0) * z_1; two parts of one width F                                              y (N, F) S
//   Finish::rope    three parts q, k, v: q and k are turned by the row's position; y = q, and k and v become the rows
//                   cache_rows[i] of keys and values (row -1: nowhere)    y (N, H D) S, keys, values (K, G D) S
struct PackedLinear {
  static constexpr int kParts = 3;
  enum class Finish { add, swiglu, rope };

  Tensor y, x;      // x (N, in) S
  Tensor norm;      // (1, in) M, or null
  double eps = 0;   // of the norm
  Tensor residual;  // or null

  int parts = 1;
  std::array<QuantizedMatrix, kParts> w;  // (out_i, in) each
  Tensor a;                               // (R, in) S, or null: no adapter anywhere
  std::array<Tensor, kParts> b;           // (out_i, r_i) S; null: this part has none
  std::array<int64_t, kParts> column{};   // u_i = columns [column, +r_i) of u

  Finish finish = Finish::add;
  int head_dim = 0;                                    // rope: D
  Tensor cos_table, sin_table, positions, cache_rows;  // (T, D/2) M twice, (1, N) i32 twice
  Tensor keys, values;

  int64_t width() const {  // of z
    int64_t n = 0;
    for (int i = 0; i < parts; ++i) n += w[static_cast<size_t>(i)].rows;
    return n;
  }
};

class Backend;
// Elements of S that packed_linear_by_ops() needs as scratch; rstd (1, N) M comes on top.
int64_t packed_linear_scratch(const PackedLinear& c);
// The same from the ops it is made of (rmsnorm, matmul, nfk_matmul, rope, scatter_rows, swiglu), rounded after each: the CPU's
// body, and the way of a GPU for what its kernel does not take.
void packed_linear_by_ops(Backend& backend, const PackedLinear& c, void* scratch, void* rstd);

}  // namespace irq
