// Temporary: weak bodies for ops that are not merged yet.
#include "kernels/cuda.h"
namespace irq {
#define IRQ_OP(name, ...) __attribute__((weak)) void CudaBackend::name(__VA_ARGS__) { IRQ_CHECK(false, "op not written yet: %s", #name); }
#include "kernels/ops.inc"
#undef IRQ_OP
}
