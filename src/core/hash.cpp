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

// The lanes stay in scalar registers: as an AVX2 vector, which multiplies 64-bit words only in pieces, they take three times
// as long, so the compiler is told not to make one.
[[gnu::optimize("no-tree-vectorize", "no-tree-slp-vectorize")]] void Hasher::blocks(const unsigned char* p,
                                                                                    size_t count) {
  uint64_t a = lane_[0], b = lane_[1], c = lane_[2], d = lane_[3];
  for (; count > 0; --count, p += 32) {
    uint64_t word[4];
    std::memcpy(word, p, 32);
    a = std::rotl((a ^ word[0]) * kLane[0], 32) * kStep + kAdd;
    b = std::rotl((b ^ word[1]) * kLane[1], 32) * kStep + kAdd;
    c = std::rotl((c ^ word[2]) * kLane[2], 32) * kStep + kAdd;
    d = std::rotl((d ^ word[3]) * kLane[3], 32) * kStep + kAdd;
  }
  lane_[0] = a, lane_[1] = b, lane_[2] = c, lane_[3] = d;
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
    blocks(tail_, 1);
    tail_bytes_ = 0;
  }
  blocks(p, bytes / 32);
  p += bytes / 32 * 32, bytes %= 32;
  if (bytes > 0) std::memcpy(tail_, p, bytes);
  tail_bytes_ = bytes;
}

uint64_t Hasher::digest() const {
  Hasher h = *this;
  if (tail_bytes_ > 0) {
    std::memset(h.tail_ + tail_bytes_, 0, 32 - tail_bytes_);
    h.blocks(h.tail_, 1);
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
