// CpuBackend: memory, transfers and the description. The ops are in the files named after them.
#include "kernels/cpu.h"

#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "src/core/check.h"

namespace irq {
namespace {

constexpr int64_t kAlignment = 256;  // as cudaMalloc gives: what an Arena starts from
constexpr int64_t kHugePage = int64_t{2} << 20;

// A "Name:  123 kB" line of /proc/meminfo in bytes, -1 if there is none.
int64_t meminfo_bytes(const char* field) {
  std::FILE* file = std::fopen("/proc/meminfo", "r");
  if (!file) return -1;
  char line[256];
  long long kilobytes = -1;
  while (std::fgets(line, sizeof line, file))
    if (std::strncmp(line, field, std::strlen(field)) == 0 &&
        std::sscanf(line + std::strlen(field), ": %lld", &kilobytes) == 1)
      break;
  std::fclose(file);
  return kilobytes < 0 ? -1 : static_cast<int64_t>(kilobytes) * 1024;
}

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(Precision precision) { return std::make_unique<CpuBackend>(precision); }

std::string CpuBackend::describe() const {
  const int threads = omp_get_max_threads();
  return strf("CPU, %d thread%s", threads, threads == 1 ? "" : "s");
}

// Linux grants more memory than there is and kills the process when it is touched; so large requests are compared with
// what is available first. Small ones are not: the look-up costs more than they do.
void* CpuBackend::allocate(int64_t bytes) {
  IRQ_CHECK(bytes >= 0, "allocation of %ld bytes", bytes);
  const bool large = bytes >= kHugePage;
  const int64_t alignment = large ? kHugePage : kAlignment;
  const int64_t available = large ? free_bytes() : std::numeric_limits<int64_t>::max();
  void* memory = nullptr;
  if (bytes <= available && bytes <= std::numeric_limits<int64_t>::max() - alignment) {
    const int64_t rounded = std::max(alignment, (bytes + alignment - 1) / alignment * alignment);
    memory = std::aligned_alloc(static_cast<size_t>(alignment), static_cast<size_t>(rounded));
    if (memory && large)
      madvise(memory, static_cast<size_t>(rounded), MADV_HUGEPAGE);  // fewer TLB misses; may be refused
  }
  if (!memory)
    throw Error("not enough memory")
        .line("asked", human_bytes(static_cast<double>(bytes)))
        .line("free", human_bytes(static_cast<double>(free_bytes())))
        .line("likely", "the model or the batch is too large for this machine")
        .line("try", "a smaller --micro-batch, --recompute block, --residency packed, or a smaller model");
  return memory;
}

void CpuBackend::release(void* memory) { std::free(memory); }

int64_t CpuBackend::free_bytes() const {
  const int64_t available = meminfo_bytes("MemAvailable");
  return available < 0 ? std::numeric_limits<int64_t>::max() : available;  // unknown: let the allocator decide
}

void CpuBackend::upload(Tensor dst, const void* host) {
  const size_t row_bytes = static_cast<size_t>(dst.cols * size_of(dst.dtype));
  if (dst.numel() == 0) return;
  if (dst.contiguous()) {
    std::memcpy(dst.data, host, static_cast<size_t>(dst.bytes()));
    return;
  }
  const size_t step = static_cast<size_t>(dst.stride * size_of(dst.dtype));
  for (size_t r = 0; r < static_cast<size_t>(dst.rows); ++r)
    std::memcpy(static_cast<char*>(dst.data) + r * step, static_cast<const char*>(host) + r * row_bytes, row_bytes);
}

void CpuBackend::download(void* host, Tensor src) {
  const size_t row_bytes = static_cast<size_t>(src.cols * size_of(src.dtype));
  if (src.numel() == 0) return;
  if (src.contiguous()) {
    std::memcpy(host, src.data, static_cast<size_t>(src.bytes()));
    return;
  }
  const size_t step = static_cast<size_t>(src.stride * size_of(src.dtype));
  for (size_t r = 0; r < static_cast<size_t>(src.rows); ++r)
    std::memcpy(static_cast<char*>(host) + r * row_bytes, static_cast<const char*>(src.data) + r * step, row_bytes);
}

}  // namespace irq
