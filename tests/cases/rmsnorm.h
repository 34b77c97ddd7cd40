// Cases of rmsnorm_fwd, rmsnorm_bwd, rmsnorm_bwd_weight.
#pragma once
#include <array>
#include <utility>

#include "tests/op_case.h"

namespace irq {

inline double norm_weight(Rng& rng, int64_t) { return 1.0 + 0.2 * rng.normal(); }
inline double reciprocal_scale(Rng& rng, int64_t) { return 0.5 + rng.uniform(); }

inline OpCase rmsnorm_fwd_case(int64_t n, int64_t cols, int64_t spare = 0) {
  OpCase c;
  c.name = strf("rmsnorm_fwd/N=%ld,C=%ld,spare=%ld", n, cols, spare);
  c.args = {{"y", Role::out, Kind::storage, n, cols, nullptr, spare},
            {"rstd", Role::out, Kind::master, 1, n},
            {"x", Role::in, Kind::storage, n, cols, nullptr, 2 * spare},
            {"w", Role::in, Kind::master, 1, cols, norm_weight}};
  c.run = [](Backend& b, const std::vector<Tensor>& t) { b.rmsnorm_fwd(t[0], t[1], t[2], t[3], 1e-6); };
  c.bytes = 4.0 * double(n) * double(cols);
  c.flops = 4.0 * double(n) * double(cols);
  return c;
}

inline OpCase rmsnorm_bwd_case(int64_t n, int64_t cols, double beta, int64_t spare = 0) {
  OpCase c;
  c.name = strf("rmsnorm_bwd/N=%ld,C=%ld,spare=%ld,b=%d", n, cols, spare, int(beta * 8));
  c.args = {{"dx", beta == 0 ? Role::out : Role::inout, Kind::storage, n, cols, nullptr, spare},
            {"dy", Role::in, Kind::storage, n, cols},
            {"x", Role::in, Kind::storage, n, cols, nullptr, spare},
            {"w", Role::in, Kind::master, 1, cols, norm_weight},
            {"rstd", Role::in, Kind::master, 1, n, reciprocal_scale}};
  c.run = [=](Backend& b, const std::vector<Tensor>& t) { b.rmsnorm_bwd(t[0], t[1], t[2], t[3], t[4], beta); };
  c.bytes = 2.0 * double(n) * double(cols) * (beta == 0 ? 3 : 4);
  c.flops = 9.0 * double(n) * double(cols);
  return c;
}

inline OpCase rmsnorm_bwd_weight_case(int64_t n, int64_t cols, double beta, int64_t spare = 0) {
  OpCase c;
  c.name = strf("rmsnorm_bwd_weight/N=%ld,C=%ld,spare=%ld,b=%d", n, cols, spare, int(beta * 8));
  c.args = {{"dw", beta == 0 ? Role::out : Role::inout, Kind::master, 1, cols},
            {"dy", Role::in, Kind::storage, n, cols, nullptr, spare},
            {"x", Role::in, Kind::storage, n, cols},
            {"rstd", Role::in, Kind::master, 1, n, reciprocal_scale}};
  c.run = [=](Backend& b, const std::vector<Tensor>& t) { b.rmsnorm_bwd_weight(t[0], t[1], t[2], t[3], beta); };
  c.tolerance_bf16 = 1e-5;  // the output is F32 even then: only the order of the sum differs
  c.bytes = 4.0 * double(n) * double(cols);
  c.flops = 3.0 * double(n) * double(cols);
  return c;
}

inline std::vector<OpCase> rmsnorm_cases() {
  std::vector<OpCase> cases;
  // Widths reach every variant of the CUDA kernel in both storage types, and the fallback (odd, unaligned, too wide).
  for (const auto& [n, cols, spare] : {std::array<int64_t, 3>{1, 1, 0},
                                       {3, 8, 0},
                                       {33, 256, 8},
                                       {5, 37, 0},
                                       {9, 64, 1},
                                       {2, 1000, 0},
                                       {3, 2048, 0},
                                       {2, 4096, 64},
                                       {2, 5120, 0},
                                       {1, 8192, 0},
                                       {1, 16384, 0},
                                       {1, 16392, 0},
                                       {0, 64, 0}}) {
    cases.push_back(rmsnorm_fwd_case(n, cols, spare));
    cases.push_back(rmsnorm_bwd_case(n, cols, 0.0, spare));
    cases.push_back(rmsnorm_bwd_case(n, cols, 1.0, spare));
  }
  cases.push_back(rmsnorm_bwd_weight_case(1, 1, 0.0));
  cases.push_back(rmsnorm_bwd_weight_case(0, 40, 1.0));
  cases.push_back(rmsnorm_bwd_weight_case(31, 37, 1.0));
  cases.push_back(rmsnorm_bwd_weight_case(33, 264, 0.0, 8));
  cases.push_back(rmsnorm_bwd_weight_case(200, 520, 0.5));
  cases.push_back(rmsnorm_bwd_weight_case(5000, 48, 0.0));
  return cases;
}

}  // namespace irq
