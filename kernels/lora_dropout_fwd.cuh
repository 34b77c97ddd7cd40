// What the two kernels of lora_dropout_fwd share: their arguments.
#pragma once
#include "kernels/iec.h"
#include "kernels/lora_dropout.cuh"
#include "kernels/lora_dropout_pool.cuh"

namespace irq {
namespace lora_fwd {

constexpr int kMaxSlices = 3;
constexpr int kFusedGroups = 64;  // of px in shared memory
constexpr int64_t kPartialBytes = int64_t{48} << 20;

struct FwdArgs {
  __nv_bfloat16 *u, *px;
  const __nv_bfloat16 *x, *a;
  int64_t u_stride, px_stride, x_stride, a_stride, rows;
  int cols, slices;
  RankSlice slice[kMaxSlices];
  MaskArgs mask;
  bool pool;        // px is computed here; else it is read, if there is one
  bool store_pool;  // by this launch
  int rank;         // columns of px
  // Few rows leave multiprocessors idle: then `splits` blocks share a tile of rows, each with its own features, and leave
  // their sums in partial (splits, rows, kAdapters * 64 + kFusedGroups) for a second kernel.
  int splits, features_per_split;
  bool paired;  // each two of them add up first
  float* partial;
  SliceOf slice_of;
  IecMap map;
};

// Floats of a row in FwdArgs::partial.
template <int kAdapters>
constexpr int kPartialWidth = kAdapters* kSliceRanks + kFusedGroups;

}  // namespace lora_fwd

// lora_dropout_fwd_sm90.cu, on compute capability 9.0. p.splits: how many sums it has left in p.partial, 1 if none.
void lora_dropout_fwd_sm90(lora_fwd::FwdArgs& p, int sm_count, cudaStream_t stream);

}  // namespace irq
