#include "src/ops/prefix_groups.h"

#include <algorithm>
#include <numeric>

namespace irq {
namespace {

// Bounds the search in a batch of very many examples, and what one tile of keys is visited by in attention's backward.
constexpr size_t kMostMembers = 256;

// The rows before the first one with a loss: row i has one if token i + 1 counts.
int64_t rows_without_loss(const Example& e) {
  int64_t n = 0;
  while (n + 1 < static_cast<int64_t>(e.ids.size()) && e.trainable[static_cast<size_t>(n) + 1] == 0) ++n;
  return n;
}

struct Beginning {
  const int32_t* ids;
  int64_t rows;
  bool operator<(const Beginning& b) const {
    return std::lexicographical_compare(ids, ids + rows, b.ids, b.ids + b.rows);
  }
  int64_t common(const Beginning& b) const {
    return std::mismatch(ids, ids + std::min(rows, b.rows), b.ids).first - ids;
  }
};

}  // namespace

std::vector<PrefixGroup> group_by_prefix(const std::vector<const Example*>& examples, int64_t fewest) {
  const size_t n = examples.size();
  std::vector<Beginning> beginnings;
  for (const Example* e : examples) beginnings.push_back({e->ids.data(), rows_without_loss(*e)});
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return beginnings[a] < beginnings[b]; });
  std::vector<int64_t> common(n, 0);  // of a place in the order and the one before it
  for (size_t i = 1; i < n; ++i) common[i] = beginnings[order[i - 1]].common(beginnings[order[i]]);
  // saved[i]: the most rows that the first i places can save; the last of them begins its group at first[i].
  std::vector<int64_t> saved(n + 1, 0), rows(n + 1, 0);
  std::vector<size_t> first(n + 1, 0);
  for (size_t i = 1; i <= n; ++i) {
    saved[i] = saved[i - 1], first[i] = i - 1;
    int64_t shared = INT64_MAX;
    for (size_t begin = i - 1; begin > 0 && i - begin < kMostMembers; --begin) {
      shared = std::min(shared, common[begin]);
      if (shared < std::max<int64_t>(fewest, 1)) break;
      const int64_t all = saved[begin - 1] + static_cast<int64_t>(i - begin) * shared;
      if (all > saved[i]) saved[i] = all, first[i] = begin - 1, rows[i] = shared;
    }
  }
  std::vector<PrefixGroup> groups;
  for (size_t end = n; end > 0; end = first[end]) {
    if (end - first[end] < 2) continue;
    PrefixGroup g{{order.begin() + static_cast<int64_t>(first[end]), order.begin() + static_cast<int64_t>(end)},
                  rows[end]};
    std::sort(g.members.begin(), g.members.end());
    groups.push_back(std::move(g));
  }
  std::sort(groups.begin(), groups.end(),
            [](const PrefixGroup& a, const PrefixGroup& b) { return a.members[0] < b.members[0]; });
  return groups;
}

}  // namespace irq
