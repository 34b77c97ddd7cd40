// Cases of IEC: widths where gcd(h, r) is r, a proper divisor of it, or 1, and strided views.
#pragma once
#include <memory>
#include <numeric>

#include "tests/op_case.h"

namespace irq {

inline Arg iec_beta(const char* name) {
  return {.name = name, .role = Role::in, .kind = Kind::master, .rows = 1, .cols = 1, .value = [](Rng&, int64_t) {
            return 0.7;
          }};
}

// One matrix of a table: pooled = h, expanded = r for A; pooled = r, expanded = o for B.
struct IecShape {
  int64_t pooled, expanded;
  bool tile = false;
  double scale = 1;
  bool with_beta = true;
  int64_t spare = 0;  // columns behind each folded row, which are somebody else's
  bool with_w = true;
};

inline std::string label(const IecShape& s) {
  return strf("pooled=%ld,expanded=%ld,tile=%d,beta=%d,spare=%ld,w=%d", s.pooled, s.expanded, s.tile, s.with_beta,
              s.spare, s.with_w);
}

// Adds the table as the last argument: made in `prepare` (where `add` enters the matrices), used in `run`.
inline void use_table(OpCase& k, int64_t entries, void (Backend::*op)(IecTable),
                      std::function<void(IecTableBuilder&, const std::vector<Tensor>&)> add) {
  k.args.push_back({.name = "table",
                    .role = Role::in,
                    .kind = Kind::u8,
                    .rows = 1,
                    .cols = entries * static_cast<int64_t>(sizeof(IecEntry)),
                    .value = [](Rng&, int64_t) { return 0.0; }});
  const auto table = std::make_shared<IecTable>();
  k.prepare = [=](Backend& b, const std::vector<Tensor>& t) {
    IecTableBuilder builder(b.precision().storage, b.precision().master);
    add(builder, t);
    *table = builder.in(t.back());
    b.upload(t.back(), builder.data());
  };
  k.run = [=](Backend& b, const std::vector<Tensor>&) { (b.*op)(*table); };
}

inline OpCase iec_fold_case(const std::string& name, const std::vector<IecShape>& shapes) {
  OpCase k;
  k.name = "iec_fold_all/" + name;
  for (const IecShape& s : shapes) {
    k.args.push_back({.name = "folded",
                      .role = Role::out,
                      .kind = Kind::storage,
                      .rows = s.expanded,
                      .cols = s.pooled,
                      .spare_cols = s.spare});
    k.args.push_back({.name = "w", .role = Role::in, .kind = Kind::master, .rows = s.expanded, .cols = s.pooled});
    k.args.push_back(iec_beta("beta"));
    k.bytes += static_cast<double>(s.pooled * s.expanded) * 6;
  }
  use_table(k, static_cast<int64_t>(shapes.size()), &Backend::iec_fold_all,
            [=](IecTableBuilder& table, const std::vector<Tensor>& t) {
              for (size_t i = 0; i < shapes.size(); ++i)
                table.add(t[3 * i], shapes[i].with_w ? t[3 * i + 1] : Tensor{},
                          shapes[i].with_beta ? t[3 * i + 2] : Tensor{}, shapes[i].scale, {}, {}, shapes[i].tile);
            });
  return k;
}

// What must be read of a matrix's gradient: a slice of every row, and at least a sector of 32 bytes.
inline double iec_dbeta_bytes(int64_t pooled, int64_t expanded) {
  return static_cast<double>(expanded * std::max<int64_t>(32, 4 * (pooled / std::gcd(pooled, expanded))));
}

inline OpCase iec_dbeta_case(const std::string& name, const std::vector<IecShape>& shapes) {
  OpCase k;
  k.name = "iec_dbeta_all/" + name;
  for (const IecShape& s : shapes) {
    // 1 + N(0, 1): the sum does not cancel, so that its relative error is that of the summation.
    k.args.push_back({.name = "dbeta", .role = Role::out, .kind = Kind::master, .rows = 1, .cols = 1});
    k.args.push_back({.name = "dw",
                      .role = Role::in,
                      .kind = Kind::master,
                      .rows = s.expanded,
                      .cols = s.pooled,
                      .value = [](Rng& rng, int64_t) { return 1 + rng.normal(); }});
    k.bytes += iec_dbeta_bytes(s.pooled, s.expanded);
  }
  use_table(k, static_cast<int64_t>(shapes.size()), &Backend::iec_dbeta_all,
            [=](IecTableBuilder& table, const std::vector<Tensor>& t) {
              for (size_t i = 0; i < shapes.size(); ++i)
                table.add({}, {}, {}, shapes[i].scale, t[2 * i + 1], t[2 * i], shapes[i].tile);
            });
  return k;
}

// More entries than a block has threads, of every kind: with and without beta, on and off 16-byte boundaries, several
// chunks and one.
inline std::vector<IecShape> mixed_iec_shapes() {
  std::vector<IecShape> shapes;
  for (int i = 0; i < 90; ++i) {
    const bool tile = i % 4 == 3;
    shapes.push_back({16 + i, 4, tile});
    shapes.push_back({8, 24 + 8 * (i % 5), tile, 0.25, i % 3 != 0, 16});
    if (i % 30 == 0) shapes.push_back({512, 64, tile, 1, true, 64}), shapes.push_back({64, 344, tile, 2, true, 3});
    if (i % 45 == 0) shapes.push_back({1025, 33, tile}), shapes.push_back({1, 1, tile});
  }
  return shapes;
}

inline std::vector<OpCase> iec_cases() {
  std::vector<OpCase> cases;
  const auto fold = [&](const IecShape& s) { cases.push_back(iec_fold_case(label(s), {s})); };
  const auto dbeta = [&](const IecShape& s) { cases.push_back(iec_dbeta_case(label(s), {s})); };
  for (bool tile : {false, true}) {
    for (auto [h, r] : {std::pair<int64_t, int64_t>{512, 64}, {688, 64}, {36, 24}, {37, 5}, {8, 64}, {1, 1}}) {
      fold({h, r, tile});
      dbeta({h, r, tile});
    }
    for (auto [r, o] : {std::pair<int64_t, int64_t>{64, 512}, {16, 344}, {24, 35}, {5, 37}, {64, 9}}) {
      fold({r, o, tile, 0.25});
      dbeta({r, o, tile});
    }
    fold({96, 16, tile, 1, true, 8});
    fold({16, 96, tile, 0.25, true, 80});  // columns behind a weight's, as in the K extension
    fold({16, 96, tile, 0.25, true, 3});   // rows that do not start at 16 bytes
    fold({1025, 64, tile});                // odd rows, and chunks that begin inside them
    dbeta({1025, 64, tile});               // 65,600 terms: several chunks
    dbeta({2051, 67, tile});               // 137,417: more chunks than a warp has lanes
  }
  fold({48, 16, false, 1, false});
  fold({48, 16, false, 1, true, 8, false});  // beta1 P alone
  fold({37, 5, true, 1, true, 3, false});
  fold({16, 48, false, 0.5, false});
  cases.push_back(iec_fold_case("mixed", mixed_iec_shapes()));
  cases.push_back(iec_dbeta_case("mixed", mixed_iec_shapes()));
  return cases;
}

}  // namespace irq
