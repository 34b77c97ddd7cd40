#include "src/model/flops.h"

namespace irq {

double model_flops_per_token(const ModelConfig& c, int64_t rank, double length, double labelled, uint32_t targets,
                             bool full, bool scales) {
  const double per_weight = full ? 6 : 4;  // forward, backward to the input, and the weight's own gradient
  const double per_linear = full || scales ? 6 : 4;
  double linears = 0, adapters = 0;
  uint32_t bit = 1;
  for (const LinearShape& s : layer_linears(c)) {
    linears += per_linear * static_cast<double>(s.in * s.out);
    if (!full && (targets & bit) != 0) adapters += 6.0 * static_cast<double>(rank * (s.in + s.out));
    bit <<= 1;
  }
  const double attention = 7.0 * length * static_cast<double>(c.q_width());  // causal: forward 2, backward 5
  return static_cast<double>(c.layers) * (linears + adapters + attention) +
         labelled * per_weight * static_cast<double>(c.vocab * c.dim);
}

}  // namespace irq
