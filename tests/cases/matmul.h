// Cases of matmul: every combination of transposes, sizes around the tiles' edges, strides, residuals and types.
#pragma once
#include "tests/op_case.h"

namespace irq {

struct MatmulCase {
  int64_t m, n, k;
  bool transpose_a = false, transpose_b = true;
  double alpha = 1, beta = 0;
  bool in_place = false;  // c is y
  int64_t spare = 0;      // columns behind every row: an odd number takes every alignment away
  Kind in = Kind::storage, out = Kind::storage;
};

inline OpCase matmul_case(const MatmulCase& s) {
  const auto flag = [](bool b) { return b ? "T" : "N"; };
  OpCase c;
  c.name = strf("matmul/%ldx%ldx%ld_%s%s_alpha=%g_beta=%g%s_spare=%ld_%s_%s", s.m, s.n, s.k, flag(s.transpose_a),
                flag(s.transpose_b), s.alpha, s.beta, s.in_place ? "_inplace" : "", s.spare,
                s.in == Kind::master ? "M" : "S", s.out == Kind::master ? "M" : "S");
  c.args = {{"y", s.in_place ? Role::inout : Role::out, s.out, s.m, s.n},
            {"a", Role::in, s.in, s.transpose_a ? s.k : s.m, s.transpose_a ? s.m : s.k},
            {"b", Role::in, s.in, s.transpose_b ? s.n : s.k, s.transpose_b ? s.k : s.n},
            {"c", Role::in, s.out, s.m, s.n}};
  for (Arg& a : c.args) a.spare_cols = s.spare;
  c.run = [s](Backend& backend, const std::vector<Tensor>& t) {
    backend.matmul(t[0], t[1], s.transpose_a, t[2], s.transpose_b, s.alpha, s.beta, s.in_place ? t[0] : t[3]);
  };
  // A sum of k independent terms added one after the other: each addition rounds a partial sum of size sqrt(j) by about
  // 0.6 * 2^-24, together 2.5e-8 * sqrt(k) of the result; k <= 1100 here, so 8e-7, and as much again for the other side.
  // Tensor cores also cut the products of one step to a common exponent before adding them, worth a few times 2^-24.
  c.tolerance_f32 = 2e-6;
  // The inputs are exact and sums are F32: a BF16 result is rounded once, by 2^-9 at most; an F32 result only as above.
  c.tolerance_bf16 = s.out == Kind::master ? 5e-6 : 2e-3;
  const double size = 2, out_size = s.out == Kind::master ? 4 : 2;
  c.bytes = size * static_cast<double>(s.m * s.k + s.k * s.n) +
            out_size * static_cast<double>(s.m * s.n) * (s.beta != 0 ? 2 : 1);
  c.flops = 2.0 * static_cast<double>(s.m) * static_cast<double>(s.n) * static_cast<double>(s.k);
  return c;
}

inline OpCase matmul_blocks_case(int parts, int64_t m, int64_t n, int64_t k, double beta = 0, int64_t spare = 0) {
  OpCase c;
  c.name = strf("matmul_blocks/%dx%ldx%ldx%ld_beta=%g_spare=%ld", parts, m, n, k, beta, spare);
  c.args = {{"y", beta == 0 ? Role::out : Role::inout, Kind::master, parts * m, n, nullptr, spare},
            {"a", Role::in, Kind::storage, k, parts * m, nullptr, spare},
            {"b", Role::in, Kind::storage, k, parts * n, nullptr, spare}};
  c.run = [=](Backend& backend, const std::vector<Tensor>& t) {
    backend.matmul_blocks(t[0], t[1], t[2], parts, 0.25, beta);
  };
  c.tolerance_f32 = 2e-6, c.tolerance_bf16 = 5e-6;  // as matmul with an F32 result
  const auto size = static_cast<double>(parts);
  c.bytes = size * (2 * static_cast<double>(k * (m + n)) + 4 * static_cast<double>(m * n) * (beta != 0 ? 2 : 1));
  c.flops = 2 * size * static_cast<double>(m * n * k);
  return c;
}

inline std::vector<OpCase> matmul_blocks_cases() {
  return {matmul_blocks_case(3, 64, 16, 96),      matmul_blocks_case(2, 128, 64, 256, 1, 8),
          matmul_blocks_case(2, 33, 7, 65, 1, 3), matmul_blocks_case(1, 40, 8, 24, 0.5),
          matmul_blocks_case(4, 24, 8, 1, 1),     matmul_blocks_case(3, 8, 8, 0),
          matmul_blocks_case(2, 0, 8, 16)};
}

inline std::vector<OpCase> matmul_cases() {
  std::vector<OpCase> cases;
  const auto add = [&](const MatmulCase& s) { cases.push_back(matmul_case(s)); };
  for (const bool ta : {false, true})
    for (const bool tb : {false, true}) {
      for (const auto& [m, n, k] : {std::array<int64_t, 3>{1, 1, 1},
                                    {1, 129, 33},
                                    {7, 33, 129},
                                    {33, 7, 129},
                                    {129, 33, 7},
                                    {33, 1, 8},
                                    {96, 64, 128}})
        add({m, n, k, ta, tb});
      add({33, 40, 48, ta, tb, 0.5, 1, false, 8});   // residual: y = c + alpha a b, aligned views
      add({7, 33, 65, ta, tb, -2, 0.25, false, 3});  // odd row strides, few rows
      add({33, 65, 31, ta, tb, 1, 1, true, 1});      // accumulation in place, odd strides
      add({40, 24, 56, ta, tb, 1, 1, true, 0, Kind::storage, Kind::master});  // a weight's gradient: bf16 in, f32 out
      add({24, 17, 33, ta, tb, 1, 0, false, 0, Kind::master, Kind::master});  // masters: F32 throughout, never TF32
      add({24, 16, 40, ta, tb, 1, 0.5, false, 0, Kind::master, Kind::storage});
    }
  add({1, 300, 1100});                      // decoding, several blocks of terms
  add({8, 300, 520, false, false});         // the most rows of the few-rows path
  add({9, 300, 520});                       // the fewest of the blocked path
  add({1000, 20, 300});                     // taller than one packed block of a
  add({12, 2100, 270, false, true, 1, 1});  // wider than one packed block of b
  add({40, 50, 0});                         // an empty sum is zero
  add({40, 50, 0, false, true, 1, 0.5});
  return cases;
}

}  // namespace irq
