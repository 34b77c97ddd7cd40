// Cases of nfk_layers: whole layers of one or more tokens. The CPU is the composition of nfk_linear and attention_fwd, CUDA
// BF16 of one token the fused kernel where it takes the shape.
#pragma once
#include "tests/cases/nfk.h"

namespace irq {

struct PackedLayersShape {
  int64_t m = 1, layers = 2, dim = 256, ffn = 512, heads = 4, kv_heads = 2, keys = 40;
  int head_dim = 64, bits = 4;
  int64_t rank = 16;
  bool tau = true;
  int64_t prefix = 0;  // of the keys
  bool cached = true;  // the token's key and value are written into the cache
};

inline OpCase nfk_layers_case(const PackedLayersShape& s) {
  OpCase c;
  c.name = strf(
      "nfk_layers/bits=%d,M=%ld,L=%ld,dim=%ld,ffn=%ld,heads=%ldx%ld,D=%d,keys=%ld,r=%ld,tau=%d,prefix=%ld,cached=%d",
      s.bits, long(s.m), long(s.layers), long(s.dim), long(s.ffn), long(s.heads), long(s.kv_heads), s.head_dim,
      long(s.keys), long(s.rank), s.tau, long(s.prefix), s.cached);
  const int64_t q = s.heads * s.head_dim, kv = s.kv_heads * s.head_dim, half = s.head_dim / 2, m = s.m;
  const auto small = [](double size) { return [size](Rng& r, int64_t) { return size * r.normal(); }; };
  const auto angle = [half](bool cosine) {
    return [=](Rng&, int64_t i) {
      const double x = static_cast<double>(i / half) / (1.0 + 3.0 * static_cast<double>(i % half));
      return static_cast<double>(static_cast<float>(cosine ? std::cos(x) : std::sin(x)));
    };
  };
  // Sequence i has rows [i * keys, (i + 1) * keys) of the cache; its token is the last of them.
  const int64_t keys = s.keys, prefix = s.prefix;
  const auto seq = [=](Rng&, int64_t i) {
    const int64_t row = i / 6, at = row * keys;
    const int64_t numbers[6] = {row, row + 1, at + prefix, at + keys, at, at + prefix};
    return static_cast<double>(numbers[i % 6]);
  };
  c.args = {{"x", Role::inout, Kind::storage, m, s.dim},
            {"q", Role::in, Kind::storage, m, q},
            {"a", Role::in, Kind::storage, m, q},
            {"h", Role::in, Kind::storage, m, s.ffn},
            {"lse", Role::in, Kind::master, s.heads, m},
            {"seqs", Role::in, Kind::i32, m, 6, seq},
            {"cos", Role::in, Kind::master, 50, half, angle(true)},
            {"sin", Role::in, Kind::master, 50, half, angle(false)},
            {"positions", Role::in, Kind::i32, 1, m, [](Rng&, int64_t i) { return double(i * 6 + 3); }},
            {"cache_rows", Role::in, Kind::i32, 1, m,
             [=](Rng&, int64_t i) { return s.cached ? double((i + 1) * keys - 1) : -1.0; }}};
  struct Place {
    size_t norm, a, b[3], w[3];
  };
  std::vector<std::array<Place, 4>> places;
  std::vector<std::array<size_t, 2>> caches;
  const std::array<std::vector<int64_t>, 4> rows = {{{q, kv, kv}, {s.dim}, {s.ffn, s.ffn}, {s.dim}}};
  const int64_t cols[4] = {s.dim, q, s.dim, s.ffn};
  double weights = 0, adapters = 0;
  for (int64_t l = 0; l < s.layers; ++l) {
    std::array<Place, 4> place{};
    for (size_t i = 0; i < 4; ++i) {
      const int64_t parts = static_cast<int64_t>(rows[i].size());
      place[i].norm = c.args.size();
      c.args.push_back(
          {"norm", Role::in, Kind::master, 1, cols[i], [](Rng& r, int64_t) { return 1 + 0.1 * r.normal(); }});
      place[i].a = c.args.size();
      c.args.push_back({"a", Role::in, Kind::storage, std::max<int64_t>(parts * s.rank, 1), cols[i],
                        small(1 / std::sqrt(double(cols[i])))});
      for (size_t k = 0; k < rows[i].size(); ++k) {
        place[i].b[k] = c.args.size();
        c.args.push_back({"b", Role::in, Kind::storage, rows[i][k], std::max<int64_t>(s.rank, 1), small(0.05)});
        place[i].w[k] = c.args.size();
        // The shifts give each row of W a mean; scores and sums stay of order one.
        for (const Arg& arg : matrix_args(rows[i][k], cols[i], s.bits)) c.args.push_back(arg);
        weights += static_cast<double>(rows[i][k] * cols[i]);
        adapters += static_cast<double>(s.rank * rows[i][k]);
      }
      adapters += static_cast<double>(parts * s.rank * cols[i]);
    }
    places.push_back(place);
    caches.push_back({c.args.size(), c.args.size() + 1});
    c.args.push_back({"keys", Role::inout, Kind::storage, m * keys, kv});
    c.args.push_back({"values", Role::inout, Kind::storage, m * keys, kv});
  }
  c.run = [=](Backend& backend, const std::vector<Tensor>& t) {
    std::vector<PackedLayer> layers;
    for (size_t l = 0; l < places.size(); ++l) {
      PackedLayer layer;
      PackedLinear* const calls[4] = {&layer.qkv, &layer.o, &layer.gate_up, &layer.down};
      for (size_t i = 0; i < 4; ++i) {
        PackedLinear& call = *calls[i];
        const Place& at = places[l][i];
        call.parts = static_cast<int>(rows[i].size());
        for (size_t k = 0; k < rows[i].size(); ++k) {
          call.w[k] =
              matrix_of(t, at.w[k], rows[i][k], cols[i],
                        {QuantKind::nf, s.bits, kBlock, ScaleKind::dq8, s.tau ? ShiftKind::tau : ShiftKind::none});
          call.w[k].map = t[places[0][0].w[0] + 6];
          if (s.rank > 0) call.b[k] = t[at.b[k]], call.column[k] = static_cast<int64_t>(k) * s.rank;
        }
        if (s.rank > 0) call.a = t[at.a];
        if (i % 2 == 0) call.norm = t[at.norm], call.eps = 1e-5;
      }
      layer.qkv.x = layer.gate_up.x = layer.o.y = layer.o.residual = layer.down.y = layer.down.residual = t[0];
      layer.qkv.y = t[1], layer.o.x = t[2], layer.gate_up.y = layer.down.x = t[3];
      layer.lse = t[4], layer.seqs = t[5];
      layer.qkv.finish = PackedLinear::Finish::rope, layer.gate_up.finish = PackedLinear::Finish::swiglu;
      layer.qkv.head_dim = s.head_dim, layer.qkv.cos_table = t[6], layer.qkv.sin_table = t[7];
      layer.qkv.positions = t[8], layer.qkv.cache_rows = t[9];
      layer.qkv.keys = t[caches[l][0]], layer.qkv.values = t[caches[l][1]];
      layers.push_back(layer);
    }
    backend.nfk_layers(layers.data(), static_cast<int>(layers.size()));
  };
  // As nfk_linear's, twice per layer, and scores that are off by 2e-3 of their size move the softmax.
  c.tolerance_bf16 = 3e-2;
  c.tolerance_f32 = 2e-4;
  c.bytes = weights * (s.bits / 8.0 + (s.tau ? 2.0 : 1.0) / 64) + 2 * adapters +
            4.0 * static_cast<double>(s.layers * s.m * s.keys * kv);
  c.flops = 2.0 * static_cast<double>(s.m) * (weights + adapters);
  return c;
}

inline std::vector<OpCase> nfk_layers_cases() {
  std::vector<OpCase> cases;
  for (int bits = 2; bits <= 4; ++bits) cases.push_back(nfk_layers_case({.bits = bits}));
  // More layers than a launch takes; heads of 128, no grouping, more keys than a block has at a time, behind a prefix; ranks
  // above 64; nothing but weights; columns that end in half a piece.
  cases.push_back(nfk_layers_case({.layers = 18, .ffn = 256, .heads = 2, .kv_heads = 1, .rank = 8}));
  cases.push_back(nfk_layers_case(
      {.layers = 1, .dim = 512, .ffn = 768, .heads = 4, .kv_heads = 4, .keys = 600, .head_dim = 128, .prefix = 77}));
  cases.push_back(nfk_layers_case({.layers = 1, .ffn = 1280, .keys = 1, .rank = 72, .tau = false}));
  cases.push_back(nfk_layers_case({.layers = 3, .dim = 768, .ffn = 2304, .heads = 12, .kv_heads = 6, .rank = 0}));
  // A token that leaves no key: nobody needs what its k and v are.
  cases.push_back(nfk_layers_case({.layers = 3, .cached = false}));
  // What goes op by op: several tokens, columns that are no multiple of 256.
  cases.push_back(nfk_layers_case({.m = 3}));
  cases.push_back(nfk_layers_case({.dim = 192, .ffn = 320, .heads = 3, .kv_heads = 1}));
  return cases;
}

}  // namespace irq
