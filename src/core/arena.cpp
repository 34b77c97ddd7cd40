#include "src/core/arena.h"

#include <algorithm>

namespace irq {
namespace {

constexpr int64_t kPlanningCapacity = int64_t{1} << 50;
char* const kPlanningBase = reinterpret_cast<char*>(int64_t{1} << 52);  // never dereferenced

int64_t padded_bytes(DType dtype, int64_t rows, int64_t stride) {
  const int64_t bytes = std::max<int64_t>(rows * stride * size_of(dtype), 1);
  return (bytes + Arena::kAlign - 1) / Arena::kAlign * Arena::kAlign;
}

}  // namespace

Arena::Arena(void* base, int64_t capacity, Device device)
    : base_(static_cast<char*>(base)), capacity_(capacity / kAlign * kAlign), device_(device) {
  IRQ_CHECK(reinterpret_cast<uintptr_t>(base) % kAlign == 0, "arena base %p is not aligned", base);
}

Arena Arena::planning(Device device) {
  Arena arena(kPlanningBase, kPlanningCapacity, device);
  arena.planning_ = true;
  return arena;
}

Tensor Arena::place(const char* name, DType dtype, int64_t rows, int64_t cols, int64_t spare_cols,
                    int64_t offset) const {
  return Tensor{base_ + offset, rows, cols, cols + spare_cols, dtype, device_, name};
}

void Arena::note_peak() {
  if (in_use() > capacity_)
    throw Error(strf("out of memory: the run needs more than the %s that were planned",
                     human_bytes(static_cast<double>(capacity_)).c_str()));
  if (in_use() <= peak_) return;
  peak_ = in_use();
  if (!planning_) return;
  at_peak_.clear();
  for (const Piece& p : stack_) at_peak_[p.name] += p.bytes;
  for (const auto& [depth, bytes] : taken_) at_peak_[taken_names_[depth]] += bytes;
}

Tensor Arena::push(const char* name, DType dtype, int64_t rows, int64_t cols, int64_t spare_cols) {
  const int64_t bytes = padded_bytes(dtype, rows, cols + spare_cols);
  const Tensor t = place(name, dtype, rows, cols, spare_cols, top_);
  top_ += bytes;
  if (planning_) stack_.push_back({top_, name, bytes});
  note_peak();
  return t;
}

void Arena::pop_to(int64_t mark) {
  IRQ_CHECK(mark <= top_, "pop to %ld of %ld", mark, top_);
  top_ = mark;
  while (!stack_.empty() && stack_.back().end > mark) stack_.pop_back();
}

// First fit from the top of memory: pieces are kept by the depth of their far end, gaps are what lies between them.
Tensor Arena::take(const char* name, DType dtype, int64_t rows, int64_t cols, int64_t spare_cols) {
  const int64_t bytes = padded_bytes(dtype, rows, cols + spare_cols);
  int64_t depth = 0;
  for (const auto& [end, size] : taken_) {
    if (end - size - depth >= bytes) break;
    depth = end;
  }
  depth += bytes;
  taken_[depth] = bytes;
  if (planning_) taken_names_[depth] = name;
  pool_depth_ = taken_.rbegin()->first;
  note_peak();
  return place(name, dtype, rows, cols, spare_cols, capacity_ - depth);
}

void Arena::give(const Tensor& tensor) {
  const int64_t depth = capacity_ - (static_cast<char*>(tensor.data) - base_);
  const auto it = taken_.find(depth);
  IRQ_CHECK(it != taken_.end(), "%s was not taken from this arena", tensor.name);
  taken_.erase(it);
  pool_depth_ = taken_.empty() ? 0 : taken_.rbegin()->first;
}

std::vector<std::pair<std::string, int64_t>> Arena::ledger() const {
  std::vector<std::pair<std::string, int64_t>> rows(at_peak_.begin(), at_peak_.end());
  std::stable_sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
  return rows;
}

}  // namespace irq
