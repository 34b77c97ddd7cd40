// CudaBackend: the CUDA kernel of every op (kernels/X.cu). Only .cu files include this.
#pragma once
#include <cublasLt.h>
#include <cuda_runtime.h>

#include "kernels/backend.h"

namespace irq {

struct StreamMeeting;

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(Precision precision);
  ~CudaBackend() override;
  Device device() const override { return Device::CUDA; }
  std::string describe() const override;
  void* allocate(int64_t bytes) override;
  void release(void* memory) override;
  int64_t free_bytes() const override;
  void upload(Tensor dst, const void* host) override;
  void download(void* host, Tensor src) override;
  void synchronize() override;
  double time_ms(const std::function<void()>& work) override;
  std::unique_ptr<Recorded> capture(const std::function<void()>& work) override;
  void copy_bytes(void* dst, const void* src, int64_t bytes) override;
  int64_t free_columns(int64_t rows, int64_t cols) const override;
  void tune_matmul(bool on) override;
  std::vector<MatmulTiming> take_matmul_timings() override;
  std::string matmul_choices(bool met_only) const override;
  bool restore_matmul_choices(const std::string& text) override;
#define IRQ_OP(name, ...) void name(__VA_ARGS__) override;
#include "kernels/ops.inc"
#undef IRQ_OP

  cudaStream_t stream() const { return stream_; }
  int sm_count() const { return properties_.multiProcessorCount; }
  int64_t shared_bytes() const { return static_cast<int64_t>(properties_.sharedMemPerBlockOptin); }  // of one block

 private:
  // Fixed scratch for two-stage reductions and cuBLASLt, allocated once with the backend: a step allocates nothing.
  void* workspace(int64_t bytes);
  // Counters by which the blocks of one launch meet; zero before and after each.
  static constexpr int kMeetings = 1 << 16;
  int* meetings() const { return meetings_; }
  // The same for nfk_layers.cu, whose blocks also exchange numbers there that outlive a launch.
  static constexpr int kStreamWords = 64 + 11 * 2 * 8192;
  StreamMeeting* stream_meeting() const { return reinterpret_cast<StreamMeeting*>(meetings_ + kMeetings); }

  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;  // of time_ms()
  cublasLtHandle_t blas_ = nullptr;
  cudaDeviceProp properties_{};
  void* workspace_ = nullptr;
  int* meetings_ = nullptr;
  bool capturing_ = false;
  struct MatmulPlans;
  std::unique_ptr<MatmulPlans> plans_;
  std::shared_ptr<void> solver_;  // cuSOLVER's handle, made when low_rank first needs it
};

}  // namespace irq
