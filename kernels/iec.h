// Information Elastic Connection: its index map, and the table through which one op serves every adapter of a model.
// Shared by the CPU reference and the CUDA kernels.
#pragma once
#include <numeric>
#include <vector>

#include "src/core/check.h"
#include "src/core/rng.h"
#include "src/core/tensor.h"

namespace irq {

// `pooled` inputs are averaged over `groups` = gcd(pooled, expanded) contiguous slices, and the means are expanded to
// `expanded` outputs. P of paper Eq. 13 has pooled = h, expanded = r; E of Eq. 14 has pooled = r, expanded = o.
// As a matrix (expanded, pooled): groups / pooled in row j at columns [group(j) * slice, +slice), 0 elsewhere.
struct IecMap {
  int groups, slice, repeat;  // slice = pooled / groups, repeat = expanded / groups
  bool tile;

  IecMap(int64_t pooled, int64_t expanded, bool tile_means) : tile(tile_means) {
    IRQ_CHECK(pooled > 0 && expanded > 0 && pooled < (1 << 30) && expanded < (1 << 30), "IEC from %ld to %ld", pooled,
              expanded);
    groups = static_cast<int>(std::gcd(pooled, expanded));
    slice = static_cast<int>(pooled / groups);
    repeat = static_cast<int>(expanded / groups);
  }
  // The slice that output j copies: interleave m1 m1 .. mg mg (Eq. 16), tile m1 .. mg m1 .. mg (Eqs 12-14).
  IRQ_HD int group(int j) const { return tile ? j % groups : j / repeat; }
  // The k-th output, k < repeat, that copies slice t.
  IRQ_HD int member(int t, int k) const { return tile ? k * groups + t : t * repeat + k; }
  IRQ_HD int64_t rows() const { return int64_t{groups} * repeat; }  // expanded
  IRQ_HD int64_t cols() const { return int64_t{groups} * slice; }   // pooled
  IRQ_HD int64_t terms() const { return rows() * slice; }           // entries of the matrix that are not 0
};

// One matrix of one adapter: w = A (r, h) or B (o, r), its folded copy, and its share of the betas' gradients. Either
// half may be missing (null folded; null dbeta). It lies in device memory and holds addresses there.
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
  void add(Tensor folded, Tensor w, Tensor beta, double scale, Tensor dw, Tensor dbeta, bool tile);
  int64_t bytes() const { return static_cast<int64_t>(entries_.size() * sizeof(IecEntry)); }
  const void* data() const { return entries_.data(); }  // to be uploaded to ...
  IecTable in(Tensor memory) const;                     // ... this memory (1, bytes()) u8

 private:
  IecTable table_;
  std::vector<IecEntry> entries_;
};

}  // namespace irq
