// Cases of the ops that make integer codes. Their fp32 steps are prescribed, so the tolerance is 0.
#pragma once
#include "tests/cases/int_codes.h"

namespace irq {

// Weights with what a group may hold: a far median, repeated values, ties at half a step, zeros alone, one sign, subnormals.
inline double odd_weight(Rng& r, int64_t i) {
  const double x = r.normal();
  switch (i / 37 % 9) {
    case 0: return static_cast<double>(static_cast<float>(3 + 0.1 * x));
    case 1: return 0.25 * std::round(2 * x);
    case 2: return i % 37 == 5 ? -1.0 : 0.0;
    case 3: return 0;
    case 4: return static_cast<double>(static_cast<float>(std::abs(x)));
    case 5: return static_cast<double>(static_cast<float>(1e-42 * x));
    case 6: return std::round(4 * x) / 8;
    default: return static_cast<double>(static_cast<float>(0.02 * x));
  }
}

inline OpCase int_params_case(const IntSpec& spec, const MatrixShape& s) {
  OpCase c;
  static constexpr const char* kSearches[] = {"none", "clip", "shift"};
  c.name = strf("int_params/bits=%d,group=%d,search=%s,sym=%d,n=%d,rows=%ld,cols=%ld,spare=%ld", spec.bits, spec.group,
                kSearches[static_cast<int>(spec.search)], spec.symmetric, spec.n, static_cast<long>(s.rows),
                static_cast<long>(s.cols), static_cast<long>(s.spare));
  const bool shift = spec.search == IntSearch::zero_shift;
  const int64_t groups = int_matrix(s.rows, s.cols, spec.bits, spec.group, false).groups_per_row();
  c.args = {{"scales", Role::out, Kind::f32, s.rows, groups},
            {"zeros", Role::out, shift ? Kind::f32 : Kind::u8, s.rows, groups},
            {"entropy_plain", Role::out, Kind::f32, s.rows, groups},
            {"entropy", Role::out, Kind::f32, s.rows, groups},
            {"w", Role::in, Kind::f32, s.rows, s.cols, odd_weight}};
  c.args[4].spare_cols = s.spare;
  c.run = [=](Backend& b, const std::vector<Tensor>& t) { b.int_params(t[0], t[1], t[2], t[3], t[4], spec); };
  c.tolerance_f32 = kBitExact;
  c.bytes = 4.0 * static_cast<double>(s.rows * s.cols);
  return c;
}

inline std::vector<OpCase> int_params_cases() {
  std::vector<OpCase> cases;
  for (int bits = 2; bits <= 4; ++bits)
    for (const IntSearch search : {IntSearch::none, IntSearch::clip, IntSearch::zero_shift})
      for (const auto& [group, shape] : std::initializer_list<std::pair<int, MatrixShape>>{
               {32, {6, 96, 0}}, {128, {3, 200, 5}}, {8, {5, 33, 2}}, {kPerChannel, {4, 611, 0}}}) {
        const int n = group == 32 ? 50 : 7;
        cases.push_back(int_params_case({bits, group, false, search, 0.1, n}, shape));
        if (search != IntSearch::zero_shift)
          cases.push_back(int_params_case({bits, group, true, search, 0.3, n}, shape));
      }
  return cases;
}

inline OpCase int_encode_case(int bits, int group, bool float_zero, const MatrixShape& s) {
  OpCase c;
  const QuantizedMatrix q = int_matrix(s.rows, s.cols, bits, group, float_zero);
  c.name = strf("int_encode/bits=%d,group=%d,float=%d,rows=%ld,cols=%ld,spare=%ld", bits, group, float_zero,
                static_cast<long>(s.rows), static_cast<long>(s.cols), static_cast<long>(s.spare));
  c.args = int_matrix_args(q);
  c.args[0].role = Role::out, c.args[0].value = nullptr;
  c.args.push_back({"w", Role::in, Kind::f32, s.rows, s.cols, odd_weight});
  c.args.back().spare_cols = s.spare;
  c.run = [=](Backend& b, const std::vector<Tensor>& t) {
    const auto by_group = [&](const Tensor& x) { return x.reshape(q.rows, q.groups_per_row()); };
    b.int_encode(t[0], t[4], by_group(t[1]), by_group(t[float_zero ? 3 : 2]), bits, group);
  };
  c.tolerance_f32 = kBitExact;
  c.bytes = static_cast<double>(s.rows * s.cols) * (4 + bits / 8.0);
  return c;
}

inline OpCase int_pack_case(int bits, int group, const MatrixShape& s) {
  OpCase c;
  const QuantizedMatrix q = int_matrix(s.rows, s.cols, bits, group, false);
  c.name = strf("int_pack/bits=%d,group=%d,rows=%ld,cols=%ld,spare=%ld", bits, group, static_cast<long>(s.rows),
                static_cast<long>(s.cols), static_cast<long>(s.spare));
  const auto code = [bits](Rng& r, int64_t) { return static_cast<double>(r.below(1u << bits)); };
  c.args = {{"codes", Role::out, Kind::u8, 1, q.code_bytes()},
            {"entropy", Role::out, Kind::f32, s.rows, q.groups_per_row()},
            {"bytes", Role::in, Kind::u8, s.rows, s.cols, code}};
  c.args[2].spare_cols = s.spare;
  c.run = [=](Backend& b, const std::vector<Tensor>& t) { b.int_pack(t[0], t[1], t[2], bits, group); };
  c.tolerance_f32 = kBitExact;
  c.bytes = static_cast<double>(s.rows * s.cols) * (1 + bits / 8.0);
  return c;
}

inline std::vector<OpCase> int_stream_cases() {
  std::vector<OpCase> cases;
  for (int bits = 2; bits <= 4; ++bits)
    for (const auto& [group, shape] : std::initializer_list<std::pair<int, MatrixShape>>{
             {32, {16, 128, 0}}, {64, {5, 200, 8}}, {kPerChannel, {7, 33, 2}}, {8, {3, 5, 0}}}) {
      for (const bool float_zero : {false, true}) cases.push_back(int_encode_case(bits, group, float_zero, shape));
      cases.push_back(int_pack_case(bits, group, shape));
    }
  return cases;
}

// GPTQ's inner loop: a block inside a wider matrix, groups that begin and end inside and outside it.
inline OpCase gptq_block_case(int bits, int group, bool float_zero, bool reorder, int64_t first, int64_t count,
                              int64_t rows = 37, int64_t cols = 200) {
  OpCase c;
  const QuantizedMatrix q = int_matrix(rows, cols, bits, group, float_zero);
  c.name = strf("gptq_block/bits=%d,group=%d,float=%d,order=%d,first=%ld,count=%ld", bits, group, float_zero, reorder,
                static_cast<long>(first), static_cast<long>(count));
  const auto u = [count](Rng& r, int64_t i) {  // a positive diagonal; below it what nobody may read
    const int64_t row = i / count, col = i % count;
    return static_cast<double>(static_cast<float>(row == col  ? 0.5 + r.uniform()
                                                  : col > row ? 0.2 * r.normal()
                                                              : 1e30));
  };
  c.args = int_matrix_args(q);
  c.args[0] = {"bytes", Role::inout, Kind::u8, rows, cols, [](Rng&, int64_t) { return 9.0; }};
  c.args.push_back({"err", Role::out, Kind::f32, rows, count});
  c.args.push_back({"w", Role::in, Kind::f32, rows, count,
                    [](Rng& r, int64_t) { return static_cast<double>(static_cast<float>(0.1 * r.normal())); }});
  c.args.push_back({"u", Role::in, Kind::f32, count, count, u});
  c.args.push_back(
      {"order", Role::in, Kind::i32, 1, cols, [cols](Rng&, int64_t i) { return static_cast<double>(i * 3 % cols); }});
  c.args[5].spare_cols = 3;
  c.run = [=](Backend& b, const std::vector<Tensor>& t) {
    const auto by_group = [&](const Tensor& x) { return x.reshape(q.rows, q.groups_per_row()); };
    b.gptq_block(t[0], t[4], t[5], t[6], by_group(t[1]), by_group(t[float_zero ? 3 : 2]), reorder ? t[7] : Tensor{},
                 first, bits, group);
  };
  c.tolerance_f32 = kBitExact;
  c.bytes = 9.0 * static_cast<double>(rows * count) + 2.0 * static_cast<double>(count * count);
  return c;
}

inline OpCase permute_case(int64_t rows, int64_t cols) {
  OpCase c;
  c.name = strf("permute/rows=%ld,cols=%ld", static_cast<long>(rows), static_cast<long>(cols));
  const auto index = [](int64_t n, int64_t step) {
    return [n, step](Rng&, int64_t i) { return static_cast<double>(i * step % n); };
  };
  c.args = {{"y", Role::out, Kind::f32, rows, cols},
            {"x", Role::in, Kind::f32, rows, cols},
            {"rows", Role::in, Kind::i32, 1, rows, index(rows, 7)},
            {"cols", Role::in, Kind::i32, 1, cols, index(cols, 11)}};
  c.run = [](Backend& b, const std::vector<Tensor>& t) { b.permute(t[0], t[1], t[2], t[3]); };
  c.tolerance_f32 = kBitExact;
  c.bytes = 8.0 * static_cast<double>(rows * cols);
  return c;
}

// For the bench; test_gptq.cpp says what the factor must be. h is symmetric with a dominant diagonal.
inline OpCase gptq_factor_case(int64_t n) {
  OpCase c;
  c.name = strf("gptq_factor/n=%ld", static_cast<long>(n));
  const auto h = [n](Rng&, int64_t i) {
    const int64_t row = i / n, col = i % n;
    return row == col ? 2.0 : std::cos(static_cast<double>(row * col % 1009)) / static_cast<double>(n);
  };
  c.args = {
      {"u", Role::out, Kind::f32, n, n}, {"info", Role::out, Kind::i32, 1, 1}, {"h", Role::inout, Kind::f32, n, n, h}};
  c.run = [](Backend& b, const std::vector<Tensor>& t) { b.gptq_factor(t[0], t[1], t[2]); };
  const double size = static_cast<double>(n);
  c.bytes = 8 * size *
            size;  // what is read and written once; its n^3 FLOPs, a third each for factor, inverse and factor, bind
  return c;
}

inline std::vector<OpCase> gptq_cases() {
  std::vector<OpCase> cases;
  for (int bits = 2; bits <= 4; ++bits) {
    cases.push_back(gptq_block_case(bits, 32, false, false, 64, 128));
    cases.push_back(gptq_block_case(bits, 24, true, false, 128, 72));
    cases.push_back(gptq_block_case(bits, kPerChannel, false, true, 0, 128));
    cases.push_back(gptq_block_case(bits, 64, false, false, 7, 1));
  }
  cases.push_back(permute_case(19, 45));
  return cases;
}

}  // namespace irq
