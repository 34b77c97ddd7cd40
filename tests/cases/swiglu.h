// Cases of swiglu_fwd, swiglu_bwd.
#pragma once
#include <array>
#include <utility>

#include "tests/op_case.h"

namespace irq {

inline OpCase swiglu_fwd_case(int64_t n, int64_t f, int64_t spare = 0) {
  OpCase c;
  c.name = strf("swiglu_fwd/N=%ld,F=%ld,spare=%ld", n, f, spare);
  c.args = {{"h", Role::out, Kind::storage, n, f, nullptr, spare},
            {"gate_up", Role::in, Kind::storage, n, 2 * f, nullptr, spare}};
  c.run = [](Backend& b, const std::vector<Tensor>& t) { b.swiglu_fwd(t[0], t[1]); };
  c.bytes = 6.0 * double(n) * double(f);
  c.flops = 10.0 * double(n) * double(f);
  return c;
}

inline OpCase swiglu_bwd_case(int64_t n, int64_t f, bool in_place, int64_t spare = 0) {  // in place: h over dh too
  OpCase c;
  c.name = strf("swiglu_bwd/N=%ld,F=%ld,in_place=%d,spare=%ld", n, f, in_place, spare);
  c.args = {{"dgate_up", in_place ? Role::inout : Role::out, Kind::storage, n, 2 * f, nullptr, spare},
            {"dh", in_place ? Role::inout : Role::in, Kind::storage, n, f, nullptr, spare},
            {"gate_up", Role::in, Kind::storage, n, 2 * f},
            {"h", Role::out, Kind::storage, n, f, nullptr, spare}};
  c.run = [=](Backend& b, const std::vector<Tensor>& t) {
    b.swiglu_bwd(t[0], t[in_place ? 1 : 3], t[1], t[in_place ? 0 : 2]);
    if (in_place) b.copy(t[3], t[1]);
  };
  c.bytes = 12.0 * double(n) * double(f);
  c.flops = 15.0 * double(n) * double(f);
  return c;
}

inline std::vector<OpCase> swiglu_cases() {
  std::vector<OpCase> cases;
  for (const auto& [n, f, spare] : {std::array<int64_t, 3>{1, 1, 0},
                                    {5, 37, 0},
                                    {9, 64, 1},
                                    {33, 176, 8},
                                    {3, 1004, 0},
                                    {17, 2048, 0},
                                    {0, 8, 0}}) {
    cases.push_back(swiglu_fwd_case(n, f, spare));
    cases.push_back(swiglu_bwd_case(n, f, false, spare));
    cases.push_back(swiglu_bwd_case(n, f, true, spare));
  }
  return cases;
}

}  // namespace irq
