// Cases of the ops on integer codes. Their fp32 steps are prescribed, so the tolerance is 0.
#pragma once
#include "tests/cases/nfk.h"

namespace irq {

// A (rows, cols) matrix with random codes as arguments from index 1 on: codes, scales, integer zeros, float zeros.
inline std::vector<Arg> int_matrix_args(const QuantizedMatrix& q) {
  const auto byte = [](Rng& r, int64_t) { return static_cast<double>(r.below(256)); };
  const auto zero = [top = 1 << q.format.bits](Rng& r, int64_t) { return static_cast<double>(r.below(top)); };
  const auto scale = [](Rng& r, int64_t) { return static_cast<double>(static_cast<float>(0.01 + 0.02 * r.uniform())); };
  const auto float_zero = [](Rng& r, int64_t) { return static_cast<double>(static_cast<float>(4 + 3 * r.normal())); };
  return {{"codes", Role::in, Kind::u8, 1, q.code_bytes(), byte},
          {"scales", Role::in, Kind::f32, 1, q.blocks(), scale},
          {"zeros", Role::in, Kind::u8, 1, q.blocks(), zero},
          {"float_zeros", Role::in, Kind::f32, 1, q.blocks(), float_zero}};
}
inline QuantizedMatrix int_matrix(int64_t rows, int64_t cols, int bits, int group, bool float_zero) {
  QuantizedMatrix q;
  q.rows = rows, q.cols = cols;
  q.format = {QuantKind::integer, bits, group, ScaleKind::f32,
              float_zero ? ShiftKind::float_zero : ShiftKind::int_zero};
  return q;
}
inline QuantizedMatrix int_matrix_of(QuantizedMatrix q, const std::vector<Tensor>& t, size_t first) {
  q.codes = t[first], q.scales = t[first + 1];
  q.zeros = t[first + (q.format.shift == ShiftKind::float_zero ? 3 : 2)];
  return q;
}

inline OpCase int_dequant_case(int bits, int group, bool float_zero, const MatrixShape& s) {
  OpCase c;
  const QuantizedMatrix q = int_matrix(s.rows, s.cols, bits, group, float_zero);
  c.name = strf("int_dequant/bits=%d,group=%d,float=%d,rows=%ld,cols=%ld,spare=%ld", bits, group, float_zero,
                static_cast<long>(s.rows), static_cast<long>(s.cols), static_cast<long>(s.spare));
  c.args = int_matrix_args(q);
  c.args.insert(c.args.begin(), {"w", Role::out, Kind::storage, s.rows, s.cols});
  c.args[0].spare_cols = s.spare;
  c.run = [=](Backend& b, const std::vector<Tensor>& t) { b.int_dequant(t[0], int_matrix_of(q, t, 1)); };
  c.tolerance_f32 = kBitExact;
  c.bytes = static_cast<double>(s.rows * s.cols) * (2 + bits / 8.0) + static_cast<double>(q.blocks()) * 5;
  return c;
}

inline std::vector<OpCase> int_dequant_cases() {
  std::vector<OpCase> cases;
  for (int bits = 2; bits <= 4; ++bits)
    for (const bool float_zero : {false, true})
      for (const int group : {32, 64, kPerChannel})
        // whole groups; a strided view; a short last group; a stride of odd elements; columns no multiple of 8
        for (const MatrixShape s : {MatrixShape{16, 128, 0}, MatrixShape{5, 192, 8}, MatrixShape{3, 72, 0},
                                    MatrixShape{3, 64, 3}, MatrixShape{7, 33, 2}})
          cases.push_back(int_dequant_case(bits, group, float_zero, s));
  return cases;
}

}  // namespace irq
