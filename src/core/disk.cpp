#include "src/core/disk.h"

#include <sys/statvfs.h>

#include "src/core/check.h"

namespace irq {

void require_free_bytes(const std::string& what, const std::string& folder, int64_t bytes) {
  struct statvfs disk;
  if (bytes <= 0 || statvfs(folder.c_str(), &disk) != 0) return;
  const double free_bytes = static_cast<double>(disk.f_bavail) * static_cast<double>(disk.f_frsize);
  if (free_bytes >= static_cast<double>(bytes)) return;
  throw Error(what + ": not enough disk space to write it")
      .line("needs", with_commas(bytes) + " bytes (" + human_bytes(static_cast<double>(bytes)) + ")")
      .line("free",
            with_commas(static_cast<long long>(free_bytes)) + " bytes (" + human_bytes(free_bytes) + ") in " + folder)
      .line("try", "free some space, or name a file on another disk");
}

}  // namespace irq
