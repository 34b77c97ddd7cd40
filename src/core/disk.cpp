#include "src/core/disk.h"

#include <sys/resource.h>
#include <sys/statvfs.h>

#include "src/core/check.h"

namespace irq {
namespace {

std::string both_ways(int64_t bytes) {
  return with_commas(bytes) + " bytes (" + human_bytes(static_cast<double>(bytes)) + ")";
}

}  // namespace

FileRoom room_for_file(const std::string& folder) {
  FileRoom room;
  struct statvfs disk;
  if (statvfs(folder.c_str(), &disk) == 0)
    room.free = static_cast<int64_t>(static_cast<double>(disk.f_bavail) * static_cast<double>(disk.f_frsize));
  struct rlimit allowed;
  if (getrlimit(RLIMIT_FSIZE, &allowed) == 0 && allowed.rlim_cur != RLIM_INFINITY)
    room.limit = static_cast<int64_t>(allowed.rlim_cur);
  return room;
}

void require_free_bytes(const std::string& what, const std::string& folder, int64_t bytes) {
  const int64_t free = room_for_file(folder).free;
  if (bytes <= 0 || free < 0 || free >= bytes) return;
  throw Error(what + ": not enough disk space to write it")
      .line("needs", both_ways(bytes))
      .line("free", both_ways(free) + " in " + folder)
      .line("try", "free some space, or name a file on another disk");
}

void require_allowed_bytes(const std::string& what, const std::string& folder, int64_t bytes) {
  const auto [free, limit] = room_for_file(folder);
  if (limit < 0 || bytes <= limit) return;
  Error e(what + ": cannot be written: File too large");  // as the write itself would say, later
  e.line("needs", both_ways(bytes));
  e.line("allowed", both_ways(limit) + " by the file size limit (ulimit -f)");
  if (free >= 0) e.line("free", both_ways(free) + " in " + folder);
  throw e.line("try", "ulimit -f unlimited    then the same command again");
}

}  // namespace irq
