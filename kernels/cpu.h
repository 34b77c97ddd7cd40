// CpuBackend: the plain C++ reference of every op (kernels/X.cpp), threaded with OpenMP over independent rows.
#pragma once
#include "kernels/backend.h"

namespace irq {

class CpuBackend : public Backend {
 public:
  explicit CpuBackend(Precision precision) : Backend(precision) {}
  Device device() const override { return Device::CPU; }
  std::string describe() const override;
  void* allocate(int64_t bytes) override;
  void release(void* memory) override;
  int64_t free_bytes() const override;
  void upload(Tensor dst, const void* host) override;
  void download(void* host, Tensor src) override;
  void synchronize() override {}
#define IRQ_OP(name, ...) void name(__VA_ARGS__) override;
#include "kernels/ops.inc"
#undef IRQ_OP
};

}  // namespace irq
