// A 64-bit checksum for files: fast enough to run while the bytes stream past, not meant against an attacker.
#pragma once
#include <cstddef>
#include <cstdint>

namespace irq {

// Four independent lanes take one little-endian 64-bit word each per 32 bytes:
//   lane = rotl((lane ^ word) * kLane[i], 32) * kStep + kAdd
// Every operation is a bijection of the lane, and so is each mixing step of digest(). Hence a change inside one word is
// found with certainty, any other change with probability 1 - 2^-64. The two multiplications with a half turn between
// them carry every input bit to the whole word (a product alone only reaches upward). The last 32 bytes are padded with
// zeros; the length takes part in the digest. Four lanes hide the multiplier's latency: about 4 bytes per clock.
class Hasher {
 public:
  void update(const void* data, size_t bytes);
  uint64_t digest() const;  // of everything so far; update() may go on afterwards
  uint64_t bytes() const { return total_; }

 private:
  void blocks(const unsigned char* p, size_t count);  // 32 bytes each
  // The fractional parts of the square roots of 2, 3, 5, 7.
  uint64_t lane_[4] = {0x6A09E667F3BCC908u, 0xBB67AE8584CAA73Bu, 0x3C6EF372FE94F82Bu, 0xA54FF53A5F1D36F1u};
  unsigned char tail_[32] = {};
  size_t tail_bytes_ = 0;
  uint64_t total_ = 0;
};

uint64_t hash_bytes(const void* data, size_t bytes);

}  // namespace irq
