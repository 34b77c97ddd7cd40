#include "kernels/kernel_choice.h"

namespace irq {
namespace {
bool only_sm80 = false;
}

void use_only_sm80_kernels(bool on) { only_sm80 = on; }
bool runs_sm90_kernels(int major, int minor) { return major == 9 && minor == 0 && !only_sm80; }

}  // namespace irq
