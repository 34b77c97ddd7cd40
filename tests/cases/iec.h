// Cases of IEC: widths where gcd(h, r) is r, a proper divisor of it, or 1, and strided views.
#pragma once
#include <numeric>

#include "tests/op_case.h"

namespace irq {

inline Arg iec_beta(const char* name) {
  return {.name = name, .role = Role::in, .kind = Kind::master, .rows = 1, .cols = 1, .value = [](Rng&, int64_t) {
            return 0.7;
          }};
}

// pooled = h, expanded = r for iec_fold_a; pooled = r, expanded = o for iec_fold_b. with_beta = false: beta is null.
inline OpCase iec_fold_case(bool is_b, int64_t pooled, int64_t expanded, bool tile, bool with_beta = true,
                            int64_t spare = 0) {
  OpCase k;
  k.name = strf("iec_fold_%s/pooled=%ld,expanded=%ld,tile=%d,beta=%d,spare=%ld", is_b ? "b" : "a", pooled, expanded,
                tile, with_beta, spare);
  k.args = {{.name = "folded",
             .role = Role::out,
             .kind = Kind::storage,
             .rows = expanded,
             .cols = pooled,
             .spare_cols = spare},
            {.name = "w", .role = Role::in, .kind = Kind::master, .rows = expanded, .cols = pooled},
            iec_beta("beta")};
  k.run = [=](Backend& b, const std::vector<Tensor>& t) {
    const Tensor beta = with_beta ? t[2] : Tensor{};
    if (is_b) b.iec_fold_b(t[0], t[1], beta, 0.25, tile);
    else b.iec_fold_a(t[0], t[1], beta, tile);
  };
  k.bytes = static_cast<double>(pooled * expanded) * 6;
  return k;
}

inline OpCase iec_dbeta_case(bool is_2, int64_t pooled, int64_t expanded, bool tile, double beta, int64_t spare = 0) {
  OpCase k;
  k.name = strf("iec_dbeta%d/pooled=%ld,expanded=%ld,tile=%d,beta=%d,spare=%ld", is_2 ? 2 : 1, pooled, expanded, tile,
                static_cast<int>(beta * 10), spare);
  // 1 + N(0, 1): the sum does not cancel, so that its relative error is that of the summation.
  k.args = {{.name = "dbeta", .role = beta == 0 ? Role::out : Role::inout, .kind = Kind::master, .rows = 1, .cols = 1},
            {.name = "dw",
             .role = Role::in,
             .kind = Kind::master,
             .rows = expanded,
             .cols = pooled,
             .value = [](Rng& rng, int64_t) { return 1 + rng.normal(); },
             .spare_cols = spare}};
  k.run = [=](Backend& b, const std::vector<Tensor>& t) {
    if (is_2) b.iec_dbeta2(t[0], t[1], tile, beta);
    else b.iec_dbeta1(t[0], t[1], tile, beta);
  };
  k.bytes =
      static_cast<double>(expanded) * 4 * static_cast<double>(pooled) / static_cast<double>(std::gcd(pooled, expanded));
  return k;
}

inline OpCase iec_pool_fwd_case(int64_t n, int64_t h, int64_t r, bool tile, int64_t spare = 0) {
  OpCase k;
  k.name = strf("iec_pool_fwd/N=%ld,h=%ld,r=%ld,tile=%d,spare=%ld", n, h, r, tile, spare);
  k.args = {{.name = "u", .role = Role::inout, .kind = Kind::storage, .rows = n, .cols = r, .spare_cols = spare},
            {.name = "x", .role = Role::in, .kind = Kind::storage, .rows = n, .cols = h, .spare_cols = spare},
            iec_beta("beta1")};
  k.run = [=](Backend& b, const std::vector<Tensor>& t) { b.iec_pool_fwd(t[0], t[1], t[2], tile); };
  k.bytes = static_cast<double>(n * (h + 2 * r)) * 2;
  k.flops = static_cast<double>(n * (h + 2 * r));
  return k;
}

inline OpCase iec_pool_bwd_case(int64_t n, int64_t h, int64_t r, bool tile, double beta, bool with_beta1 = true,
                                int64_t spare = 0) {
  OpCase k;
  k.name = strf("iec_pool_bwd/N=%ld,h=%ld,r=%ld,tile=%d,beta=%d,beta1=%d,spare=%ld", n, h, r, tile,
                static_cast<int>(beta * 10), with_beta1, spare);
  k.args = {{.name = "dx",
             .role = beta == 0 ? Role::out : Role::inout,
             .kind = Kind::storage,
             .rows = n,
             .cols = h,
             .spare_cols = spare},
            {.name = "partial", .role = Role::out, .kind = Kind::master, .rows = 1, .cols = n},
            {.name = "du", .role = Role::in, .kind = Kind::storage, .rows = n, .cols = r, .spare_cols = spare},
            {.name = "x", .role = Role::in, .kind = Kind::storage, .rows = n, .cols = h, .spare_cols = spare},
            iec_beta("beta1")};
  k.run = [=](Backend& b, const std::vector<Tensor>& t) {
    b.iec_pool_bwd(t[0], t[1], t[2], t[3], with_beta1 ? t[4] : Tensor{}, tile, beta);
  };
  k.bytes = static_cast<double>(n * ((beta == 0 ? 2 : 3) * h + r)) * 2;
  k.flops = static_cast<double>(n * h) * 4;
  return k;
}

inline std::vector<OpCase> iec_cases() {
  std::vector<OpCase> cases;
  for (bool tile : {false, true}) {
    for (auto [h, r] : {std::pair<int64_t, int64_t>{512, 64}, {688, 64}, {36, 24}, {37, 5}, {8, 64}, {1, 1}}) {
      cases.push_back(iec_fold_case(false, h, r, tile));
      cases.push_back(iec_dbeta_case(false, h, r, tile, 1));
      for (int64_t n : {1, 19}) cases.push_back(iec_pool_fwd_case(n, h, r, tile));
      cases.push_back(iec_pool_bwd_case(19, h, r, tile, 1));
    }
    for (auto [r, o] : {std::pair<int64_t, int64_t>{64, 512}, {16, 344}, {24, 36}, {5, 37}, {64, 8}}) {
      cases.push_back(iec_fold_case(true, r, o, tile));
      cases.push_back(iec_dbeta_case(true, r, o, tile, 0));
    }
    cases.push_back(iec_fold_case(false, 96, 16, tile, true, 8));
    cases.push_back(iec_fold_case(true, 16, 96, tile, true, 80));  // columns behind a weight's, as in the K extension
    cases.push_back(iec_fold_case(true, 16, 96, tile, true, 3));   // rows that do not start at 16 bytes
    cases.push_back(iec_pool_fwd_case(7, 96, 16, tile, 3));
    cases.push_back(iec_pool_fwd_case(7, 86, 2, tile, 2));  // slices of 43
    cases.push_back(iec_pool_bwd_case(7, 96, 16, tile, 0.5, true, 3));
    cases.push_back(iec_pool_bwd_case(7, 86, 2, tile, 0, true, 8));
    cases.push_back(iec_dbeta_case(false, 1025, 64, tile, 0.5, 3));  // 65,600 terms: more than one block
  }
  cases.push_back(iec_fold_case(false, 48, 16, false, false));
  cases.push_back(iec_fold_case(true, 16, 48, false, false));
  cases.push_back(iec_pool_bwd_case(5, 48, 16, false, 1, false));
  cases.push_back(iec_pool_fwd_case(0, 48, 16, false));
  cases.push_back(iec_pool_bwd_case(0, 48, 16, false, 1));
  return cases;
}

}  // namespace irq
