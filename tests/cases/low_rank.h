// Cases of low_rank: wide, tall, square, single rows and columns, ranks beyond the matrix's, zeros, dependent rows, strides.
#pragma once
#include "tests/op_case.h"

namespace irq {

enum class LowRankInput { random, zero, rank_two };

inline OpCase low_rank_case(int64_t o, int64_t h, int64_t r, LowRankInput input = LowRankInput::random,
                            int64_t spare = 0) {
  OpCase c;
  const char* words[] = {"random", "zero", "rank_two"};
  c.name = strf("low_rank/o=%ld,h=%ld,r=%ld,%s,spare=%ld", static_cast<long>(o), static_cast<long>(h),
                static_cast<long>(r), words[static_cast<int>(input)], static_cast<long>(spare));
  c.args = {{"left", Role::out, Kind::f32, o, r, nullptr, spare},
            {"right", Role::out, Kind::f32, r, h, nullptr, spare},
            {"w", Role::in, Kind::f32, o, h, nullptr, spare}};
  if (input == LowRankInput::zero) c.args[2].value = [](Rng&, int64_t) { return 0.0; };
  if (input == LowRankInput::rank_two)  // small integers, so exactly of rank 2
    c.args[2].value = [h](Rng&, int64_t at) {
      const int64_t i = at / h, j = at % h;
      return static_cast<double>((i % 7 - 3) * (j % 5 + 1) + (i % 3) * (j % 4 - 2) * 2);
    };
  c.run = [](Backend& b, const std::vector<Tensor>& t) { b.low_rank(t[0], t[1], t[2]); };
  // Both sides work in F64 and round once to F32, 2^-24 = 6e-8. A vector itself is off by 1e-16 over the relative distance of
  // its squared singular value from the next, which is above 1e-7 in every case here.
  c.tolerance_f32 = c.tolerance_bf16 = 2e-7;
  c.bytes = 4.0 * static_cast<double>(o * h + (o + h) * r);
  const double n = static_cast<double>(std::min(o, h)), m = static_cast<double>(std::max(o, h));
  c.flops = 2 * n * n * m + 4.0 / 3 * n * n * n;
  return c;
}

inline std::vector<OpCase> low_rank_cases() {
  return {low_rank_case(24, 40, 8),
          low_rank_case(40, 24, 8),
          low_rank_case(33, 33, 33),
          low_rank_case(64, 192, 16, LowRankInput::random, 3),
          low_rank_case(192, 65, 24, LowRankInput::random, 8),
          low_rank_case(1, 50, 8),
          low_rank_case(50, 1, 8),
          low_rank_case(7, 90, 16),
          low_rank_case(90, 7, 16),
          low_rank_case(20, 30, 8, LowRankInput::zero),
          low_rank_case(48, 80, 16, LowRankInput::rank_two),
          low_rank_case(80, 48, 16, LowRankInput::rank_two, 1)};
}

}  // namespace irq
