// Cases of copy, fill, axpby, gather_rows, scatter_rows, reduce_sum.
#pragma once
#include <array>
#include <utility>

#include "tests/op_case.h"

namespace irq {

// spare: spare columns of both sides; odd ones leave rows unaligned, so that packs of 16 bytes are impossible.
inline OpCase copy_case(Kind to, Kind from, int64_t rows, int64_t cols, int64_t spare) {
  const char* kinds[] = {"storage", "master", "f32"};
  OpCase c;
  c.name = strf("copy/to=%s,from=%s,N=%ld,C=%ld,spare=%ld", kinds[int(to)], kinds[int(from)], rows, cols, spare);
  c.args = {{"dst", Role::out, to, rows, cols, nullptr, spare},
            {"src", Role::in, from, rows, cols, nullptr, 2 * spare}};
  c.run = [](Backend& b, const std::vector<Tensor>& t) { b.copy(t[0], t[1]); };
  c.tolerance_f32 = 0;                                                     // F32 and F64 hold the same values here
  if (to != Kind::storage || from == Kind::storage) c.tolerance_bf16 = 0;  // widening and moving are exact
  c.bytes = double(rows) * double(cols) * ((to == Kind::storage ? 2 : 4) + (from == Kind::storage ? 2 : 4));
  return c;
}

// Slices that begin in the middle of a row: the base address itself is not aligned.
inline OpCase copy_slice_case(int64_t rows, int64_t cols) {
  OpCase c;
  c.name = strf("copy/slice,N=%ld,C=%ld", rows, cols);
  c.args = {{"dst", Role::inout, Kind::storage, rows, cols}, {"src", Role::in, Kind::storage, rows, cols}};
  c.run = [=](Backend& b, const std::vector<Tensor>& t) {
    b.copy(t[0].slice_cols(3, cols - 3), t[1].slice_cols(2, cols - 3));
  };
  c.tolerance_f32 = c.tolerance_bf16 = 0;
  c.bytes = 4.0 * double(rows) * double(cols - 3);
  return c;
}

inline OpCase fill_case(Kind kind, int64_t rows, int64_t cols, int64_t spare, double value) {
  OpCase c;
  c.name = strf("fill/kind=%d,N=%ld,C=%ld,spare=%ld,value=%d", int(kind), rows, cols, spare, int(value * 100));
  c.args = {{"x", Role::out, kind, rows, cols, nullptr, spare}};
  c.run = [=](Backend& b, const std::vector<Tensor>& t) { b.fill(t[0], value); };
  c.tolerance_f32 = 1e-7;  // the constant is rounded once
  c.bytes = double(rows) * double(cols) * (kind == Kind::storage ? 2 : 4);
  return c;
}

inline OpCase axpby_case(Kind y, Kind x, int64_t rows, int64_t cols, int64_t spare, double alpha, double beta) {
  OpCase c;
  c.name = strf("axpby/y=%d,x=%d,N=%ld,C=%ld,spare=%ld,a=%d,b=%d", int(y), int(x), rows, cols, spare, int(alpha * 8),
                int(beta * 8));
  c.args = {{"y", beta == 0 ? Role::out : Role::inout, y, rows, cols, nullptr, spare},
            {"x", Role::in, x, rows, cols, nullptr, spare}};
  c.run = [=](Backend& b, const std::vector<Tensor>& t) { b.axpby(t[0], t[1], alpha, beta); };
  const double width_y = y == Kind::storage ? 2 : 4, width_x = x == Kind::storage ? 2 : 4;
  c.bytes = double(rows) * double(cols) * (width_y * (beta == 0 ? 1 : 2) + width_x);
  c.flops = double(rows) * double(cols) * (beta == 0 ? 1 : 3);
  return c;
}

inline OpCase gather_case(int64_t rows, int64_t from_rows, int64_t cols, int64_t spare, double beta) {
  OpCase c;
  c.name = strf("gather_rows/N=%ld,from=%ld,C=%ld,spare=%ld,b=%d", rows, from_rows, cols, spare, int(beta * 8));
  const auto index = [=](Rng& rng, int64_t i) { return i % 5 == 3 ? -1.0 : double(rng.below(uint64_t(from_rows))); };
  c.args = {{"y", beta == 0 ? Role::out : Role::inout, Kind::storage, rows, cols, nullptr, spare},
            {"x", Role::in, Kind::storage, from_rows, cols, nullptr, spare},
            {"index", Role::in, Kind::i32, 1, rows, index}};
  c.run = [=](Backend& b, const std::vector<Tensor>& t) { b.gather_rows(t[0], t[1], t[2], beta); };
  if (beta == 0) c.tolerance_f32 = c.tolerance_bf16 = 0;  // rows move unchanged
  c.bytes = double(rows) * double(cols) * 2 * (beta == 0 ? 2 : 3);
  return c;
}

// Rows n - 1, n - 2, ... of y, every fourth row nowhere; the others of y stay as they are.
inline OpCase scatter_case(int64_t rows, int64_t to_rows, int64_t cols, int64_t spare) {
  OpCase c;
  c.name = strf("scatter_rows/N=%ld,to=%ld,C=%ld,spare=%ld", rows, to_rows, cols, spare);
  const auto index = [=](Rng&, int64_t i) { return i % 4 == 3 ? -1.0 : double(to_rows - 1 - i); };
  c.args = {{"y", Role::inout, Kind::storage, to_rows, cols, nullptr, spare},
            {"x", Role::in, Kind::storage, rows, cols, nullptr, spare},
            {"index", Role::in, Kind::i32, 1, rows, index}};
  c.run = [](Backend& b, const std::vector<Tensor>& t) { b.scatter_rows(t[0], t[1], t[2]); };
  c.tolerance_f32 = c.tolerance_bf16 = 0;  // rows move unchanged
  c.bytes = double(rows) * double(cols) * 2 * 2;
  return c;
}

inline OpCase reduce_case(int64_t n, double beta) {
  OpCase c;
  c.name = strf("reduce_sum/n=%ld,b=%d", n, int(beta * 8));
  // Losses are positive; with random signs the sum would cancel and its relative error could be anything.
  const auto positive = [](Rng& rng, int64_t) { return rng.uniform(); };
  c.args = {{"total", beta == 0 ? Role::out : Role::inout, Kind::master, 1, 1, positive},
            {"x", Role::in, Kind::master, 1, n, positive}};
  c.run = [=](Backend& b, const std::vector<Tensor>& t) { b.reduce_sum(t[0], t[1], beta); };
  c.tolerance_f32 = c.tolerance_bf16 =
      2e-6;  // F32 on every device: chains of about 64 roundings of 6e-8, at random signs
  c.bytes = 4.0 * double(n);
  c.flops = double(n);
  return c;
}

inline std::vector<OpCase> memory_cases() {
  using enum Kind;
  std::vector<OpCase> cases;
  for (const auto& [to, from] : {std::pair{storage, storage}, {storage, f32}, {f32, storage}, {master, f32}})
    for (const auto& [rows, cols, spare] :
         {std::array<int64_t, 3>{1, 1, 0}, {3, 37, 0}, {33, 64, 8}, {5, 37, 3}, {70, 1000, 0}, {0, 8, 0}})
      cases.push_back(copy_case(to, from, rows, cols, spare));
  cases.push_back(copy_slice_case(9, 67));
  cases.push_back(fill_case(storage, 7, 41, 3, 0.1));
  cases.push_back(fill_case(storage, 64, 64, 8, -2.5));
  cases.push_back(fill_case(master, 1, 4099, 0, 0.0));
  for (const Kind y : {storage, master})
    for (const Kind x : {storage, master}) {
      cases.push_back(axpby_case(y, x, 5, 37, 1, 0.5, 1.0));
      cases.push_back(axpby_case(y, x, 33, 128, 8, 1.0, 0.0));
      cases.push_back(axpby_case(y, x, 17, 1003, 0, -1.5, 0.25));
    }
  cases.push_back(gather_case(1, 1, 8, 0, 0.0));
  cases.push_back(gather_case(37, 11, 64, 8, 0.0));
  cases.push_back(gather_case(20, 50, 61, 3, 1.0));
  cases.push_back(gather_case(129, 40, 520, 0, 0.5));
  cases.push_back(scatter_case(1, 1, 8, 0));
  cases.push_back(scatter_case(7, 20, 64, 8));
  cases.push_back(scatter_case(5, 5, 37, 3));
  cases.push_back(scatter_case(0, 4, 8, 0));
  for (const int64_t n : {1, 31, 1000, 16384, 16385, 300001}) cases.push_back(reduce_case(n, n % 2 == 0 ? 0.0 : 1.0));
  return cases;
}

}  // namespace irq
