// The index map of Information Elastic Connection.
#pragma once
#include <numeric>

#include "src/core/check.h"
#include "src/core/rng.h"

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

}  // namespace irq
