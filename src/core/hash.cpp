#include "src/core/hash.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace irq {
namespace {

static_assert(std::endian::native == std::endian::little, "files are little-endian and are read in place");

// Odd constants: the fractional parts of the square roots of 11, 13, 17, 19, 23, 29 with the lowest bit set.
constexpr uint64_t kLane[4] = {0x510E527FADE682D1u, 0x9B05688C2B3E6C1Fu, 0x1F83D9ABFB41BD6Bu, 0x5BE0CD19137E2179u};
constexpr uint64_t kStep = 0xCBBB9D5DC1059ED9u, kAdd = 0x629A292A367CD507u;

uint64_t mix(uint64_t x) {  // a bijection whose every output bit depends on every input bit
  x = (x ^ (x >> 32)) * kLane[0];
  x = (x ^ (x >> 29)) * kStep;
  return x ^ (x >> 32);
}

}  // namespace

void Hasher::block(const unsigned char* p) {
  uint64_t word[4];
  std::memcpy(word, p, 32);
  for (int i = 0; i < 4; ++i) lane_[i] = std::rotl((lane_[i] ^ word[i]) * kLane[i], 32) * kStep + kAdd;
}

void Hasher::update(const void* data, size_t bytes) {
  const unsigned char* p = static_cast<const unsigned char*>(data);
  if (bytes == 0) return;
  total_ += bytes;
  if (tail_bytes_ > 0) {
    const size_t n = std::min(bytes, 32 - tail_bytes_);
    std::memcpy(tail_ + tail_bytes_, p, n);
    tail_bytes_ += n, p += n, bytes -= n;
    if (tail_bytes_ < 32) return;
    block(tail_);
    tail_bytes_ = 0;
  }
  for (; bytes >= 32; p += 32, bytes -= 32) block(p);
  if (bytes > 0) std::memcpy(tail_, p, bytes);
  tail_bytes_ = bytes;
}

uint64_t Hasher::digest() const {
  Hasher h = *this;
  if (tail_bytes_ > 0) {
    std::memset(h.tail_ + tail_bytes_, 0, 32 - tail_bytes_);
    h.block(h.tail_);
  }
  uint64_t x = mix(total_ + kAdd);
  for (const uint64_t lane : h.lane_) x = mix(x ^ lane) + kAdd;
  return x;
}

uint64_t hash_bytes(const void* data, size_t bytes) {
  Hasher h;
  h.update(data, bytes);
  return h.digest();
}

}  // namespace irq
