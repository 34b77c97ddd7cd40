// Cases of argmax. The index is exact on every device, so the tolerance is 0.
#pragma once
#include "tests/op_case.h"

namespace irq {

// levels: how many values there are: few make ties.
inline OpCase argmax_case(int64_t n, int64_t vocab, int64_t levels, int64_t spare) {
  OpCase c;
  c.name = strf("argmax/N=%ld,V=%ld,levels=%ld,spare=%ld", static_cast<long>(n), static_cast<long>(vocab),
                static_cast<long>(levels), static_cast<long>(spare));
  const auto value = [=](Rng& r, int64_t i) {
    if (i / vocab == 2) return i % 3 == 0 ? double(i % 7) : std::nan("");  // some are no numbers
    if (i / vocab == 3) return std::nan("");
    if (i / vocab == 4) return i % 5 == 0 ? double(INFINITY) : 1.0;
    return levels > 0 ? static_cast<double>(r.below(static_cast<uint32_t>(levels)))
                      : static_cast<double>(static_cast<float>(r.normal()));
  };
  c.args = {{"index", Role::out, Kind::i32, 1, n}, {"logits", Role::in, Kind::master, n, vocab, value, spare}};
  c.run = [](Backend& b, const std::vector<Tensor>& t) { b.argmax(t[0], t[1]); };
  c.tolerance_f32 = c.tolerance_bf16 = 0;
  c.bytes = 4.0 * static_cast<double>(n * vocab);
  return c;
}

inline std::vector<OpCase> argmax_cases() {
  return {argmax_case(6, 259, 0, 5), argmax_case(5, 1, 0, 0), argmax_case(2, 9001, 3, 0), argmax_case(1, 32000, 0, 0),
          argmax_case(0, 7, 0, 0)};
}

}  // namespace irq
