#include "bench/op_list.h"

#include <algorithm>

#include "tests/cases/adamw.h"
#include "tests/cases/argmax.h"
#include "tests/cases/attention.h"
#include "tests/cases/cross_entropy.h"
#include "tests/cases/dequant_group.h"
#include "tests/cases/dropout.h"
#include "tests/cases/embedding.h"
#include "tests/cases/global_norm.h"
#include "tests/cases/grouped.h"
#include "tests/cases/iec.h"
#include "tests/cases/int_make.h"
#include "tests/cases/lora_dropout.h"
#include "tests/cases/low_rank.h"
#include "tests/cases/matmul.h"
#include "tests/cases/memory.h"
#include "tests/cases/nfk.h"
#include "tests/cases/nfk_layers.h"
#include "tests/cases/nfk_linear.h"
#include "tests/cases/rmsnorm.h"
#include "tests/cases/rope.h"
#include "tests/cases/swiglu.h"

namespace irq {
namespace {

using Cases = std::vector<OpCase>;

// The groups of src/model/build.cpp: linears that share an input.
struct Group {
  const char* name;
  int64_t in, out, adapters;
};
std::array<Group, 4> groups_of(const ModelConfig& c) {
  return {{{"qkv", c.dim, c.q_width() + 2 * c.kv_width(), 3},
           {"o", c.q_width(), c.dim, 1},
           {"gate_up", c.dim, 2 * c.ffn, 2},
           {"down", c.ffn, c.dim, 1}}};
}

// Sum of rank * (in + out) over the model: what LoRA trains, betas left out.
int64_t adapter_parameters(const ModelConfig& c, int64_t rank) {
  int64_t n = 0;
  for (const LinearShape& s : layer_linears(c)) n += rank * (s.in + s.out);
  return n * c.layers;
}

void add_memory(Cases& cases, const ModelConfig& c, int64_t n) {
  using enum Kind;
  cases.push_back(copy_case(storage, storage, n, c.dim, 64));
  cases.push_back(copy_case(storage, f32, n, c.dim, 0));
  cases.push_back(fill_case(storage, n, c.dim, 0, 0));
  cases.push_back(axpby_case(storage, storage, n, c.dim, 0, 1, 1));
  cases.push_back(gather_case(n, n, c.dim, 0, 0));
  cases.push_back(scatter_case(n, n, c.dim, 0));
  cases.push_back(reduce_case(n * c.dim, 0));
}

void add_attention(Cases& cases, const BenchSizes& sizes, int64_t n) {
  const ModelConfig& c = sizes.config;
  for (const int64_t s : sizes.lengths) {
    if (s > n) continue;
    const AttentionShape shape = packed_attention(strf("N=%ld,s=%ld", n, s), static_cast<int>(c.head_dim),
                                                  static_cast<int>(c.heads), static_cast<int>(c.kv_heads),
                                                  std::vector<int>(static_cast<size_t>(n / s), static_cast<int>(s)));
    cases.push_back(attention_fwd_case(shape));
    cases.push_back(attention_bwd_case(shape));
  }
}

OpCase labelled_matmul(const std::string& label, const MatmulCase& m) {
  OpCase c = matmul_case(m);
  const auto flag = [](bool t) { return t ? 'T' : 'N'; };
  c.name = strf("matmul/%s,%ldx%ldx%ld,%c%c", label.c_str(), m.m, m.n, m.k, flag(m.transpose_a), flag(m.transpose_b));
  return c;
}

// The products of src/ops/linear.cpp, adapters in the K extension, with the row strides that the engine has.
void add_matmul(Cases& cases, const BenchSizes& sizes, int64_t n) {
  const Kind master = Kind::master;
  for (const Group& g : groups_of(sizes.config)) {
    const int64_t r = sizes.rank, all = r * g.adapters, out = g.out / g.adapters;
    const std::string name = g.name;
    cases.push_back(labelled_matmul(name + "_y", {.m = n, .n = g.out, .k = g.in + all}));
    cases.push_back(
        labelled_matmul(name + "_dx", {.m = n, .n = g.in, .k = g.out + all, .transpose_b = false, .spare = all}));
    cases.push_back(labelled_matmul(name + "_u", {.m = n, .n = all, .k = g.in, .spare = all}));
    cases.push_back(labelled_matmul(name + "_du", {.m = n, .n = r, .k = out, .transpose_b = false}));
    cases.push_back(labelled_matmul(
        name + "_dA", {.m = r, .n = g.in, .k = n, .transpose_a = true, .transpose_b = false, .out = master}));
    cases.push_back(labelled_matmul(
        name + "_dB", {.m = out, .n = r, .k = n, .transpose_a = true, .transpose_b = false, .out = master}));
    if (g.adapters > 1) cases.push_back(matmul_blocks_case(static_cast<int>(g.adapters), out, r, n));
  }
  cases.push_back(labelled_matmul("head", {.m = n, .n = sizes.config.vocab, .k = sizes.config.dim}));
}

// A and B of every linear, as the engine's table has them.
std::vector<IecShape> adapter_matrices(const ModelConfig& c, int64_t rank) {
  std::vector<IecShape> all;
  for (int64_t l = 0; l < c.layers; ++l)
    for (const LinearShape& s : layer_linears(c)) {
      all.push_back({.pooled = s.in, .expanded = rank});
      all.push_back({.pooled = rank, .expanded = s.out, .scale = 0.25});
    }
  return all;
}

// Their elements lie behind one another in one flat argument: calls f(shape, number, view of `flat`) for each.
template <class F>
void each_matrix(const std::vector<IecShape>& shapes, F&& f) {
  int64_t at = 0, number = 0;
  for (const IecShape& s : shapes) {
    const auto view = [&](const Tensor& flat) {
      return flat.slice_cols(at, s.pooled * s.expanded).reshape(s.expanded, s.pooled);
    };
    f(s, number++, view);
    at += s.pooled * s.expanded;
  }
}

void add_iec(Cases& cases, const ModelConfig& c, int64_t rank) {
  const std::vector<IecShape> shapes = adapter_matrices(c, rank);
  const int64_t n = adapter_parameters(c, rank), count = static_cast<int64_t>(shapes.size());
  OpCase fold;
  fold.name = strf("iec_fold_all/matrices=%ld,n=%ld", count, n);
  fold.args = {{"folded", Role::out, Kind::storage, 1, n}, {"w", Role::in, Kind::master, 1, n}, iec_beta("beta")};
  fold.bytes = 6.0 * static_cast<double>(n);
  use_table(fold, count, &Backend::iec_fold_all, [=](IecTableBuilder& table, const std::vector<Tensor>& t) {
    each_matrix(shapes, [&](const IecShape& s, int64_t, auto& view) {
      table.add(view(t[0]), view(t[1]), t[2], s.scale, {}, {}, s.tile);
    });
  });
  cases.push_back(fold);
  OpCase dbeta;
  dbeta.name = strf("iec_dbeta_all/matrices=%ld,n=%ld", count, n);
  dbeta.args = {{"dbeta", Role::out, Kind::master, 1, count}, {"dw", Role::in, Kind::master, 1, n}};
  for (const IecShape& s : shapes) dbeta.bytes += iec_dbeta_bytes(s.pooled, s.expanded);
  use_table(dbeta, count, &Backend::iec_dbeta_all, [=](IecTableBuilder& table, const std::vector<Tensor>& t) {
    each_matrix(shapes, [&](const IecShape& s, int64_t number, auto& view) {
      table.add({}, {}, {}, s.scale, view(t[1]), t[0].slice_cols(number, 1), s.tile);
    });
  });
  cases.push_back(dbeta);
}

// QA-LoRA, PEQA and the integers below them, in groups of 32 and per channel.
// QA-LoRA and PEQA: what trains on integers.
void add_grouped(Cases& cases, const ModelConfig& c, const BenchSizes& sizes) {
  for (const int group : {32, kPerChannel}) { cases.push_back(int_scale_grad_case(4, group, false, c.ffn, c.dim, 1)); }
  const InputPool pool{PoolKind::mean, 32, false};
  cases.push_back(fold_pooled_case(c.dim, sizes.rank, pool, false, true, true));
  for (const int64_t n : sizes.rows) {
    cases.push_back(group_pool_case(n, group_pool_of(pool, c.dim)));
    cases.push_back(group_pool_case(n, group_pool_of(IecMap(c.dim, sizes.rank, false))));
    cases.push_back(group_spread_case(n, group_pool_of(pool, c.dim), 1));
  }
}

void add_quantizers(Cases& cases, const ModelConfig& c) {
  const MatrixShape wide{c.dim, c.ffn, 0}, tall{c.ffn, c.dim, 0}, square{c.dim, c.dim, 0};
  const int64_t n = c.ffn * c.dim;
  for (const int bits : {4, 3, 2}) cases.push_back(icq_search_case(bits, n, false));
  for (const auto& [setting, spec] : icq_settings())
    for (const int bits : {4, 3, 2}) cases.push_back(icq_search_case(bits, n, setting, spec));
  for (const int bits : {4, 3, 2}) cases.push_back(nfk_quantize_case(bits, n, true));
  cases.push_back(double_quantize_scales_case(block_count(n)));
  cases.push_back(double_quantize_tau_case(block_count(n)));
  cases.push_back(dequantize_tau_case(block_count(n)));
  cases.push_back(squared_errors_case(n));
  const auto format = [](int bits) { return QuantFormat{QuantKind::nf, bits, kBlock, ScaleKind::dq8, ShiftKind::tau}; };
  for (const int bits : {4, 3, 2}) {
    cases.push_back(nfk_dequant_case(format(bits), tall));
    cases.push_back(nfk_dequant_case(format(bits), {c.ffn, c.dim, 2 * 64}));  // into a K-extended matrix
  }
  for (const int bits : {4, 3, 2})
    for (const int64_t m : {1, 2, 4, 8, 16, 32, 64})
      for (const MatrixShape& s : {square, tall, wide})
        if (bits == 4 || (s.rows == tall.rows && (m == 1 || m == 8 || m == 16)))
          cases.push_back(nfk_matmul_case(format(bits), m, s, 0));
}

// A group as a step makes it when weights are packed.
void add_dequant_groups(Cases& cases, const ModelConfig& c, int64_t rank) {
  for (const int bits : {4, 3, 2}) {
    cases.push_back(dequant_group_case(
        {.cols = c.dim, .rows = {c.q_width(), c.kv_width(), c.kv_width()}, .rank = rank, .bits = bits}));
    if (bits < 4) continue;
    cases.push_back(dequant_group_case({.cols = c.q_width(), .rows = {c.dim}, .rank = rank}));
    cases.push_back(dequant_group_case({.cols = c.dim, .rows = {c.ffn, c.ffn}, .rank = rank}));
    cases.push_back(dequant_group_case({.cols = c.ffn, .rows = {c.dim}, .rank = rank}));
  }
}

void add_integers(Cases& cases, const ModelConfig& c) {
  const MatrixShape tall{c.ffn, c.dim, 0};
  for (const int bits : {4, 3, 2})
    for (const IntSearch search : {IntSearch::none, IntSearch::clip, IntSearch::zero_shift})
      if (bits == 4 || search == IntSearch::clip) cases.push_back(int_params_case({bits, 128, false, search}, tall));
  cases.push_back(int_params_case({4, 32, false, IntSearch::clip}, tall));
  cases.push_back(int_params_case({4, kPerChannel, false, IntSearch::clip}, tall));
  for (const int bits : {4, 3, 2}) {
    cases.push_back(int_encode_case(bits, 128, false, tall));
    cases.push_back(int_dequant_case(bits, 128, false, tall));
    cases.push_back(int_dequant_case(bits, 128, false, {c.ffn, c.dim, 2 * 64}));  // into a K-extended matrix
  }
  cases.push_back(int_dequant_case(4, 32, true, tall));
  cases.push_back(int_pack_case(4, 128, tall));
  cases.push_back(gptq_factor_case(c.dim));
  cases.push_back(gptq_block_case(4, 128, false, false, 0, std::min<int64_t>(128, c.dim), c.ffn, c.dim));
  cases.push_back(permute_case(c.ffn, c.dim));
}

// The launches of a decoded token's layer, but attention.
void add_decoding(Cases& cases, const ModelConfig& c, int64_t rank) {
  using Finish = PackedLinear::Finish;
  for (const int bits : {4, 3, 2})
    for (const int64_t m : {1, 8}) {
      if (m > 1 && bits < 4) continue;
      cases.push_back(nfk_linear_case({.m = m,
                                       .cols = c.dim,
                                       .rows = {c.q_width(), c.kv_width(), c.kv_width()},
                                       .bits = bits,
                                       .rank = rank,
                                       .norm = true,
                                       .finish = Finish::rope,
                                       .head_dim = static_cast<int>(c.head_dim),
                                       .cache = 64}));
      const PackedLinearShape o{
          .m = m, .cols = c.q_width(), .rows = {c.dim}, .bits = bits, .rank = rank, .residual = true};
      cases.push_back(nfk_linear_case(o));
      cases.push_back(nfk_linear_case({.m = m,
                                       .cols = c.dim,
                                       .rows = {c.ffn, c.ffn},
                                       .bits = bits,
                                       .rank = rank,
                                       .norm = true,
                                       .finish = Finish::swiglu}));
      PackedLinearShape down = o;
      down.cols = c.ffn;
      cases.push_back(nfk_linear_case(down));
    }
  for (const int bits : {4, 3, 2})
    cases.push_back(nfk_layers_case({.layers = 4,
                                     .dim = c.dim,
                                     .ffn = c.ffn,
                                     .heads = c.heads,
                                     .kv_heads = c.kv_heads,
                                     .keys = 512,
                                     .head_dim = static_cast<int>(c.head_dim),
                                     .bits = bits,
                                     .rank = rank}));
  cases.push_back(argmax_case(1, c.vocab, 0, 0));
  for (const auto& [sequences, keys] : {std::pair<int, int>{1, 512}, {1, 2048}, {16, 512}}) {
    AttentionShape s{strf("decode,N=%d,keys=%d", sequences, keys),
                     static_cast<int>(c.head_dim),
                     static_cast<int>(c.heads),
                     static_cast<int>(c.kv_heads),
                     sequences,
                     int64_t{sequences} * keys,
                     {},
                     0};
    for (int i = 0; i < sequences; ++i) s.seqs.push_back({i, i + 1, i * keys, (i + 1) * keys, 0, 0});
    cases.push_back(attention_fwd_case(s));
  }
}

}  // namespace

OpCase bench_matmul(int64_t m, int64_t n, int64_t k) { return labelled_matmul("given", {.m = m, .n = n, .k = k}); }

Cases bench_cases(const BenchSizes& sizes) {
  const ModelConfig& c = sizes.config;
  const int64_t longest = *std::max_element(sizes.lengths.begin(), sizes.lengths.end());
  const int64_t trained = adapter_parameters(c, sizes.rank);
  Cases cases;
  for (const int64_t n : sizes.rows) add_memory(cases, c, n);
  for (const int64_t n : sizes.rows) {
    cases.push_back(embedding_fwd_case(n, c.vocab, c.dim));
    cases.push_back(embedding_bwd_case(n, c.vocab, c.dim, 0));
  }
  for (const int64_t n : sizes.rows) {
    cases.push_back(rmsnorm_fwd_case(n, c.dim, 0));
    cases.push_back(rmsnorm_bwd_case(n, c.dim, 1));
    cases.push_back(rmsnorm_bwd_weight_case(n, c.dim, 0));
  }
  for (const int64_t n : sizes.rows)
    for (const bool inverse : {false, true})
      cases.push_back(rope_case(n, c.heads + c.kv_heads, static_cast<int>(c.head_dim), inverse, 0, longest));
  for (const int64_t n : sizes.rows) add_attention(cases, sizes, n);
  for (const int64_t n : sizes.rows) {
    cases.push_back(swiglu_fwd_case(n, c.ffn, 0));
    cases.push_back(swiglu_bwd_case(n, c.ffn, false));
  }
  for (const int64_t n : sizes.rows) add_matmul(cases, sizes, n);
  for (const int64_t n : sizes.rows) {
    cases.push_back(dropout_case(n, c.dim, 0.1, 0));
    cases.push_back(dropout_case(n, c.dim, 0.1, 1));
  }
  add_iec(cases, c, sizes.rank);
  add_grouped(cases, c, sizes);
  for (const int64_t n : sizes.rows) {
    for (const LoraDropoutShape& s : {LoraDropoutShape{.n = n, .h = c.dim, .r = sizes.rank, .count = 3},
                                      LoraDropoutShape{.n = n, .h = c.dim, .r = sizes.rank, .count = 2},
                                      LoraDropoutShape{.n = n, .h = c.dim, .r = sizes.rank, .count = 1},
                                      LoraDropoutShape{.n = n, .h = c.ffn, .r = sizes.rank, .count = 1}}) {
      cases.push_back(dropout_masks_case(s));
      cases.push_back(lora_dropout_fwd_case(s));
      cases.push_back(lora_dropout_da_case(s));
      cases.push_back(lora_dropout_dx_case(s));
    }
    cases.push_back(lora_dropout_dx_case({.n = n, .h = c.dim, .r = sizes.rank, .count = 3, .beta = 1}));
    cases.push_back(lora_dropout_dbeta1_case({.n = n, .h = c.dim, .r = sizes.rank, .count = 3}));
  }
  for (const int64_t n : sizes.rows) cases.push_back(cross_entropy_case(n, c.vocab, c.vocab, true));
  cases.push_back(global_norm_case(trained));
  cases.push_back(adamw_case(trained, 0.3, 0, false));
  add_quantizers(cases, c);
  add_dequant_groups(cases, c, sizes.rank);
  add_integers(cases, c);
  add_decoding(cases, c, sizes.rank);
  cases.push_back(low_rank_case(c.dim, c.dim, sizes.rank));
  cases.push_back(low_rank_case(c.ffn, c.dim, sizes.rank));
  return cases;
}

}  // namespace irq
