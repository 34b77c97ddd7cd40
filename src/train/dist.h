// Several GPUs of one host. Which body is linked is decided by the build: dist_nccl.cpp or dist_single.cpp.
#pragma once
#include <string>

namespace irq {

// "" if this build can use several GPUs; else why not ("built without NCCL").
std::string nccl_unavailable_reason();

}  // namespace irq
