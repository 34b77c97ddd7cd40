// Arena: one block of device memory for a whole run. Saved things grow as a stack from below, scratch lives in a pool
// that grows from above, and every byte has a name. A planning arena hands out addresses without memory: running the
// real code on it gives the exact peak before the first byte is allocated.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "src/core/tensor.h"

namespace irq {

class Arena {
 public:
  static constexpr int64_t kAlign = 256;

  Arena(void* base, int64_t capacity, Device device);  // real: `base` stays the caller's
  static Arena planning(Device device);                // dry: no memory, unlimited capacity
  Arena(Arena&&) = default;
  Arena& operator=(Arena&&) = default;

  // The stack. `spare_cols` columns behind each row belong to the tensor but are not visible (Tensor::extend_cols).
  Tensor push(const char* name, DType dtype, int64_t rows, int64_t cols, int64_t spare_cols = 0);
  int64_t mark() const { return top_; }
  void pop_to(int64_t mark);

  // The pool: give back exactly what was taken, in any order.
  Tensor take(const char* name, DType dtype, int64_t rows, int64_t cols, int64_t spare_cols = 0);
  void give(const Tensor& tensor);

  int64_t capacity() const { return capacity_; }
  int64_t in_use() const { return top_ + pool_depth_; }
  int64_t peak() const { return peak_; }  // bytes the run has needed so far
  void reset_peak() { peak_ = in_use(); }
  // What was alive at the peak, by name, largest first (filled by planning arenas only).
  std::vector<std::pair<std::string, int64_t>> ledger() const;

 private:
  Tensor place(const char* name, DType dtype, int64_t rows, int64_t cols, int64_t spare_cols, int64_t offset) const;
  void note_peak();

  char* base_ = nullptr;
  int64_t capacity_ = 0;
  Device device_ = Device::CPU;
  bool planning_ = false;
  int64_t top_ = 0;
  int64_t pool_depth_ = 0;  // bytes from the capacity's end down to the deepest live scratch
  int64_t peak_ = 0;
  std::map<int64_t, int64_t> taken_;  // depth of a live piece's far end -> its bytes
  struct Piece {
    int64_t end;
    const char* name;
    int64_t bytes;
  };
  std::vector<Piece> stack_;  // live pushes, for the ledger
  std::map<int64_t, const char*> taken_names_;
  std::map<std::string, int64_t> at_peak_;
};

// Scratch for one scope.
class Scratch {
 public:
  Scratch(Arena& arena, const char* name, DType dtype, int64_t rows, int64_t cols, int64_t spare_cols = 0)
      : arena_(arena), tensor_(arena.take(name, dtype, rows, cols, spare_cols)) {}
  ~Scratch() { arena_.give(tensor_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  operator Tensor() const { return tensor_; }
  const Tensor* operator->() const { return &tensor_; }

 private:
  Arena& arena_;
  Tensor tensor_;
};

}  // namespace irq
