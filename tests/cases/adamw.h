// Cases of adamw. With p = 0 before the step the whole of p is the update, so its error is not hidden behind p.
#pragma once
#include <cmath>

#include "tests/op_case.h"

namespace irq {

inline OpCase adamw_case(int64_t n, double clip, double decay, bool zero_p, int64_t skip = 0) {
  StepParams params;
  params.lr = 2e-4;
  params.clip = clip;
  params.bias1 = 1 - std::pow(kAdamBeta1, 5);
  params.bias2 = 1 - std::pow(kAdamBeta2, 5);
  OpCase k;
  k.name = strf("adamw/n=%ld,clip=%d,decay=%d,zero=%d,skip=%ld", n, static_cast<int>(clip * 100),
                static_cast<int>(decay * 100), zero_p, skip);
  k.args = {{.name = "p",
             .role = Role::inout,
             .kind = Kind::master,
             .rows = 1,
             .cols = n + skip,
             .value = [=](Rng& rng, int64_t) { return zero_p ? 0.0 : rng.normal(); }},
            {.name = "m",
             .role = Role::inout,
             .kind = Kind::master,
             .rows = 1,
             .cols = n + skip,
             .value = [](Rng& rng, int64_t) { return 1e-3 * rng.normal(); }},
            {.name = "v",
             .role = Role::inout,
             .kind = Kind::master,
             .rows = 1,
             .cols = n + skip,
             .value = [](Rng& rng, int64_t) { return 1e-6 * std::pow(rng.normal(), 2); }},
            {.name = "g",
             .role = Role::in,
             .kind = Kind::master,
             .rows = 1,
             .cols = n + skip,
             .value = [](Rng& rng, int64_t) { return 1e-3 * rng.normal(); }},
            {.name = "norm",
             .role = Role::in,
             .kind = Kind::master,
             .rows = 1,
             .cols = 1,
             .value = [](Rng&, int64_t) { return 2.5; }},
            {.name = "params", .role = Role::in, .kind = Kind::params, .rows = 1, .cols = 1, .params = params}};
  k.run = [=](Backend& b, const std::vector<Tensor>& t) {
    b.adamw(t[0].slice_cols(skip, n), t[1].slice_cols(skip, n), t[2].slice_cols(skip, n), t[3].slice_cols(skip, n),
            t[4], t[5], decay);
  };
  k.bytes = static_cast<double>(n) * 28;
  k.flops = static_cast<double>(n) * 15;
  return k;
}

inline std::vector<OpCase> adamw_cases() {
  return {adamw_case(1000, 0.3, 0, true), adamw_case(1003, 0, 0, true), adamw_case(4099, 0.3, 0.1, false),
          adamw_case(130, 3, 0, true, 1), adamw_case(1, 0.3, 0, true),  adamw_case(0, 0.3, 0, true)};
}

}  // namespace irq
