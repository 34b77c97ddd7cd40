// Cases of cross_entropy. N(0, 3^2) logits: probabilities from 1e-7 to 0.5, so the gradient is not only its -1 at the target.
#pragma once
#include "tests/op_case.h"

namespace irq {

inline OpCase cross_entropy_case(int64_t rows, int64_t cols, int64_t vocab, bool want_grad, int64_t spare = 0) {
  StepParams params;
  params.inv_tokens = 1.0 / 7;
  OpCase k;
  k.name = strf("cross_entropy/L=%ld,cols=%ld,vocab=%ld,grad=%d,spare=%ld", rows, cols, vocab, want_grad, spare);
  k.args = {{.name = "nll", .role = Role::out, .kind = Kind::master, .rows = 1, .cols = rows},
            {.name = "logits",
             .role = want_grad ? Role::inout : Role::in,
             .kind = Kind::storage,
             .rows = rows,
             .cols = cols,
             .value = [](Rng& rng, int64_t) { return 3 * rng.normal(); },
             .spare_cols = spare},
            {.name = "targets",
             .role = Role::in,
             .kind = Kind::i32,
             .rows = 1,
             .cols = rows,
             .value =
                 [=](Rng& rng, int64_t i) {
                   return i % 5 == 3 ? -1.0 : static_cast<double>(rng.below(static_cast<uint64_t>(vocab)));
                 }},
            {.name = "params", .role = Role::in, .kind = Kind::params, .rows = 1, .cols = 1, .params = params}};
  k.run = [=](Backend& b, const std::vector<Tensor>& t) { b.cross_entropy(t[0], t[1], t[2], t[3], vocab, want_grad); };
  k.bytes = static_cast<double>(rows * cols) * (want_grad ? 4 : 2);
  k.flops = static_cast<double>(rows * cols) * (want_grad ? 8 : 4);
  return k;
}

inline std::vector<OpCase> cross_entropy_cases() {
  return {cross_entropy_case(11, 512, 512, true),     cross_entropy_case(1, 32000, 32000, true),
          cross_entropy_case(6, 128, 101, true),      cross_entropy_case(9, 37, 37, true, 2),
          cross_entropy_case(4, 5003, 5001, true, 5), cross_entropy_case(3, 131072, 128256, true),
          cross_entropy_case(8, 320, 320, false, 8),  cross_entropy_case(2, 1, 1, true),
          cross_entropy_case(0, 64, 64, true)};
}

}  // namespace irq
