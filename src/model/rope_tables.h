// The angles of RoPE, computed on the host.
#pragma once
#include <vector>

#include "src/model/config.h"

namespace irq {

// cos and sin of every position's angles: (positions, head_dim / 2) each, row-major.
struct RopeTables {
  std::vector<double> cosines, sines;
};
RopeTables rope_tables(const ModelConfig& config, int64_t positions);

}  // namespace irq
