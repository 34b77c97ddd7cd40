// Which examples of a batch share a prefix: rows that begin several of them, with the same tokens and no loss, need to be
// computed once only (batch.h, Prefixes::shared).
#pragma once
#include <cstddef>

#include "src/ops/batch.h"

namespace irq {

// Rows [0, rows) of its members are the same; members: indices of examples, ascending, at least two.
struct PrefixGroup {
  std::vector<size_t> members;
  int64_t rows = 0;
};
// Attention's backward takes some 20 us a layer longer where there are prefixes, as one row of 16 examples does.
constexpr int64_t kFewestSharedRows = 8;
// Leaves the fewest rows that one shared piece for each example can leave, of groups that are neighbours in the order of their tokens
// and share at least `fewest` rows.
std::vector<PrefixGroup> group_by_prefix(const std::vector<const Example*>& examples,
                                         int64_t fewest = kFewestSharedRows);

}  // namespace irq
