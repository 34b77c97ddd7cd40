#include "src/ops/matmul_rate.h"

#include <algorithm>
#include <array>
#include <vector>

#include "kernels/device_memory.h"
#include "src/core/rng.h"

namespace irq {
namespace {

constexpr int64_t kSpareBytes = int64_t{128} << 20;  // what others may need meanwhile
constexpr int64_t kPattern = int64_t{1} << 16;       // values made on the host; the rest repeats them

void fill_randomly(Backend& backend, const Tensor& t) {
  const int64_t n = std::min(kPattern, t.numel());
  std::vector<float> values(static_cast<size_t>(n));
  Rng rng(1, 1);
  for (float& x : values) x = static_cast<float>(rng.normal());
  std::vector<Bf16> narrow(values.size());
  std::transform(values.begin(), values.end(), narrow.begin(), to_bf16);
  const bool wide = t.dtype == DType::F32;
  IRQ_CHECK(wide || t.dtype == DType::BF16, "no values for %s", name_of(t.dtype));
  backend.upload(make_view(t.data, t.dtype, 1, n, "gemm", backend.device()),
                 wide ? static_cast<const void*>(values.data()) : static_cast<const void*>(narrow.data()));
  char* bytes = static_cast<char*>(t.data);
  const int64_t all = t.numel() * size_of(t.dtype);
  for (int64_t done = n * size_of(t.dtype); done < all; done += std::min(done, all - done))
    backend.copy_bytes(bytes + done, bytes, std::min(done, all - done));
}

}  // namespace

double square_matmul_rate(Backend& backend, int64_t n) {
  const DType dtype = backend.precision().storage;
  const int64_t bytes = n * n * size_of(dtype);
  if (backend.free_bytes() < 3 * bytes + kSpareBytes) return 0;
  DeviceMemory memory(backend);
  std::array<Tensor, 3> m;
  for (Tensor& t : m) t = memory.take(dtype, n, n, "gemm");
  fill_randomly(backend, m[1]), fill_randomly(backend, m[2]);
  std::vector<double> ms;
  for (int i = 0; i < 6; ++i)
    ms.push_back(backend.time_ms([&] { backend.matmul(m[0], m[1], false, m[2], true, 1, 0, {}); }));
  std::sort(ms.begin() + 1, ms.end());  // the first one chose its algorithm and loaded kernels
  const double side = static_cast<double>(n);
  return ms[3] > 0 ? 2e3 * side * side * side / ms[3] : 0;
}

}  // namespace irq
