// HostMemory: large pages, pinned where a GPU will read them.
#include "kernels/host_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>

#include "src/core/check.h"

namespace irq {

HostMemory::HostMemory(Device device, int64_t bytes) {
  constexpr int64_t kHugePage = int64_t{2} << 20;
  IRQ_CHECK(bytes >= 0 && bytes < int64_t{1} << 60, "host memory of %ld bytes", bytes);
  const int64_t rounded = (std::max<int64_t>(bytes, 1) + kHugePage - 1) / kHugePage * kHugePage;
  data_ = std::aligned_alloc(static_cast<size_t>(kHugePage), static_cast<size_t>(rounded));
  if (!data_)
    throw Error("not enough memory (host)")
        .line("asked", human_bytes(static_cast<double>(bytes)))
        .line("try", "a machine with more memory, or end other programs");
  madvise(data_, static_cast<size_t>(rounded), MADV_HUGEPAGE);  // fewer pages to fault in and to pin; may be refused
  pinned_ = device == Device::CUDA && pin_memory(data_, rounded);
}

HostMemory::~HostMemory() {
  if (pinned_) unpin_memory(data_);
  std::free(data_);
}

}  // namespace irq
