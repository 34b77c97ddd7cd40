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

double model_flops(const ModelConfig& c, int64_t rank, const std::vector<Batch>& window, uint32_t targets, bool full,
                   bool scales) {
  double rows = 0, labels = 0, pairs = 0;  // a row sees on average half of its own sequence, and all of its prefix
  for (const Batch& b : window) {
    rows += static_cast<double>(b.real_rows), labels += static_cast<double>(b.real_labels);
    for (const SeqRange& s : b.seqs) {
      const double length = s.q_end - s.q_begin, prefix = s.p_end - s.p_begin;
      pairs += length * (length + 2 * prefix);
    }
  }
  if (rows == 0) return 0;
  return rows * model_flops_per_token(c, rank, pairs / rows, labels / rows, targets, full, scales);
}

}  // namespace irq
