// Linked in place of kernels/*.cu where there is no nvcc: the same functions, which say so.
#include "kernels/backend.h"
#include "kernels/host_memory.h"

namespace irq {

std::string cuda_unavailable_reason() { return "built without CUDA (CUDA=0, or no nvcc)"; }

std::unique_ptr<Backend> make_cuda_backend(Precision) {
  throw Error("no usable GPU")
      .line("reason", cuda_unavailable_reason())
      .line("try", "install the CUDA Toolkit and run make again, or use --device cpu");
}

bool pin_memory(void*, int64_t) { return false; }
void unpin_memory(void*) {}

}  // namespace irq
