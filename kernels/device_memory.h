// DeviceMemory: pieces of a backend's memory that go with their owner.
#pragma once
#include <algorithm>
#include <vector>

#include "kernels/backend.h"

namespace irq {

class DeviceMemory {
 public:
  explicit DeviceMemory(Backend& backend) : backend_(backend) {}
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  ~DeviceMemory() { release(); }

  // Each piece is aligned to 256 bytes; its content is undefined. Throws what Backend::allocate throws.
  void* take(int64_t bytes) {
    pieces_.reserve(pieces_.size() + 1);  // first: a piece that is there must be remembered
    pieces_.push_back(backend_.allocate(std::max<int64_t>(bytes, 256)));
    return pieces_.back();
  }
  Tensor take(DType type, int64_t rows, int64_t cols, const char* name) {
    return make_view(take(rows * cols * size_of(type)), type, rows, cols, name, backend_.device());
  }
  void release() {  // all pieces, now
    for (void* piece : pieces_) backend_.release(piece);
    pieces_.clear();
  }

 private:
  Backend& backend_;
  std::vector<void*> pieces_;
};

}  // namespace irq
