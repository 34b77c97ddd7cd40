// Cases of attention_fwd and attention_bwd, and the builder that the bench uses for its own shapes.
#pragma once
#include <array>

#include "tests/cases/rope.h"

namespace irq {

using SeqRanges = std::vector<std::array<int32_t, 6>>;  // {q_begin, q_end, k_begin, k_end, p_begin, p_end} each

struct AttentionShape {
  std::string name;
  int head_dim, heads, kv_heads;
  int64_t queries, keys;  // rows of q, rows of k
  SeqRanges seqs;
  int64_t spare_cols = 0;
};

// Training: each sequence attends to itself; `dead` rows in no sequence follow each one.
inline AttentionShape packed_attention(std::string name, int head_dim, int heads, int kv_heads,
                                       const std::vector<int>& lengths, int dead = 0, int64_t spare_cols = 0) {
  AttentionShape s{std::move(name), head_dim, heads, kv_heads, 0, 0, {}, spare_cols};
  for (const int length : lengths) {
    const int begin = static_cast<int>(s.queries);
    s.seqs.push_back({begin, begin + length, begin, begin + length, 0, 0});
    s.queries += length + dead;
  }
  s.keys = s.queries;
  return s;
}

// (query, key) pairs that are computed; the basis of the FLOP count.
inline double attended_pairs(const AttentionShape& s) {
  double pairs = 0;
  for (const auto& [qb, qe, kb, ke, pb, pe] : s.seqs)
    for (int i = 0; i < qe - qb; ++i) pairs += pe - pb + std::max(0, i + 1 + (ke - kb) - (qe - qb));
  return pairs;
}

// The argument `seqs`; the values are looked up, not drawn.
inline Arg seqs_arg(const AttentionShape& s) {
  std::vector<double> flat;
  for (const auto& row : s.seqs) flat.insert(flat.end(), row.begin(), row.end());
  return {"seqs",    Role::in,
          Kind::i32, static_cast<int64_t>(s.seqs.size()),
          6,         [flat](Rng&, int64_t i) { return flat[static_cast<size_t>(i)]; }};
}

inline std::string attention_name(const char* op, const AttentionShape& s) {
  return std::string(op) + "/" + s.name + ",D=" + std::to_string(s.head_dim) + ",H=" + std::to_string(s.heads) +
         ",G=" + std::to_string(s.kv_heads);
}

inline OpCase attention_fwd_case(const AttentionShape& s) {
  const int64_t q_cols = int64_t{s.heads} * s.head_dim, k_cols = int64_t{s.kv_heads} * s.head_dim;
  OpCase c;
  c.name = attention_name("attention_fwd", s);
  c.args = {{"o", Role::out, Kind::storage, s.queries, q_cols, nullptr, s.spare_cols},
            {"lse", Role::out, Kind::master, s.heads, s.queries},
            {"q", Role::in, Kind::storage, s.queries, q_cols, nullptr, s.spare_cols},
            {"k", Role::in, Kind::storage, s.keys, k_cols, nullptr, s.spare_cols},
            {"v", Role::in, Kind::storage, s.keys, k_cols, nullptr, s.spare_cols},
            seqs_arg(s)};
  const int head_dim = s.head_dim;
  c.run = [head_dim](Backend& b, const std::vector<Tensor>& t) {
    b.attention_fwd(t[0], t[1], t[2], t[3], t[4], t[5], head_dim);
  };
  // BF16: each P is rounded to bf16 (2^-9 at most, 2^-9 / sqrt(3) rms), independently, so o = P v carries about
  // 1e-3 of its size where weights are even, more where one dominates, and the rounding of o 1e-3 again.
  c.tolerance_bf16 = 3e-3;
  c.bytes = 2.0 * static_cast<double>(2 * s.queries * q_cols + 2 * s.keys * k_cols);
  c.flops = 4.0 * s.head_dim * s.heads * attended_pairs(s);
  return c;
}

// Runs the forward first: o and lse must belong to q, k and v.
inline OpCase attention_bwd_case(const AttentionShape& s) {
  const int64_t q_cols = int64_t{s.heads} * s.head_dim, k_cols = int64_t{s.kv_heads} * s.head_dim;
  OpCase c;
  c.name = attention_name("attention_bwd", s);
  c.args = {{"dq", Role::out, Kind::storage, s.queries, q_cols, nullptr, s.spare_cols},
            {"dk", Role::out, Kind::storage, s.keys, k_cols, nullptr, s.spare_cols},
            {"dv", Role::out, Kind::storage, s.keys, k_cols, nullptr, s.spare_cols},
            {"delta", Role::out, Kind::master, s.heads, s.queries},
            {"dout", Role::in, Kind::storage, s.queries, q_cols, nullptr, s.spare_cols},
            {"q", Role::in, Kind::storage, s.queries, q_cols, nullptr, s.spare_cols},
            {"k", Role::in, Kind::storage, s.keys, k_cols, nullptr, s.spare_cols},
            {"v", Role::in, Kind::storage, s.keys, k_cols, nullptr, s.spare_cols},
            {"o", Role::out, Kind::storage, s.queries, q_cols, nullptr, s.spare_cols},
            {"lse", Role::out, Kind::master, s.heads, s.queries},
            seqs_arg(s)};
  const int head_dim = s.head_dim;
  c.prepare = [head_dim](Backend& b, const std::vector<Tensor>& t) {
    b.attention_fwd(t[8], t[9], t[5], t[6], t[7], t[10], head_dim);
  };
  c.run = [head_dim](Backend& b, const std::vector<Tensor>& t) {
    b.attention_bwd(t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7], t[8], t[9], t[10], head_dim, {});
  };
  // F32: dS = P (dP - delta) subtracts sums of head_dim terms, which costs a few bits more than the forward.
  c.tolerance_f32 = 2e-5;
  // BF16: delta comes from the rounded o, and P and dS are rounded before they are multiplied: three roundings of
  // 2^-9 / sqrt(3) rms, of which the first two are enlarged by the cancellation in dP - delta; then the result's own.
  c.tolerance_bf16 = 5e-3;
  c.bytes = 2.0 * static_cast<double>(4 * s.queries * q_cols + 4 * s.keys * k_cols);
  c.flops = 10.0 * s.head_dim * s.heads * attended_pairs(s);
  return c;
}

// The same with rope's inverse on dq and dk.
inline OpCase attention_bwd_rope_case(const AttentionShape& s) {
  OpCase c = attention_bwd_case(s);
  const int head_dim = s.head_dim;
  constexpr int64_t kPositions = 100;
  c.name += ",rope";
  c.args.push_back({"cos", Role::in, Kind::master, kPositions, head_dim / 2,
                    [=](Rng&, int64_t i) { return std::cos(rope_angle(i, head_dim)); }});
  c.args.push_back({"sin", Role::in, Kind::master, kPositions, head_dim / 2,
                    [=](Rng&, int64_t i) { return std::sin(rope_angle(i, head_dim)); }});
  // Rows of no sequence are at -1, as the packer leaves them.
  c.args.push_back({"positions", Role::in, Kind::i32, 1, s.queries, [s](Rng&, int64_t row) {
                      for (const auto& q : s.seqs)
                        if (row >= q[0] && row < q[1]) return double((row * 7) % kPositions);
                      return -1.0;
                    }});
  c.run = [head_dim](Backend& b, const std::vector<Tensor>& t) {
    b.attention_bwd(t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7], t[8], t[9], t[10], head_dim, {t[11], t[12], t[13]});
  };
  return c;
}

// A prefix of 70 rows, seen by itself and by three sequences, one of them a single row.
inline AttentionShape prefix_attention(int head_dim, int heads, int kv_heads) {
  return {"prefix",
          head_dim,
          heads,
          kv_heads,
          160,
          160,
          {{0, 70, 0, 70, 0, 0}, {70, 90, 70, 90, 0, 70}, {91, 92, 91, 92, 0, 70}, {92, 157, 92, 157, 0, 70}},
          0};
}
// What pack() makes of examples that share prompts: two prefixes in front, the second one across two tiles of keys, sequences
// on them in turns, one alone, and room that no sequence takes.
inline AttentionShape shared_attention(int head_dim, int heads, int kv_heads) {
  AttentionShape s{"shared", head_dim, heads, kv_heads, 0, 0, {{0, 29, 0, 29, 0, 0}, {29, 68, 29, 68, 0, 0}}, 0};
  int row = 68;
  for (const int length : {5, 70, 1, 64, 90, 33, 2, 17, 128}) {
    const int kind = static_cast<int>(s.seqs.size()) % 3, begin = kind == 1 ? 29 : 0,
              end = kind == 0   ? 0
                    : kind == 1 ? 68
                                : 29;
    s.seqs.push_back({row, row + length, row, row + length, begin, end});
    row += length;
  }
  s.seqs.push_back({0, 0, 0, 0, 0, 0});
  s.queries = s.keys = row + 3;
  return s;
}
// More sequences on one prefix than threads in a block.
inline AttentionShape many_on_a_prefix() {
  AttentionShape s = packed_attention("many_on_a_prefix", 64, 2, 1, std::vector<int>(301, 3));
  for (size_t i = 1; i < s.seqs.size(); ++i)
    if (i % 4 != 2) s.seqs[i][5] = 3;
  return s;
}
// One query row each against a cache with free rows between the sequences; one sequence also has a prefix, one is dead.
inline AttentionShape decode_attention(int head_dim, int heads, int kv_heads) {
  return {"decode",
          head_dim,
          heads,
          kv_heads,
          6,
          600,
          {{0, 1, 0, 1, 0, 0},
           {1, 2, 100, 164, 0, 0},
           {2, 3, 200, 265, 0, 0},
           {3, 3, 0, 0, 0, 0},
           {4, 5, 300, 500, 0, 0},
           {5, 6, 510, 517, 300, 400}},
          0};
}
// Decoding against enough keys for many splits: one split, the last one nearly empty, a long one, a prefix across splits.
inline AttentionShape long_decode_attention(int head_dim, int heads, int kv_heads) {
  return {"long_decode",
          head_dim,
          heads,
          kv_heads,
          4,
          3000,
          {{0, 1, 0, 64, 0, 0}, {1, 2, 64, 1089, 0, 0}, {2, 3, 1100, 2900, 0, 0}, {3, 4, 2901, 3000, 5, 300}},
          0};
}
// More keys than queries: the last query is aligned with the last key.
inline AttentionShape chunk_attention(int head_dim, int heads, int kv_heads) {
  return {"chunk", head_dim, heads, kv_heads, 100, 280, {{0, 70, 0, 150, 0, 0}, {70, 99, 150, 279, 0, 0}}, 8};
}

// Long enough on average for the forward's larger query tile; the second sequence has the first keys of the first as prefix.
inline AttentionShape long_attention(int head_dim, int heads, int kv_heads) {
  return {"long", head_dim, heads, kv_heads, 293, 450, {{0, 150, 0, 300, 0, 0}, {151, 291, 301, 441, 0, 100}}, 0};
}

inline std::vector<OpCase> attention_cases() {
  const std::vector<int> lengths = {1, 2, 63, 64, 65, 130};
  std::vector<AttentionShape> shapes;
  for (const int head_dim : {32, 64, 128}) {
    shapes.push_back(packed_attention("packed", head_dim, 2, 2, lengths));
    shapes.push_back(packed_attention("strided,dead", head_dim, 4, 2, {65, 0, 2, 64}, 3, 8));
    shapes.push_back(prefix_attention(head_dim, 3, 1));
    shapes.push_back(shared_attention(head_dim, 4, 2));
    shapes.push_back(decode_attention(head_dim, 4, 2));
    shapes.push_back(chunk_attention(head_dim, 2, 1));
    shapes.push_back(long_attention(head_dim, 2, 1));
  }
  shapes.push_back(long_decode_attention(64, 2, 2));
  shapes.push_back(long_decode_attention(128, 6, 2));
  shapes.push_back(long_decode_attention(128, 8, 1));
  shapes.push_back(packed_attention("blocks", 64, 2, 1, {200, 321}, 5));  // several blocks of queries and of keys
  shapes.push_back(packed_attention("blocks", 128, 4, 2, {321, 129}, 5));
  shapes.push_back(packed_attention("packed", 48, 2, 1, {33, 70}));
  shapes.push_back(packed_attention("odd_stride", 64, 2, 1, {33, 70}, 1, 3));  // rows not aligned to 16 bytes
  shapes.push_back(packed_attention("no_rows", 64, 2, 2, {0}));
  shapes.push_back(
      packed_attention("many", 64, 1, 1, std::vector<int>(300, 3)));  // more sequences than threads in a block
  shapes.push_back(many_on_a_prefix());
  shapes.push_back(packed_attention("dead_tiles", 128, 2, 1, {70, 40}, 130));  // whole tiles of keys that no query sees
  std::vector<OpCase> cases;
  for (const AttentionShape& s : shapes) {
    cases.push_back(attention_fwd_case(s));
    cases.push_back(attention_bwd_case(s));
  }
  for (const int head_dim : {32, 64, 128}) {
    cases.push_back(attention_bwd_rope_case(packed_attention("packed", head_dim, 2, 2, lengths)));
    cases.push_back(attention_bwd_rope_case(packed_attention("strided,dead", head_dim, 4, 2, {65, 0, 2, 64}, 3, 8)));
    cases.push_back(attention_bwd_rope_case(shared_attention(head_dim, 3, 3)));
  }
  cases.push_back(attention_bwd_rope_case(packed_attention("odd_stride", 64, 2, 1, {33, 70}, 1, 3)));
  cases.push_back(attention_bwd_rope_case(packed_attention("dead_tiles", 128, 2, 1, {70, 40}, 130)));
  // Forward only: with a single key dP = delta, so dq and dk are zero up to rounding and have no relative error.
  cases.push_back(attention_fwd_case(packed_attention("one_row", 64, 2, 2, {1})));
  return cases;
}

}  // namespace irq
