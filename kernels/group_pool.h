// QA-LoRA's pooling of an input over groups of consecutive features (fidelity 5.5), and IEC's over slices: which columns
// belong to which group, and what their sum is multiplied by. Shared by the CPU references, the kernels and the files.
#pragma once
#include <algorithm>
#include <cstdint>

#include "kernels/iec_map.h"

namespace irq {

// What A sees of a group of L features: their mean (the paper's), their sum (IR-QLoRA's released code), or the mean times the
// number of groups (PEFT's use_qalora). none: A sees the features themselves.
enum class PoolKind : int32_t { none = 0, mean = 1, sum = 2, peft = 3 };

// How an adapter pools its input: what its file says of it.
struct InputPool {
  PoolKind kind = PoolKind::none;
  int64_t group = 0;     // L; 0: all of a row, as the base's integers per channel
  bool aligned = false;  // IEC's beta1 branch averages group means and not raw features (fidelity 5.6)
  bool operator==(const InputPool&) const = default;
  bool on() const { return kind != PoolKind::none; }
};

// Contiguous groups of a row; the last may be short. Its mean is over its real length, so that merging stays exact.
struct GroupPool {
  int64_t cols = 0;   // h; 0: no pooling
  int64_t group = 1;  // L
  double factor = 1;  // coefficient(g) = factor, or factor / length(g)
  bool mean = true;
  int64_t repeat = 1;  // each group's value goes to `repeat` outputs ...
  bool tile = false;   // ... v1 .. vg v1 .. vg, and not v1 v1 .. vg vg

  bool operator==(const GroupPool&) const = default;
  IRQ_HD int64_t groups() const { return group > 0 ? (cols + group - 1) / group : 0; }
  IRQ_HD int64_t outputs() const { return groups() * repeat; }
  IRQ_HD int64_t begin(int64_t g) const { return g * group; }
  IRQ_HD int64_t end(int64_t g) const { return (g + 1) * group < cols ? (g + 1) * group : cols; }
  IRQ_HD int64_t length(int64_t g) const { return end(g) - begin(g); }
  IRQ_HD double coefficient(int64_t g) const { return mean ? factor / static_cast<double>(length(g)) : factor; }
  // The k-th output, k < repeat, that takes the value of group g.
  IRQ_HD int64_t output(int64_t g, int64_t k) const { return tile ? k * groups() + g : g * repeat + k; }
};

// Of a linear with `cols` inputs; cols 0 where `pool` is off.
inline GroupPool group_pool_of(const InputPool& pool, int64_t cols) {
  GroupPool p;
  if (!pool.on()) return p;
  p.cols = cols, p.group = pool.group > 0 ? std::min(pool.group, cols) : cols;
  p.mean = pool.kind != PoolKind::sum;
  p.factor = pool.kind == PoolKind::peft ? static_cast<double>(p.groups()) : 1.0;
  return p;
}
// The means of the same groups, whatever A sees.
inline GroupPool means_of(GroupPool p) {
  p.mean = true, p.factor = 1;
  return p;
}
// P of IEC (IecMap) as a pooling: the mean of each slice, expanded.
inline GroupPool group_pool_of(const IecMap& map) {
  GroupPool p;
  p.cols = map.cols(), p.group = map.slice, p.repeat = map.repeat, p.tile = map.tile;
  return p;
}

}  // namespace irq
