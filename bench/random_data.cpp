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

// out[i] = mean + deviation * values[i]
void encode(DType type, unsigned char* out, const float* values, int64_t n, double mean, double deviation) {
  for (int64_t i = 0; i < n; ++i) {
    const double x = mean + deviation * static_cast<double>(values[i]);
    const float f = static_cast<float>(x);
    unsigned char* p = out + i * size_of(type);
    switch (type) {
      case DType::F64: std::memcpy(p, &x, 8); break;
      case DType::F32: std::memcpy(p, &f, 4); break;
      case DType::F16: {
        const F16 h = to_f16(f);
        std::memcpy(p, &h, 2);
        break;
      }
      case DType::BF16: {
        const Bf16 b = to_bf16(f);
        std::memcpy(p, &b, 2);
        break;
      }
      case DType::I32: {
        const int32_t k = static_cast<int32_t>(x);
        std::memcpy(p, &k, 4);
        break;
      }
      case DType::U8: *p = static_cast<unsigned char>(x); break;
    }
  }
}

// Calls piece(i, from, count) for runs of [0, n) that lie together in a pool of `period` tiled from `start`, in parallel.
template <class F>
void for_tiles(int64_t n, int64_t period, int64_t start, F&& piece) {
  constexpr int64_t kRun = 1 << 16;
#pragma omp parallel for
  for (int64_t begin = 0; begin < n; begin += kRun)
    for (int64_t i = begin, end = std::min(n, begin + kRun); i < end;) {
      const int64_t from = (start + i) % period, count = std::min(end - i, period - from);
      piece(i, from, count);
      i += count;
    }
}

}  // namespace

RandomData::RandomData(uint64_t seed)
    : seed_(seed), pool_(make_values(kPeriod, seed, 0, [](Rng& rng, int64_t) { return rng.normal(); })) {
  Rng rng(seed, 1);
  for (int64_t i = 0; i < kPeriod; ++i) byte_pool_.push_back(static_cast<unsigned char>(rng.next_u32()));
}

// Golden-ratio steps: the starts lie far apart.
int64_t RandomData::next_start() { return static_cast<int64_t>(++draws_ * 648055u % kPeriod); }

unsigned char* RandomData::staging(int64_t bytes) {
  if (bytes > staging_bytes_) {
    staging_.reset();
    staging_ = std::make_unique_for_overwrite<unsigned char[]>(static_cast<size_t>(bytes));
    staging_bytes_ = bytes;
  }
  return staging_.get();
}

void RandomData::upload_tiled(Backend& backend, const Tensor& t, const std::vector<float>& pool, int64_t start,
                              double mean, double deviation) {
  unsigned char* host = staging(t.bytes());
  for_tiles(t.numel(), static_cast<int64_t>(pool.size()), start, [&](int64_t i, int64_t from, int64_t count) {
    encode(t.dtype, host + i * size_of(t.dtype), pool.data() + from, count, mean, deviation);
  });
  backend.upload(t, host);
}

void RandomData::normals(Backend& backend, const Tensor& t, double mean, double deviation) {
  upload_tiled(backend, t, pool_, next_start(), mean, deviation);
}

void RandomData::bytes(Backend& backend, const Tensor& t) {
  IRQ_CHECK(t.dtype == DType::U8, "%s is %s", t.name, name_of(t.dtype));
  unsigned char* host = staging(t.numel());
  for_tiles(t.numel(), kPeriod, next_start(), [&](int64_t i, int64_t from, int64_t count) {
    std::memcpy(host + i, byte_pool_.data() + from, static_cast<size_t>(count));
  });
  backend.upload(t, host);
}

void RandomData::argument(Backend& backend, const Tensor& t, const Arg& arg) {
  if (t.numel() == 0) return;
  if (arg.kind == Kind::params) return backend.upload(t, &arg.params);
  if (!arg.value) return normals(backend, t, 0, 1);
  const int64_t n = arg.kind == Kind::i32 ? t.numel() : std::min(t.numel(), kPeriod);
  upload_tiled(backend, t, make_values(n, seed_, ++draws_, arg.value), 0, 0, 1);
}

}  // namespace irq
