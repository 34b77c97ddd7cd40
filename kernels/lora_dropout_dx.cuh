// What the two kernels of lora_dropout_dx share: their arguments.
#pragma once
#include "kernels/lora_dropout.cuh"

namespace irq {
namespace lora_dx {

constexpr int kMaxSlices = 3;

struct DxArgs {
  __nv_bfloat16* dx;
  const __nv_bfloat16 *du, *a;
  int64_t dx_stride, du_stride, a_stride, rows;
  int cols, rows_per_block, feature_blocks;
  RankSlice slice[kMaxSlices];
  MaskArgs mask;
  float beta;
};

}  // namespace lora_dx

// lora_dropout_dx_sm90.cu, on compute capability 9.0.
void lora_dropout_dx_sm90(lora_dx::DxArgs p, int slices, int sm_count, cudaStream_t stream);

}  // namespace irq
