// Cases of QA-LoRA's and PEQA's ops: groups that are lanes of a warp, short last groups, groups that cross chunks, one group.
#pragma once
#include "tests/cases/iec.h"
#include "tests/cases/int_codes.h"

namespace irq {

inline std::string label(const GroupPool& p) {
  return strf("h=%ld,L=%ld,mean=%d,factor=%d,repeat=%ld,tile=%d", p.cols, p.group, p.mean, static_cast<int>(p.factor),
              p.repeat, p.tile);
}

inline OpCase group_pool_case(int64_t n, const GroupPool& p, int64_t spare = 0) {
  OpCase k;
  k.name = strf("group_pool/N=%ld,%s,spare=%ld", n, label(p).c_str(), spare);
  // 1 + N(0, 1): the sums do not cancel, so that their relative error is that of the summation.
  k.args = {
      {.name = "y", .role = Role::out, .kind = Kind::storage, .rows = n, .cols = p.outputs(), .spare_cols = spare},
      {.name = "x",
       .role = Role::in,
       .kind = Kind::storage,
       .rows = n,
       .cols = p.cols,
       .value = [](Rng& rng, int64_t) { return 1 + rng.normal(); },
       .spare_cols = spare}};
  k.run = [=](Backend& b, const std::vector<Tensor>& t) { b.group_pool(t[0], t[1], p); };
  k.bytes = static_cast<double>(n) * 2 * static_cast<double>(p.cols + p.outputs());
  return k;
}

inline OpCase group_spread_case(int64_t n, const GroupPool& p, double beta, int64_t spare = 0) {
  OpCase k;
  k.name = strf("group_spread/N=%ld,%s,beta=%d,spare=%ld", n, label(p).c_str(), static_cast<int>(beta * 10), spare);
  k.args = {
      {.name = "dx",
       .role = beta == 0 ? Role::out : Role::inout,
       .kind = Kind::storage,
       .rows = n,
       .cols = p.cols,
       .spare_cols = spare},
      {.name = "dy", .role = Role::in, .kind = Kind::storage, .rows = n, .cols = p.groups(), .spare_cols = spare}};
  k.run = [=](Backend& b, const std::vector<Tensor>& t) { b.group_spread(t[0], t[1], p, beta); };
  k.bytes = static_cast<double>(n) * 2 * static_cast<double>(p.cols * (beta == 0 ? 1 : 2) + p.groups());
  return k;
}

inline OpCase int_scale_grad_case(int bits, int group, bool float_zero, int64_t rows, int64_t cols, double beta) {
  OpCase c;
  const QuantizedMatrix q = int_matrix(rows, cols, bits, group, float_zero);
  c.name = strf("int_scale_grad/bits=%d,group=%d,float=%d,rows=%ld,cols=%ld,beta=%d", bits, group, float_zero, rows,
                cols, static_cast<int>(beta));
  c.args = int_matrix_args(q);
  c.args.insert(
      c.args.begin(),
      {{.name = "ds", .role = beta == 0 ? Role::out : Role::inout, .kind = Kind::master, .rows = 1, .cols = q.blocks()},
       {.name = "dw", .role = Role::in, .kind = Kind::master, .rows = rows, .cols = cols}});
  c.run = [=](Backend& b, const std::vector<Tensor>& t) { b.int_scale_grad(t[0], t[1], int_matrix_of(q, t, 2), beta); };
  c.bytes = static_cast<double>(rows * cols) * (4 + bits / 8.0) + static_cast<double>(q.blocks()) * 5;
  return c;
}

// QA-LoRA's A: folded (r, h), w (r, groups).
inline OpCase fold_pooled_case(int64_t h, int64_t r, const InputPool& pool, bool tile, bool with_w, bool with_beta) {
  const GroupPool p = group_pool_of(pool, h);
  OpCase k;
  k.name = strf("iec_fold_all/pooled,r=%ld,%s,kind=%d,aligned=%d,tiled=%d,w=%d,beta=%d", r, label(p).c_str(),
                static_cast<int>(pool.kind), pool.aligned, tile, with_w, with_beta);
  k.args = {{.name = "folded", .role = Role::out, .kind = Kind::storage, .rows = r, .cols = h, .spare_cols = 5},
            {.name = "w", .role = Role::in, .kind = Kind::master, .rows = r, .cols = p.groups()},
            iec_beta("beta")};
  k.bytes = static_cast<double>(r) * static_cast<double>(2 * h + 4 * p.groups());
  use_table(k, 1, &Backend::iec_fold_all, [=](IecTableBuilder& table, const std::vector<Tensor>& t) {
    table.add(t[0], with_w ? t[1] : Tensor{}, with_beta ? t[2] : Tensor{}, 1, {}, {}, tile, {p, pool.aligned});
  });
  return k;
}

inline std::vector<OpCase> grouped_cases() {
  std::vector<OpCase> cases;
  for (const PoolKind kind : {PoolKind::mean, PoolKind::sum, PoolKind::peft})
    for (const auto& [h, group] :
         {std::pair<int64_t, int64_t>{512, 32}, {576, 128}, {96, 8}, {72, 24}, {40, 0}, {37, 5}}) {
      const GroupPool p = group_pool_of({kind, group, false}, h);
      if (kind == PoolKind::peft && p.groups() == 1) continue;  // the mean
      cases.push_back(group_pool_case(33, p));
      cases.push_back(group_pool_case(5, p, 8));
      cases.push_back(group_pool_case(3, p, 3));
      cases.push_back(group_spread_case(17, p, 0));
      cases.push_back(group_spread_case(9, p, 1, 8));
      cases.push_back(group_spread_case(3, p, 1, 3));
      for (const bool aligned : {false, true})
        cases.push_back(fold_pooled_case(h, 8, {kind, group, aligned}, aligned, true, true));
    }
  cases.push_back(fold_pooled_case(576, 64, {PoolKind::sum, 128, false}, false, false, true));  // beta1 P alone
  cases.push_back(fold_pooled_case(1024, 64, {PoolKind::mean, 32, false}, false, true, false));
  for (const bool tile : {false, true}) {
    cases.push_back(group_pool_case(9, group_pool_of(IecMap(512, 64, tile))));
    cases.push_back(group_pool_case(9, group_pool_of(IecMap(36, 24, tile)), 3));
    cases.push_back(group_pool_case(9, group_pool_of(IecMap(5, 8, tile))));
  }
  cases.push_back(group_pool_case(0, group_pool_of({PoolKind::mean, 8, false}, 16)));
  for (int bits = 2; bits <= 4; ++bits)
    for (const int group : {32, 128, kPerChannel})
      for (const bool float_zero : {false, true}) {
        cases.push_back(int_scale_grad_case(bits, group, float_zero, 9, 192, 0));
        cases.push_back(int_scale_grad_case(bits, group, float_zero, 5, 43, 1));
      }
  return cases;
}

}  // namespace irq
