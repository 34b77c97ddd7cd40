// Whole layers of a decoded token over packed weights: what op nfk_layers is called with.
#pragma once
#include "kernels/nfk_linear.h"

namespace irq {

// q, keys, values = qkv(x);  a = attention(q, keys, values);  x = o(a) + x;  h = gate_up(x);  x = down(h) + x, each as nfk_linear
// and attention_fwd define it, one layer after the other. What the calls leave in q, a, h and lse is scratch: a device may
// write anything there or nothing.
struct PackedLayer {
  PackedLinear qkv, o, gate_up,
      down;     // qkv: Finish::rope; gate_up: Finish::swiglu; o reads a = o.x, and o.residual may be o.y
  Tensor lse;   // (H, N) M
  Tensor seqs;  // (n_seqs, 6) i32
};

// The same from nfk_linear and attention_fwd: specification, CPU path, and the way of a GPU for what its kernel does not take.
void packed_layers_by_ops(Backend& backend, const PackedLayer* layers, int count);

}  // namespace irq
