// Room on a disk, asked for before the work that needs it.
#pragma once
#include <cstdint>
#include <string>

namespace irq {

// Throws an Error that names `what` where the folder's disk has fewer than `bytes` free; says nothing where that cannot
// be found out.
void require_free_bytes(const std::string& what, const std::string& folder, int64_t bytes);

// The same where this process may not write a file of so many bytes (ulimit -f).
void require_allowed_bytes(const std::string& what, const std::string& folder, int64_t bytes);

// Bytes: free on the folder's disk, and the largest file this process may write; -1: not known, or without a limit.
struct FileRoom {
  int64_t free = -1, limit = -1;
};
FileRoom room_for_file(const std::string& folder);

}  // namespace irq
