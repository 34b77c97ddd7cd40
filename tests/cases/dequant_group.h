// Cases of dequant_group. The CPU is the composition itself; what it writes is exact, so both devices must give the same bits.
#pragma once
#include "tests/cases/nfk.h"

namespace irq {

struct PackedGroupShape {
  int64_t cols = 256;
  std::vector<int64_t> rows = {64};  // of each part
  int64_t rank = 8;                  // of each part's adapter, 0 = none
  uint32_t without = 0;              // parts that have none (bits)
  int bits = 4;
  bool tau = true;
  int64_t spare = 0;  // columns behind ext's
};

// by_ops: through the ops that the kernel stands for.
inline OpCase dequant_group_case(const PackedGroupShape& s, bool by_ops = false) {
  OpCase c;
  int64_t out = 0, ranks = 0, b_weights = 0;
  for (const int64_t r : s.rows) out += r;
  c.name = strf("dequant_group/bits=%d,tau=%d,rows=%ldx%zu,cols=%ld,r=%ld,without=%u,spare=%ld", s.bits, s.tau,
                static_cast<long>(s.rows[0]), s.rows.size(), static_cast<long>(s.cols), static_cast<long>(s.rank),
                s.without, static_cast<long>(s.spare));
  const auto narrow = [](Rng& r, int64_t) { return static_cast<double>(static_cast<float>(r.normal())); };
  std::vector<size_t> b_at(s.rows.size(), 0), w_at;
  c.args.emplace_back();  // ext, below
  for (size_t i = 0; i < s.rows.size(); ++i) {
    if (s.rank == 0 || s.without >> i & 1u) continue;
    ranks += s.rank, b_weights += s.rank * s.rows[i];
    b_at[i] = c.args.size();
    c.args.push_back({"b", Role::in, Kind::storage, s.rows[i], s.rank, narrow});
  }
  const size_t a_at = c.args.size();
  c.args.push_back({"a", Role::in, Kind::storage, std::max<int64_t>(ranks, 1), s.cols, narrow});
  for (const int64_t r : s.rows) {
    w_at.push_back(c.args.size());
    for (const Arg& arg : matrix_args(r, s.cols, s.bits)) c.args.push_back(arg);
  }
  c.args[0] = {"ext", Role::out, Kind::storage, out + ranks, s.cols + ranks};
  c.args[0].spare_cols = s.spare;
  c.run = [=](Backend& backend, const std::vector<Tensor>& t) {
    PackedGroup group;
    group.parts = static_cast<int>(s.rows.size());
    int64_t column = 0;
    for (size_t i = 0; i < s.rows.size(); ++i) {
      group.w[i] = matrix_of(t, w_at[i], s.rows[i], s.cols,
                             {QuantKind::nf, s.bits, kBlock, ScaleKind::dq8, s.tau ? ShiftKind::tau : ShiftKind::none});
      if (b_at[i] == 0) continue;
      group.b[i] = t[b_at[i]], group.column[i] = column;
      column += s.rank;
    }
    if (column > 0) group.a = t[a_at];
    if (by_ops) dequant_group_by_ops(backend, t[0], group);
    else backend.dequant_group(t[0], group);
  };
  c.tolerance_f32 = kBitExact;  // fp32 steps are prescribed, whatever the storage; the rest is copied
  c.bytes = static_cast<double>(out * s.cols) * (2 + s.bits / 8.0 + (s.tau ? 2.0 : 1.0) / 64) +
            4.0 * static_cast<double>(ranks * s.cols) + 2.0 * static_cast<double>(out * ranks + b_weights);
  return c;
}

inline std::vector<OpCase> dequant_group_cases() {
  std::vector<OpCase> cases;
  for (int bits = 2; bits <= 4; ++bits)
    for (const bool tau : {true, false}) {
      cases.push_back(dequant_group_case({.rows = {64, 32, 32}, .bits = bits, .tau = tau}));
      cases.push_back(dequant_group_case({.cols = 192, .rows = {33, 33}, .rank = 64, .bits = bits, .tau = tau}));
      cases.push_back(
          dequant_group_case({.cols = 576, .rows = {20}, .rank = 16, .bits = bits, .tau = tau, .spare = 8}));
    }
  // More than one share a part and many packs of adapters; parts without adapters in front, between and behind; none at all.
  cases.push_back(dequant_group_case({.cols = 1024, .rows = {100, 40, 60}, .rank = 64}));
  for (const uint32_t without : {1u, 2u, 4u, 5u, 7u})
    cases.push_back(dequant_group_case({.rows = {24, 8, 40}, .without = without}));
  cases.push_back(dequant_group_case({.rows = {24, 8}, .rank = 0}));
  // What the kernel leaves to the ops: ranks that are no whole packs, columns that are no whole blocks, an odd stride.
  cases.push_back(dequant_group_case({.rows = {24, 8}, .rank = 3}));
  cases.push_back(dequant_group_case({.cols = 40, .rows = {24, 8}}));
  cases.push_back(dequant_group_case({.rows = {24, 8}, .spare = 3}));
  return cases;
}

}  // namespace irq
