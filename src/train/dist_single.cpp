// Linked where there is no NCCL: one device.
#include "src/train/dist.h"

namespace irq {

std::string nccl_unavailable_reason() { return "built without NCCL"; }

}  // namespace irq
