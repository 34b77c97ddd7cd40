// Cases of rope.
#pragma once
#include <cmath>

#include "tests/op_case.h"

namespace irq {

// The angle of entry `index` of a (T, D/2) table: position * 10000^(-2j/D).
inline double rope_angle(int64_t index, int head_dim) {
  const int64_t half = head_dim / 2, position = index / half, j = index % half;
  return double(position) * std::pow(10000.0, -2.0 * double(j) / head_dim);
}

inline OpCase rope_case(int64_t n, int64_t heads, int head_dim, bool inverse, int64_t spare = 0,
                        int64_t positions = 100) {
  OpCase c;
  c.name = strf("rope/N=%ld,H=%ld,D=%d,inverse=%d,spare=%ld", n, heads, head_dim, inverse, spare);
  const auto position = [=](Rng& rng, int64_t i) { return i % 6 == 4 ? -1.0 : double(rng.below(uint64_t(positions))); };
  c.args = {{"x", Role::inout, Kind::storage, n, heads * head_dim, nullptr, spare},
            {"cos", Role::in, Kind::master, positions, head_dim / 2,
             [=](Rng&, int64_t i) { return std::cos(rope_angle(i, head_dim)); }},
            {"sin", Role::in, Kind::master, positions, head_dim / 2,
             [=](Rng&, int64_t i) { return std::sin(rope_angle(i, head_dim)); }},
            {"positions", Role::in, Kind::i32, 1, n, position}};
  c.run = [=](Backend& b, const std::vector<Tensor>& t) { b.rope(t[0], t[1], t[2], t[3], head_dim, inverse); };
  c.bytes = 4.0 * double(n) * double(heads * head_dim);
  c.flops = 3.0 * double(n) * double(heads * head_dim);
  return c;
}

inline std::vector<OpCase> rope_cases() {
  return {rope_case(1, 1, 2, false),    rope_case(7, 3, 8, true),      rope_case(9, 2, 64, false, 64),
          rope_case(5, 4, 128, true),   rope_case(6, 3, 12, false, 1), rope_case(33, 40, 128, false, 8),
          rope_case(8, 5, 48, true, 4), rope_case(0, 2, 16, false)};
}

}  // namespace irq
