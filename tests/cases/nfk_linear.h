// Cases of nfk_linear. CUDA F32 goes through the unfused ops, CUDA BF16 through the kernel where it takes the shape, and the CPU
// is the composition itself: that the ladder holds says that fused = composition.
#pragma once
#include "tests/cases/nfk.h"

namespace irq {

struct PackedLinearShape {
  using Finish = PackedLinear::Finish;
  int64_t m = 1, cols = 256;
  std::vector<int64_t> rows = {64};  // of each part
  int bits = 4;
  int64_t rank = 0;      // of each part's adapter, 0 = none
  uint32_t without = 0;  // parts that have none (bits)
  bool norm = false, residual = false, tau = true;
  Finish finish = Finish::add;
  int head_dim = 0;
  int64_t cache = 0;  // rows of keys and values
};

inline OpCase nfk_linear_case(const PackedLinearShape& s) {
  using Finish = PackedLinear::Finish;
  OpCase c;
  int64_t out = 0, weights = 0, ranks = 0;
  for (const int64_t r : s.rows) out += r, weights += r * s.cols;
  const bool add = s.finish == Finish::add, rope = s.finish == Finish::rope;
  c.name = strf("nfk_linear/%s,bits=%d,M=%ld,rows=%ldx%ld,cols=%ld,r=%ld,norm=%d,residual=%d,tau=%d,without=%u",
                add    ? "add"
                : rope ? "rope"
                       : "swiglu",
                s.bits, static_cast<long>(s.m), static_cast<long>(s.rows[0]), static_cast<long>(s.rows.size()),
                static_cast<long>(s.cols), static_cast<long>(s.rank), s.norm, s.residual, s.tau, s.without);
  const auto small = [](double size) { return [size](Rng& r, int64_t) { return size * r.normal(); }; };
  const double spread = 1 / std::sqrt(static_cast<double>(s.cols));
  std::vector<size_t> b_at(s.rows.size(), 0), w_at;
  c.args = {{"y", Role::out, Kind::storage, s.m, add ? out : s.rows[0]},
            {"x", Role::in, Kind::storage, s.m, s.cols},
            {"norm", Role::in, Kind::master, 1, s.cols, [](Rng& r, int64_t) { return 1 + 0.1 * r.normal(); }},
            {"residual", Role::in, Kind::storage, s.m, out}};
  for (size_t i = 0; i < s.rows.size(); ++i) {
    if (s.rank == 0 || s.without >> i & 1u) continue;
    ranks += s.rank;
    b_at[i] = c.args.size();
    c.args.push_back({"b", Role::in, Kind::storage, s.rows[i], s.rank, small(0.1)});
  }
  const size_t a_at = c.args.size();
  c.args.push_back({"a", Role::in, Kind::storage, std::max<int64_t>(ranks, 1), s.cols, small(spread)});
  const size_t rope_at = c.args.size();
  if (rope) {
    const int64_t half = s.head_dim / 2, positions = 50;
    const auto angle = [half](bool cosine) {
      return [=](Rng&, int64_t i) {
        const double x = static_cast<double>(i / half) / (1.0 + 3.0 * static_cast<double>(i % half));
        return static_cast<double>(static_cast<float>(cosine ? std::cos(x) : std::sin(x)));
      };
    };
    const int64_t m = s.m, cache = s.cache;
    c.args.push_back({"cos", Role::in, Kind::master, positions, half, angle(true)});
    c.args.push_back({"sin", Role::in, Kind::master, positions, half, angle(false)});
    c.args.push_back({"positions", Role::in, Kind::i32, 1, m, [](Rng&, int64_t i) { return double(i * 6 + 3); }});
    c.args.push_back({"cache_rows", Role::in, Kind::i32, 1, m,
                      [=](Rng&, int64_t i) { return i == 3 ? -1.0 : static_cast<double>((i * 5 + 2) % cache); }});
    c.args.push_back({"keys", Role::inout, Kind::storage, cache, s.rows[1]});
    c.args.push_back({"values", Role::inout, Kind::storage, cache, s.rows[2]});
  }
  for (const int64_t r : s.rows) {
    w_at.push_back(c.args.size());
    for (const Arg& arg : matrix_args(r, s.cols, s.bits)) c.args.push_back(arg);
  }
  c.run = [=](Backend& backend, const std::vector<Tensor>& t) {
    PackedLinear call;
    call.y = t[0], call.x = t[1], call.finish = s.finish;
    if (s.norm) call.norm = t[2], call.eps = 1e-5;
    if (s.residual) call.residual = t[3];
    call.parts = static_cast<int>(s.rows.size());
    int64_t column = 0;
    for (size_t i = 0; i < s.rows.size(); ++i) {
      call.w[i] = matrix_of(t, w_at[i], s.rows[i], s.cols,
                            {QuantKind::nf, s.bits, kBlock, ScaleKind::dq8, s.tau ? ShiftKind::tau : ShiftKind::none});
      call.w[i].map = t[w_at[0] + 6];  // one map for all, as a model has it
      if (b_at[i] == 0) continue;
      call.b[i] = t[b_at[i]], call.column[i] = column;
      column += s.rank;
    }
    if (column > 0) call.a = t[a_at];
    if (rope) {
      call.head_dim = s.head_dim;
      call.cos_table = t[rope_at], call.sin_table = t[rope_at + 1];
      call.positions = t[rope_at + 2], call.cache_rows = t[rope_at + 3];
      call.keys = t[rope_at + 4], call.values = t[rope_at + 5];
    }
    backend.nfk_linear(call);
  };
  // BF16: n, u and z are rounded to bf16 in the composition (2^-9 / sqrt(3) = 1.1e-3 rms each), the levels in the kernel
  // (8e-4), the result once; a rounded gate that cancels or a turned pair adds a part. Together about 2.5e-3; NF2 has few levels,
  // and its sums cancel more.
  c.tolerance_bf16 = 6e-3;
  c.tolerance_f32 = 2e-5;  // a norm, two products and a product behind another: four sums in other orders
  c.bytes = static_cast<double>(weights) * (s.bits / 8.0 + (s.tau ? 2.0 : 1.0) / 64) +
            2.0 * static_cast<double>(ranks * s.cols + (s.rank ? s.rank * out : 0) + s.m * (s.cols + 2 * out));
  c.flops =
      2.0 * static_cast<double>(s.m) * static_cast<double>(weights + ranks * s.cols + (s.rank ? s.rank * out : 0));
  return c;
}

inline std::vector<OpCase> nfk_linear_cases() {
  using Finish = PackedLinear::Finish;
  std::vector<OpCase> cases;
  for (int bits = 2; bits <= 4; ++bits)
    for (const int64_t m : {1, 3, 8}) {
      cases.push_back(nfk_linear_case({.m = m, .cols = 512, .rows = {40}, .bits = bits}));
      cases.push_back(nfk_linear_case(
          {.m = m, .cols = 256, .rows = {64}, .bits = bits, .rank = 64, .residual = true, .tau = m != 3}));
      cases.push_back(nfk_linear_case(
          {.m = m, .cols = 768, .rows = {72, 72}, .bits = bits, .rank = 8, .norm = true, .finish = Finish::swiglu}));
      cases.push_back(nfk_linear_case({.m = m,
                                       .cols = 512,
                                       .rows = {256, 128, 128},
                                       .bits = bits,
                                       .rank = 16,
                                       .without = 2,
                                       .norm = true,
                                       .finish = Finish::rope,
                                       .head_dim = 64,
                                       .cache = 40}));
    }
  // More tiles than any GPU has multiprocessors, more pieces than warps, a rank above 64, more ranks than blocks.
  cases.push_back(nfk_linear_case({.cols = 4352, .rows = {3200}, .rank = 72, .residual = true}));
  cases.push_back(nfk_linear_case({.m = 2, .cols = 256, .rows = {64, 32}, .rank = 160, .norm = true}));
  // What the kernel leaves to the ops: many rows, columns that are no multiple of 256, odd parts of SwiGLU.
  cases.push_back(nfk_linear_case({.m = 9, .cols = 256, .rows = {64}, .rank = 8, .norm = true, .residual = true}));
  cases.push_back(nfk_linear_case({.m = 2, .cols = 192, .rows = {33, 20}, .rank = 4, .residual = true}));
  cases.push_back(nfk_linear_case({.cols = 192,
                                   .rows = {48, 32, 32},
                                   .rank = 8,
                                   .norm = true,
                                   .finish = Finish::rope,
                                   .head_dim = 16,
                                   .cache = 9}));
  cases.push_back(nfk_linear_case({.cols = 256, .rows = {20, 20}, .rank = 3, .norm = true, .finish = Finish::swiglu}));
  cases.push_back(nfk_linear_case({.m = 0}));
  return cases;
}

}  // namespace irq
