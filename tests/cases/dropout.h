// Cases of dropout. A single differing mask bit would show as an error of 1 / sqrt(elements) > 3e-3, far above 1e-5.
#pragma once
#include "tests/op_case.h"

namespace irq {

// positions, samples, params: what a mask follows, the last three arguments of every case under dropout.
inline std::vector<Arg> mask_arguments(int64_t n) {
  StepParams params;
  params.seed[0] = 0x1234567;
  params.seed[1] = 0x89abcdef;
  return {{.name = "positions",
           .role = Role::in,
           .kind = Kind::i32,
           .rows = 1,
           .cols = n,
           .value = [](Rng&, int64_t i) { return i % 7 == 5 ? -1.0 : static_cast<double>(i % 11); }},
          {.name = "samples",
           .role = Role::in,
           .kind = Kind::i32,
           .rows = 1,
           .cols = n,
           .value = [](Rng&, int64_t i) { return static_cast<double>(1000 + i / 11); }},
          {.name = "params", .role = Role::in, .kind = Kind::params, .rows = 1, .cols = 1, .params = params}};
}

inline OpCase dropout_case(int64_t n, int64_t c, double p, double beta, int64_t spare = 0) {
  OpCase k;
  k.name = strf("dropout/N=%ld,C=%ld,p=%d,beta=%d,spare=%ld", n, c, static_cast<int>(p * 1000),
                static_cast<int>(beta * 10), spare);
  k.args = {{.name = "y",
             .role = beta == 0 ? Role::out : Role::inout,
             .kind = Kind::storage,
             .rows = n,
             .cols = c,
             .spare_cols = spare},
            {.name = "x", .role = Role::in, .kind = Kind::storage, .rows = n, .cols = c, .spare_cols = spare}};
  for (const Arg& a : mask_arguments(n)) k.args.push_back(a);
  k.run = [=](Backend& b, const std::vector<Tensor>& t) { b.dropout(t[0], t[1], t[2], t[3], t[4], 9, p, beta); };
  k.bytes = static_cast<double>(n * c) * (beta == 0 ? 4 : 6);
  k.flops = static_cast<double>(n * c) * 2;
  return k;
}

inline std::vector<OpCase> dropout_cases() {
  return {dropout_case(33, 256, 0.1, 0),   dropout_case(1, 8, 0.5, 1),      dropout_case(9, 37, 0.05, 0.5),
          dropout_case(17, 40, 0.3, 1, 5), dropout_case(13, 64, 0.1, 1, 8), dropout_case(5, 2056, 0.999, 0),
          dropout_case(70, 3, 0, 0),       dropout_case(0, 16, 0.1, 0)};
}

}  // namespace irq
