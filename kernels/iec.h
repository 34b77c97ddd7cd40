// Information Elastic Connection: the table through which one op serves every adapter of a model. Shared by the CPU reference
// and the CUDA kernels.
#pragma once
#include <vector>

#include "kernels/group_pool.h"
#include "src/core/tensor.h"

namespace irq {

// One matrix of one adapter: w = A (r, h) or B (o, r), its folded copy, and its share of the betas' gradients. Either
// half may be missing (null folded; null dbeta). It lies in device memory and holds addresses there.
// With pool.cols (QA-LoRA's A) w is (r, groups) and each of its columns stands for a group of columns of `folded` (r, h):
//   folded[j, i] = scale * (c(g) w[j, g] + *beta map'[j, i]), g the group of i; map' is `map` on the h columns, or with
//   `aligned` map[j, g] / length(g), `map` being on the groups.
struct IecEntry {
  void* folded;      // S, rows `folded_stride` apart: scale * (w + *beta * map)
  const void* w;     // M, contiguous; null: 0
  const void* beta;  // M, null: 0
  const void* dw;    // M, contiguous
  void* dbeta;       // M: <dw, map>
  int64_t folded_stride;
  int64_t fold_begin, dbeta_begin;  // chunks of the entries before this one
  double scale;
  IecMap map;
  GroupPool pool;
  bool aligned;

  IRQ_HD int64_t folded_cols() const { return pool.cols > 0 ? pool.cols : map.cols(); }
};

// QA-LoRA's part of an entry.
struct IecPooling {
  GroupPool pool = {};
  bool aligned = false;
};

// Every matrix of a model as the ops take it. Chunks are what a block of threads works on, so that large and small
// matrices load the device evenly.
struct IecTable {
  static constexpr int kFoldChunk = 16384;  // elements of w
  static constexpr int kDbetaChunk = 4096;  // terms of <dw, map>: the elements of dw where map is not 0
  Tensor entries;                           // (1, count * sizeof(IecEntry)) u8
  int64_t fold_chunks = 0, dbeta_chunks = 0;
  DType storage = DType::F32, master = DType::F32;

  int64_t count() const { return entries.cols / static_cast<int64_t>(sizeof(IecEntry)); }
};

// Collects entries on the host. The addresses are only copied: a dry run may pass what nobody may read.
class IecTableBuilder {
 public:
  IecTableBuilder(DType storage, DType master) { table_.storage = storage, table_.master = master; }
  // folded, w, dw (expanded, pooled); beta, dbeta (1, 1). Null: folded with w and beta; one of w and beta (0); dw with dbeta.
  // With pooling.pool.cols: folded (expanded, cols), w (expanded, groups), no dw.
  void add(Tensor folded, Tensor w, Tensor beta, double scale, Tensor dw, Tensor dbeta, bool tile,
           const IecPooling& pooling = {});
  int64_t bytes() const { return static_cast<int64_t>(entries_.size() * sizeof(IecEntry)); }
  const void* data() const { return entries_.data(); }  // to be uploaded to ...
  IecTable in(Tensor memory) const;                     // ... this memory (1, bytes()) u8

 private:
  IecTable table_;
  std::vector<IecEntry> entries_;
};

}  // namespace irq
