// Launches that begin before the kernel in front has ended (Hopper and later; elsewhere ordinary ones). A kernel that is launched
// so does at first only what does not depend on the one before, and then waits for its end.
#pragma once
#include <nv/target>

#include "kernels/common.cuh"

namespace irq {

// From here on all that the kernel in front wrote is there.
__device__ __forceinline__ void wait_for_previous_kernel() {
  NV_IF_TARGET(NV_PROVIDES_SM_90, (asm volatile("griddepcontrol.wait;" ::: "memory");))
}
// The next kernel's blocks may take what room there is. By every block; what is written later is safe: the next one waits.
__device__ __forceinline__ void let_next_kernel_begin() {
  NV_IF_TARGET(NV_PROVIDES_SM_90, (asm volatile("griddepcontrol.launch_dependents;");))
}

// kernel<<<grid, block, shared_bytes, stream>>>(args...) in clusters of `cluster` blocks, early where its code can wait (not where
// PTX of sm_80 runs).
template <class... Parameters, class... Args>
void launch_early_in_clusters(void (*kernel)(Parameters...), dim3 grid, dim3 block, int shared_bytes, dim3 cluster,
                              cudaStream_t stream, Args&&... args) {
  cudaFuncAttributes code{};
  CUDA_CHECK(cudaFuncGetAttributes(&code, kernel));
  cudaLaunchAttribute attributes[2]{};
  unsigned count = 0;
  if (code.ptxVersion >= 90) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster.x * cluster.y * cluster.z > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {cluster.x, cluster.y, cluster.z};
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = block;
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes), config.stream = stream;
  config.attrs = attributes, config.numAttrs = count;
  CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(args)...));
  CUDA_LAUNCHED();
}
template <class... Parameters, class... Args>
void launch_early(void (*kernel)(Parameters...), dim3 grid, dim3 block, int shared_bytes, cudaStream_t stream,
                  Args&&... args) {
  launch_early_in_clusters(kernel, grid, block, shared_bytes, dim3(1), stream, static_cast<Args&&>(args)...);
}

}  // namespace irq
