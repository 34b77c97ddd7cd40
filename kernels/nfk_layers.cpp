// Layers of a decoded token, made of the ops they fuse.
#include "kernels/nfk_layers.h"

#include "kernels/common.h"

namespace irq {

void packed_layers_by_ops(Backend& backend, const PackedLayer* layers, int count) {
  for (int i = 0; i < count; ++i) {
    const PackedLayer& c = layers[i];
    backend.nfk_linear(c.qkv);
    backend.attention_fwd(c.o.x, c.lse, c.qkv.y, c.qkv.keys, c.qkv.values, c.seqs, c.qkv.head_dim);
    backend.nfk_linear(c.o);
    backend.nfk_linear(c.gate_up);
    backend.nfk_linear(c.down);
  }
}

void CpuBackend::nfk_layers(const PackedLayer* layers, int count) { packed_layers_by_ops(*this, layers, count); }

}  // namespace irq
