// The algorithms that matmuls of a GPU were timed to run fastest with, kept from one run to the next: one small text file
// per GPU model and library version in $XDG_CACHE_HOME/irq, or ~/.cache/irq.
#pragma once
#include <string>

#include "kernels/backend.h"

namespace irq {

// The file for this backend; "" where there is nothing to choose (a CPU) or no place for it.
std::string matmul_cache_path(const Backend& backend);
// Restores what the file holds. A missing, unreadable or foreign file is ignored: everything is then timed again.
void load_matmul_cache(Backend& backend);
// Writes all choices, atomically. Returns why it could not, "" if it could: a run does not end for want of a cache.
std::string save_matmul_cache(const Backend& backend);

// A line for people: "matmul: 38 shapes timed, 12 take another algorithm than the library's first".
std::string describe(const std::vector<MatmulTiming>& timings);

}  // namespace irq
