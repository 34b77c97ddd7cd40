// What the fuzzers share: an input as a file without a disk, and the one exception a parser may throw.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string>

#include "src/core/check.h"

namespace irq {

// The bytes under a name that can be opened, mapped and read: /proc/self/fd/N of an anonymous file.
class FuzzFile {
 public:
  FuzzFile(const void* data, size_t bytes) : fd_(memfd_create("fuzz", 0)) {
    if (fd_ < 0 || write(fd_, data, bytes) != static_cast<ssize_t>(bytes)) std::abort();
  }
  FuzzFile(const FuzzFile&) = delete;
  FuzzFile& operator=(const FuzzFile&) = delete;
  ~FuzzFile() { close(fd_); }
  std::string path() const { return "/proc/self/fd/" + std::to_string(fd_); }

 private:
  int fd_;
};

// Runs `body`; an Error is the right answer to bad input, anything else is a finding.
template <class Body>
int fuzz(const Body& body) {
  try {
    body();
  } catch (const Error&) {}
  return 0;
}

}  // namespace irq
