// Which of several kernels for the same op runs, where a newer GPU has kernels of its own.
#pragma once

namespace irq {

// For the whole process; --kernels sets it. On: none of the kernels that are compiled for sm_90a alone. Off at first. Set it between ops.
void use_only_sm80_kernels(bool on);
// Whether a GPU of this compute capability is to run kernels for sm_90a: their code runs on 9.0 and on nothing newer.
bool runs_sm90_kernels(int major, int minor);

}  // namespace irq
