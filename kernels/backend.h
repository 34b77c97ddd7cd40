// Backend: one device. Every op is declared once, in ops.inc; here are memory, transfers and the step parameters.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/dequant_group.h"
#include "kernels/iec.h"
#include "kernels/lora_dropout.h"
#include "kernels/nfk_layers.h"
#include "kernels/quantized_matrix.h"
#include "src/core/tensor.h"

namespace irq {

// What changes from one optimizer step to the next. It lives on the device so that a captured step can be replayed.
struct StepParams {
  double lr = 0;
  double inv_tokens = 1;  // 1 / trainable tokens of the whole step (all micro-batches)
  double bias1 = 1;       // 1 - beta1^t
  double bias2 = 1;       // 1 - beta2^t
  double clip = 0;        // largest gradient norm, 0 = no clipping
  uint32_t seed[2] = {0, 0};
};
constexpr double kAdamBeta1 = 0.9, kAdamBeta2 = 0.999, kAdamEps = 1e-8;

// Work that was recorded once and can be done again, with the same memory and whatever lies there by then. Made by
// Backend::capture, and must not outlive its backend.
class Recorded {
 public:
  virtual ~Recorded() = default;
  virtual void launch() = 0;
};

// The tables and positions of the op rope, for ops that turn on their way.
struct Rope {
  Tensor cos_table, sin_table;  // (T, D/2) M
  Tensor positions;             // (1, N) i32
};

// One shape of matmul whose candidate algorithms were timed.
struct MatmulTiming {
  int64_t m = 0, n = 0, k = 0;
  bool transpose_a = false, transpose_b = false;
  int candidates = 0, chosen = 0;      // 0: what the library itself puts first
  double first_us = 0, chosen_us = 0;  // what those two take
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual Device device() const = 0;
  Precision precision() const { return precision_; }
  virtual std::string describe() const = 0;  // "CPU, 2 threads" | "NVIDIA H100 80GB HBM3, sm_90, 85.0 GB"

  // Device memory. allocate throws an Error when there is not enough. free_bytes: what could be allocated now. release
  // never throws.
  virtual void* allocate(int64_t bytes) = 0;
  virtual void release(void* memory) = 0;
  virtual int64_t free_bytes() const = 0;

  // Host <-> device. dst and src have the same shape and dtype, host side contiguous. download waits for the result.
  virtual void upload(Tensor dst, const void* host) = 0;
  virtual void download(void* host, Tensor src) = 0;
  virtual void synchronize() = 0;

  // For measuring. Milliseconds the device needs for what `work` enqueues, between two events on its stream; nothing is
  // waited for before the first one, so a device that is still busy hides the host's launch times. Waits for the end.
  // By default the wall clock around synchronize().
  virtual double time_ms(const std::function<void()>& work);
  // Records the ops that `work` calls without doing them (CUDA: one graph, so that a launch costs the host one call however
  // many kernels it holds). `work` may compute and copy on the device, not upload, download or allocate; what it decides on
  // the host is decided then. It must have run once before. By default `work` itself is kept and called.
  virtual std::unique_ptr<Recorded> capture(const std::function<void()>& work);
  // The device's own copy (the driver's on CUDA): the ceiling for everything that moves bytes. bytes % 4 = 0.
  virtual void copy_bytes(void* dst, const void* src, int64_t bytes);
  // A dry backend checks shapes and does nothing else (memory planning).
  virtual bool dry() const { return false; }

  // Columns that a large product (rows, cols) can have more and take no longer, as its last wave of tiles has room for them.
  virtual int64_t free_columns(int64_t rows, int64_t cols) const {
    return static_cast<void>(rows), static_cast<void>(cols), 0;
  }

  // Several algorithms can run the same matmul; their results differ by rounding, and each gives the same bits every
  // time. With tuning on, a shape's candidates are timed when it is first met (not while a graph is captured); off, as at
  // first, the library's own first choice runs. Backends without a choice ignore all of this.
  virtual void tune_matmul(bool on) { static_cast<void>(on); }
  // What was timed since the last call.
  virtual std::vector<MatmulTiming> take_matmul_timings() { return {}; }
  // The choices as text: a line that names GPU and library, then one line per shape. met_only: without those that were
  // restored and not met. "" where there is nothing to choose.
  virtual std::string matmul_choices(bool met_only) const { return static_cast<void>(met_only), ""; }
  // Takes such a text back, for shapes not met yet. False if it is another GPU's or library's, or no such text: ignored.
  virtual bool restore_matmul_choices(const std::string& text) { return static_cast<void>(text), false; }

#define IRQ_OP(name, ...) virtual void name(__VA_ARGS__) = 0;
#include "kernels/ops.inc"
#undef IRQ_OP

 protected:
  explicit Backend(Precision precision) : precision_(precision) {}
  Precision precision_;
};

// One op's share of a run, filled when profiling is on.
struct OpTime {
  std::string op;
  int64_t calls = 0;
  double ms = 0;
};

// Checks shapes, then calls `inner`; with `inner` null it is a dry run.  Profiling synchronizes around each op.
class CheckedBackend final : public Backend {
 public:
  CheckedBackend(std::unique_ptr<Backend> inner);      // the real thing
  CheckedBackend(Device device, Precision precision);  // dry
  ~CheckedBackend() override;
  void set_profile(bool on);
  const std::vector<OpTime>& profile() const;

  Device device() const override;
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
  bool dry() const override { return inner_ == nullptr; }
  int64_t free_columns(int64_t rows, int64_t cols) const override {
    return inner_ ? inner_->free_columns(rows, cols) : 0;
  }
  void tune_matmul(bool on) override;
  std::vector<MatmulTiming> take_matmul_timings() override;
  std::string matmul_choices(bool met_only) const override;
  bool restore_matmul_choices(const std::string& text) override;
#define IRQ_OP(name, ...) void name(__VA_ARGS__) override;
#include "kernels/ops.inc"
#undef IRQ_OP

 private:
  struct Scope;
  std::unique_ptr<Backend> inner_;
  Device device_ = Device::CPU;
  bool profiling_ = false;
  std::vector<OpTime> times_;
};

std::unique_ptr<Backend> make_cpu_backend(Precision precision);
// Throws an Error that names the reason when there is no usable GPU. cuda_absent.cpp defines both without nvcc.
std::unique_ptr<Backend> make_cuda_backend(Precision precision);
// "" if a GPU is usable; else why not, in words for the first line of a run ("built without nvcc", "no driver", ...).
std::string cuda_unavailable_reason();

// "auto" | "cpu" | "cuda" -> a checked backend in its production precision. Storage can be forced (proof modes).
std::unique_ptr<CheckedBackend> make_backend(const std::string& device);
std::unique_ptr<CheckedBackend> make_backend(Device device, Precision precision);

}  // namespace irq
