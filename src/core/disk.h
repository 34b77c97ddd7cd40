// Room on a disk, asked for before the work that needs it.
#pragma once
#include <cstdint>
#include <string>

namespace irq {

// Throws an Error that names `what` where the folder's disk has fewer than `bytes` free; says nothing where that cannot
// be found out.
void require_free_bytes(const std::string& what, const std::string& folder, int64_t bytes);

}  // namespace irq
