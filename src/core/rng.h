// Philox4x32-10 (Salmon et al., SC 2011): counter-based random bits, the same on CPU and GPU.
#pragma once
#include <array>
#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define IRQ_HD __host__ __device__
#else
#define IRQ_HD
#endif

namespace irq {

struct Philox4 {
  uint32_t x, y, z, w;
};

// Rounds of the keyed bijection on a 128-bit counter. A caller that has done the first k of the ten rounds itself passes
// the keys plus k times the Weyl constants.
constexpr uint32_t kPhiloxMultiplier[2] = {0xD2511F53u, 0xCD9E8D57u};
constexpr uint32_t kPhiloxWeyl[2] = {0x9E3779B9u, 0xBB67AE85u};
template <int kRounds = 10>
IRQ_HD inline Philox4 philox(Philox4 c, uint32_t key0, uint32_t key1) {
  constexpr uint64_t kFirst = kPhiloxMultiplier[0], kSecond = kPhiloxMultiplier[1];
  constexpr uint32_t kStep0 = kPhiloxWeyl[0], kStep1 = kPhiloxWeyl[1];
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t p0 = kFirst * c.x, p1 = kSecond * c.z;
    c = {static_cast<uint32_t>(p1 >> 32) ^ c.y ^ key0, static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c.w ^ key1, static_cast<uint32_t>(p0)};
    key0 += kStep0;
    key1 += kStep1;
  }
  return c;
}

// A sequential stream over philox for host-side use (initialisation, shuffles, sampling). Stream `id`s are independent.
class Rng {
 public:
  explicit Rng(uint64_t seed, uint64_t id = 0) : seed_(seed), id_(id) {}
  uint32_t next_u32();
  double uniform();                // [0, 1), 53 bits
  double normal();                 // N(0, 1), Box-Muller
  uint64_t below(uint64_t bound);  // uniform in [0, bound), without modulo bias

 private:
  uint64_t seed_, id_, block_ = 0;
  int used_ = 4;
  std::array<uint32_t, 4> bits_{};
};

}  // namespace irq
