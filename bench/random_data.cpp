#include "bench/random_data.h"

#include <algorithm>

namespace irq {
namespace {

constexpr int64_t kChunk = 4096;  // values that one Rng makes: chunks are made in parallel

template <class F>
std::vector<float> make_values(int64_t n, uint64_t seed, uint64_t id, F&& value) {
  std::vector<float> values(static_cast<size_t>(n));
#pragma omp parallel for
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    Rng rng(seed, (id << 32) + static_cast<uint64_t>(begin / kChunk));
    for (int64_t i = begin; i < std::min(n, begin + kChunk); ++i)
      values[static_cast<size_t>(i)] = static_cast<float>(value(rng, i));
  }
  return values;
}

// t[i] = mean + deviation * pool[(start + i) mod size], in t's type.
void upload_tiled(Backend& backend, Tensor t, const std::vector<float>& pool, int64_t start, double mean,
                  double deviation) {
  const int64_t n = t.numel(), width = size_of(t.dtype), period = static_cast<int64_t>(pool.size());
  std::vector<unsigned char> host(static_cast<size_t>(n * width));
#pragma omp parallel for
  for (int64_t i = 0; i < n; ++i) {
    const double x = mean + deviation * static_cast<double>(pool[static_cast<size_t>((start + i) % period)]);
    unsigned char* p = host.data() + i * width;
    switch (t.dtype) {
      case DType::F64: std::memcpy(p, &x, 8); break;
      case DType::F32: {
        const float f = static_cast<float>(x);
        std::memcpy(p, &f, 4);
        break;
      }
      case DType::BF16: {
        const Bf16 b = to_bf16(static_cast<float>(x));
        std::memcpy(p, &b, 2);
        break;
      }
      case DType::I32: {
        const int32_t k = static_cast<int32_t>(x);
        std::memcpy(p, &k, 4);
        break;
      }
      case DType::U8: *p = static_cast<unsigned char>(x); break;
      case DType::F16: break;
    }
  }
  backend.upload(t, host.data());
}

}  // namespace

RandomData::RandomData(uint64_t seed)
    : seed_(seed), pool_(make_values(kPeriod, seed, 0, [](Rng& rng, int64_t) { return rng.normal(); })) {}

// Golden-ratio steps: the starts lie far apart.
int64_t RandomData::next_start() { return static_cast<int64_t>(++draws_ * 648055u % kPeriod); }

void RandomData::normals(Backend& backend, const Tensor& t, double mean, double deviation) {
  upload_tiled(backend, t, pool_, next_start(), mean, deviation);
}

void RandomData::bytes(Backend& backend, const Tensor& t) {
  IRQ_CHECK(t.dtype == DType::U8, "%s is %s", t.name, name_of(t.dtype));
  const int64_t start = next_start(), n = t.numel();
  std::vector<unsigned char> host(static_cast<size_t>(n));
  // The low byte of a float's mantissa is uniform.
#pragma omp parallel for
  for (int64_t i = 0; i < n; ++i)
    host[static_cast<size_t>(i)] =
        static_cast<unsigned char>(std::bit_cast<uint32_t>(pool_[static_cast<size_t>((start + i) % kPeriod)]));
  backend.upload(t, host.data());
}

void RandomData::argument(Backend& backend, const Tensor& t, const Arg& arg) {
  if (t.numel() == 0) return;
  if (arg.kind == Kind::params) return backend.upload(t, &arg.params);
  if (!arg.value) return normals(backend, t, 0, 1);
  const int64_t n = arg.kind == Kind::i32 ? t.numel() : std::min(t.numel(), kPeriod);
  upload_tiled(backend, t, make_values(n, seed_, ++draws_, arg.value), 0, 0, 1);
}

}  // namespace irq
