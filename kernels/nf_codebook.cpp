// The numbers behind kernels/nf_codebook.h. Everything here is a constant or exact arithmetic: no libm, so that every
// machine and device has the same bits.
#include "kernels/nf_codebook.h"

#include <bit>

#include "src/core/check.h"

namespace irq {
namespace {

template <size_t N>
void set_floats(float* out, const std::array<uint32_t, N>& bits) {
  for (size_t i = 0; i < N; ++i) out[i] = std::bit_cast<float>(bits[i]);
}

Codebook make_nf2() {
  Codebook b{};
  b.bits = 2;
  b.zero_code = 1;  // no zero level: -0.2526 is what an all-zero block gets (times a scale near zero)
  set_floats<4>(b.level, {0xbf800000u, 0xbe8150a8u, 0x3e8150a9u, 0x3f800000u});  // paper Table 13, rounded to fp32
  set_floats<3>(b.threshold, {0xbf20542au, 0x32800000u, 0x3f20542au});           // midpoints, rounded to nearest even
  return b;
}

Codebook make_nf3() {
  Codebook b{};
  b.bits = 3;
  b.zero_code = 3;
  set_floats<8>(b.level, {0xbf800000u, 0xbef50ee3u, 0xbe5e5a6bu, 0x00000000u, 0x3e24cae3u, 0x3ead033au, 0x3f1007abu,
                          0x3f800000u});  // paper Table 12
  set_floats<7>(b.threshold,
                {0xbf3d43b9u, 0xbeb21e0cu, 0xbdde5a6bu, 0x3da4cae3u, 0x3e7f68acu, 0x3ee68948u, 0x3f4803d6u});
  return b;
}

Codebook make_nf4() {
  Codebook b{};
  b.bits = 4;
  b.zero_code = 7;
  set_floats<16>(b.level, {0xbf800000u, 0xbf3239b1u, 0xbf066b30u, 0xbeca32a0u, 0xbe91a24du, 0xbe3d353fu, 0xbdba7871u,
                           0x00000000u, 0x3da2faffu, 0x3e24cae3u, 0x3e7c04ddu, 0x3ead033au, 0x3ee1a4b8u, 0x3f1007abu,
                           0x3f3913b3u, 0x3f800000u});  // paper Table 11
  // bitsandbytes' decimal literals as compilers round them: entries 0, 8, 12, 14 are one ulp off the exact midpoints.
  set_floats<15>(b.threshold, {0xbf591cd9u, 0xbf1c5270u, 0xbeeb8480u, 0xbeadea76u, 0xbe703cecu, 0xbe0d38bcu,
                               0xbd3a7871u, 0x3d22faffu, 0x3df64863u, 0x3e5067e0u, 0x3e9582d4u, 0x3ec753f9u,
                               0x3f006d03u, 0x3f248dafu, 0x3f5c89d9u});
  return b;
}

// Plus and minus v(i,j) = 10^(i-6) * (0.1 + 0.9 (2j+1) / 2^(i+1)), i = 0..6, j = 0..2^i - 1, with 0 and +1, ascending.
// v = (2^(i+1) + 9 (2j+1)) / (2^(i+1) 10^(7-i)): both integers are exact in fp32 (10^7 = 2^7 * 78125), so the one
// division rounds the exact value once.
std::array<float, 256> make_dynamic_map() {
  std::array<float, 256> map{};
  int power_of_ten = 10000000;
  size_t rank = 0;  // of v among the 127 positive values: they ascend with i, then j
  for (int i = 0; i <= 6; ++i, power_of_ten /= 10)
    for (int j = 0; j < (1 << i); ++j, ++rank) {
      const float v = static_cast<float>((2 << i) + 9 * (2 * j + 1)) /
                      (static_cast<float>(2 << i) * static_cast<float>(power_of_ten));
      map[128 + rank] = v;
      map[126 - rank] = -v;
    }
  map[127] = 0.0f;
  map[255] = 1.0f;
  return map;
}

constexpr std::array<int64_t, 65> kEntropyTerms = {0,
                                                   0,
                                                   2199023255552,
                                                   5228054097396,
                                                   8796093022208,
                                                   12764934695942,
                                                   17053177961447,
                                                   21607035660676,
                                                   26388279066624,
                                                   31368324584373,
                                                   36524985669644,
                                                   41840538192064,
                                                   47300495456206,
                                                   52892794473744,
                                                   58607234110215,
                                                   64435074574804,
                                                   70368744177664,
                                                   76401619674970,
                                                   82527858468714,
                                                   88742268204635,
                                                   95040203894809,
                                                   101417485663796,
                                                   107870332195200,
                                                   114395306301946,
                                                   120989269979036,
                                                   127649346959422,
                                                   134372891269663,
                                                   141157460629679,
                                                   148000793798159,
                                                   154900791158070,
                                                   161855497982888,
                                                   168863089936215,
                                                   175921860444160,
                                                   183030209647543,
                                                   190186634694325,
                                                   197389721174973,
                                                   204638135537364,
                                                   211930618345036,
                                                   219265978264759,
                                                   226643086687372,
                                                   234060872900657,
                                                   241518319745180,
                                                   249014459694183,
                                                   256548371307000,
                                                   264119176012545,
                                                   271726035185345,
                                                   279368147481588,
                                                   287044746406922,
                                                   294755098091320,
                                                   302498499249459,
                                                   310274275307643,
                                                   318081778680635,
                                                   325920387183678,
                                                   333789502566716,
                                                   341688549159262,
                                                   349616972615685,
                                                   357574238751773,
                                                   365559832464421,
                                                   373573256727148,
                                                   381614031654912,
                                                   389681693632336,
                                                   397775794500076,
                                                   405895900794542,
                                                   414041593036692,
                                                   422212465065984};

// fl(-p * log2f(p)), p = c/64, with log2f as the released code's GPU computes it. Terms 6, 12, 17 and 20 are one ulp off
// correct rounding (+1, +1, -1, +1): with these the 4,096 entropies that the released code computed on an H100 come out
// bit for bit. Counts of 29, 32 and 34 and more do not occur there; their terms are correctly rounded.
constexpr std::array<uint32_t, 65> kEntropyTermsFp32 = {
    0x00000000u, 0x3dc00000u, 0x3e200000u, 0x3e53ebfcu, 0x3e800000u, 0x3e931f75u, 0x3ea3ebfcu, 0x3eb2c9c2u, 0x3ec00000u,
    0x3ecbc3f1u, 0x3ed63eeau, 0x3edf91ecu, 0x3ee7d7f7u, 0x3eef277eu, 0x3ef59385u, 0x3efb2c52u, 0x3f000000u, 0x3f020d72u,
    0x3f03c3f1u, 0x3f052852u, 0x3f063eeau, 0x3f070b9bu, 0x3f0791ecu, 0x3f07d512u, 0x3f07d7f6u, 0x3f079d48u, 0x3f07277eu,
    0x3f0678dfu, 0x3f059385u, 0x3f047966u, 0x3f032c52u, 0x3f01adfeu, 0x3f000000u, 0x3efc47abu, 0x3ef835cau, 0x3ef3ccfeu,
    0x3eef0fc6u, 0x3eea0077u, 0x3ee4a14bu, 0x3edef45au, 0x3ed8fba7u, 0x3ed2b913u, 0x3ecc2e6du, 0x3ec55d6cu, 0x3ebe47b2u,
    0x3eb6eed1u, 0x3eaf5446u, 0x3ea7797fu, 0x3e9f5fd9u, 0x3e9708a3u, 0x3e8e7520u, 0x3e85a685u, 0x3e793bf1u, 0x3e66b935u,
    0x3e53c6f6u, 0x3e406748u, 0x3e2c9c28u, 0x3e186780u, 0x3e03cb2cu, 0x3ddd91e6u, 0x3db2c523u, 0x3d873362u, 0x3d35bfc1u,
    0x3cb736f6u, 0x00000000u};

}  // namespace

const Codebook& nf_codebook(int bits) {
  static const Codebook nf2 = make_nf2(), nf3 = make_nf3(), nf4 = make_nf4();
  IRQ_CHECK(bits >= 2 && bits <= 4, "no %d-bit codebook", bits);
  return bits == 2 ? nf2 : bits == 3 ? nf3 : nf4;
}

const std::array<float, 256>& dynamic_map() {
  static const std::array<float, 256> map = make_dynamic_map();
  return map;
}

const std::array<int64_t, 65>& entropy_terms() { return kEntropyTerms; }

const std::array<float, 65>& entropy_terms_fp32() {
  static const std::array<float, 65> terms = [] {
    std::array<float, 65> t{};
    set_floats<65>(t.data(), kEntropyTermsFp32);
    return t;
  }();
  return terms;
}

}  // namespace irq
