// Choosing a device: names to backends, each wrapped in the checks. And what a backend measures with unless it knows better.
#include "kernels/backend.h"

#include <chrono>

namespace irq {
namespace {

constexpr Precision kCpuProduction{DType::F32, DType::F32};
constexpr Precision kCudaProduction{DType::BF16, DType::F32};

void check_precision(Device device, Precision p) {
  const bool cpu_ok = p.storage == p.master && (p.storage == DType::F32 || p.storage == DType::F64);
  const bool cuda_ok = p.master == DType::F32 && (p.storage == DType::F32 || p.storage == DType::BF16);
  IRQ_CHECK(device == Device::CPU ? cpu_ok : cuda_ok, "no backend stores %s with masters in %s on this device",
            name_of(p.storage), name_of(p.master));
}

}  // namespace

namespace {
class Rerun final : public Recorded {
 public:
  explicit Rerun(const std::function<void()>& work) : work_(work) {}
  void launch() override { work_(); }

 private:
  std::function<void()> work_;
};
}  // namespace

std::unique_ptr<Recorded> Backend::capture(const std::function<void()>& work) { return std::make_unique<Rerun>(work); }

double Backend::time_ms(const std::function<void()>& work) {
  synchronize();
  const auto start = std::chrono::steady_clock::now();
  work();
  synchronize();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

void Backend::copy_bytes(void* dst, const void* src, int64_t bytes) {
  copy(make_view(dst, DType::F32, 1, bytes / 4, "copy", device()),
       make_view(const_cast<void*>(src), DType::F32, 1, bytes / 4, "original", device()));
}

std::unique_ptr<CheckedBackend> make_backend(Device device, Precision precision) {
  check_precision(device, precision);
  return std::make_unique<CheckedBackend>(device == Device::CPU ? make_cpu_backend(precision)
                                                                : make_cuda_backend(precision));
}

std::unique_ptr<CheckedBackend> make_backend(const std::string& device) {
  if (device == "cpu") return make_backend(Device::CPU, kCpuProduction);
  if (device == "cuda") {
    if (const std::string reason = cuda_unavailable_reason(); !reason.empty())
      throw Error("--device cuda: there is no usable GPU")
          .line("reason", reason)
          .line("try",
                "--device cpu (slow, same results up to rounding), or --device auto to use a GPU where there is one");
    return make_backend(Device::CUDA, kCudaProduction);
  }
  if (device == "auto") return make_backend(cuda_unavailable_reason().empty() ? "cuda" : "cpu");
  throw Error(strf("--device %s: no such device", device.c_str()), Exit::usage).line("expected", "auto, cpu or cuda");
}

}  // namespace irq
