// The fuzzer's bytes as a file in memory that the readers can open by name.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <string>

#include "src/core/check.h"

namespace irq {

class FuzzFile {
 public:
  FuzzFile() : fd_(memfd_create("fuzz", MFD_CLOEXEC)) { IRQ_CHECK(fd_ >= 0, "no memfd"); }
  FuzzFile(const FuzzFile&) = delete;
  ~FuzzFile() { close(fd_); }
  void set(const uint8_t* data, size_t size) {
    const bool good = ftruncate(fd_, 0) == 0 && (size == 0 || pwrite(fd_, data, size, 0) == static_cast<ssize_t>(size));
    IRQ_CHECK(good, "the memfd cannot be written");
  }
  std::string path() const { return "/proc/self/fd/" + std::to_string(fd_); }

 private:
  int fd_;
};

}  // namespace irq
