// Host memory for transfers.
#pragma once
#include <cstdint>

#include "src/core/tensor.h"

namespace irq {

// Memory that transfers from and to `device` go through at the link's full speed (CUDA: pinned; where that cannot be had,
// plain memory, which only costs time), on a 2 MiB boundary. Pinning is slow: to be kept and used again. For any thread. Throws an
// Error when there is not enough.
class HostMemory {
 public:
  HostMemory(Device device, int64_t bytes);
  ~HostMemory();
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;
  unsigned char* data() const { return static_cast<unsigned char*>(data_); }
  bool pinned() const { return pinned_; }

 private:
  void* data_ = nullptr;
  bool pinned_ = false;
};

// Of host_memory.cu; cuda_absent.cpp defines both without nvcc. False: it could not be pinned.
bool pin_memory(void* data, int64_t bytes);
void unpin_memory(void* data);

}  // namespace irq
