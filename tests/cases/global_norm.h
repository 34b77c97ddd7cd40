// Cases of global_norm: lengths around the pieces of both implementations, and a view that starts off a 16-byte boundary.
#pragma once
#include "tests/op_case.h"

namespace irq {

inline OpCase global_norm_case(int64_t n, int64_t skip = 0) {
  OpCase k;
  k.name = strf("global_norm/n=%ld,skip=%ld", n, skip);
  k.args = {{.name = "norm", .role = Role::out, .kind = Kind::master, .rows = 1, .cols = 1},
            {.name = "g", .role = Role::in, .kind = Kind::master, .rows = 1, .cols = n + skip}};
  k.run = [=](Backend& b, const std::vector<Tensor>& t) { b.global_norm(t[0], t[1].slice_cols(skip, n)); };
  k.bytes = static_cast<double>(n) * 4;
  k.flops = static_cast<double>(n) * 2;
  return k;
}

inline std::vector<OpCase> global_norm_cases() {
  return {global_norm_case(0),    global_norm_case(1),     global_norm_case(5),        global_norm_case(4096),
          global_norm_case(4097), global_norm_case(70001), global_norm_case(300007, 1)};
}

}  // namespace irq
