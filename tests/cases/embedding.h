// Cases of embedding_fwd, embedding_bwd.
#pragma once
#include "tests/op_case.h"

namespace irq {

// Uniform tokens, every seventh -1 (padding), and every third the same: real text repeats a few tokens very often.
inline std::function<double(Rng&, int64_t)> token_values(int64_t vocab) {
  return [=](Rng& rng, int64_t i) {
    return i % 7 == 5 ? -1.0 : i % 3 == 0 ? double(vocab / 2) : double(rng.below(uint64_t(vocab)));
  };
}

inline OpCase embedding_fwd_case(int64_t n, int64_t vocab, int64_t cols, int64_t spare = 0) {
  OpCase c;
  c.name = strf("embedding_fwd/N=%ld,V=%ld,C=%ld,spare=%ld", n, vocab, cols, spare);
  c.args = {{"y", Role::out, Kind::storage, n, cols, nullptr, spare},
            {"table", Role::in, Kind::storage, vocab, cols},
            {"tokens", Role::in, Kind::i32, 1, n, token_values(vocab)}};
  c.run = [](Backend& b, const std::vector<Tensor>& t) { b.embedding_fwd(t[0], t[1], t[2]); };
  c.tolerance_f32 = c.tolerance_bf16 = 0;  // rows move unchanged
  c.bytes = 4.0 * double(n) * double(cols);
  return c;
}

inline OpCase embedding_bwd_case(int64_t n, int64_t vocab, int64_t cols, double beta, int64_t spare = 0) {
  OpCase c;
  c.name = strf("embedding_bwd/N=%ld,V=%ld,C=%ld,spare=%ld,b=%d", n, vocab, cols, spare, int(beta * 8));
  c.args = {{"dtable", beta == 0 ? Role::out : Role::inout, Kind::master, vocab, cols, nullptr, spare},
            {"dy", Role::in, Kind::storage, n, cols, nullptr, spare},
            {"tokens", Role::in, Kind::i32, 1, n, token_values(vocab)}};
  c.run = [=](Backend& b, const std::vector<Tensor>& t) { b.embedding_bwd(t[0], t[1], t[2], beta); };
  c.tolerance_bf16 = 1e-5;  // the output is F32 even then: only the order of the sum differs
  c.bytes = 2.0 * double(n) * double(cols) + double(vocab) * double(cols) * (beta == 0 ? 4 : 8);
  c.flops = double(n) * double(cols);
  return c;
}

inline std::vector<OpCase> embedding_cases() {
  return {embedding_fwd_case(1, 1, 1), embedding_fwd_case(50, 30, 64), embedding_fwd_case(33, 100, 37, 2),
          embedding_bwd_case(1, 1, 1, 0.0), embedding_bwd_case(50, 30, 64, 0.0), embedding_bwd_case(200, 9, 37, 1.0, 1),
          embedding_bwd_case(0, 5, 16, 0.0), embedding_bwd_case(0, 5, 16, 1.0), embedding_bwd_case(130, 70, 1160, 0.5),
          // more than one tile of tokens (2048) and a token in every position of it
          embedding_bwd_case(5000, 21, 72, 1.0)};
}

}  // namespace irq
