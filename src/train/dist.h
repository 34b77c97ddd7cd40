// Several GPUs of one host. Which body is linked is decided by the build: dist_single.cpp; one for NCCL does not exist yet.
#pragma once
#include <string>

namespace irq {

// "" if this build can use several GPUs; else why not ("built without NCCL").
std::string nccl_unavailable_reason();

}  // namespace irq
