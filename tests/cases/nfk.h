// Cases of the NF-k ops. The quantizers are bit-exact on every device, so their tolerance is 0.
#pragma once
#include "tests/op_case.h"

namespace irq {

constexpr double kBitExact = 0;

inline Arg weight_arg(int64_t n) {
  return {"w", Role::in, Kind::f32, 1, n, [](Rng& r, int64_t i) {
            return static_cast<double>(static_cast<float>(r.normal() * (i / 64 % 5 + 1) * 0.01));
          }};
}
inline Arg map_arg() {
  return {"map", Role::in, Kind::f32,
          1,     256,      [](Rng&, int64_t i) { return static_cast<double>(dynamic_map()[static_cast<size_t>(i)]); }};
}
inline int64_t block_count(int64_t n) { return (n + kBlock - 1) / kBlock; }
inline int64_t group_count(int64_t blocks) { return (blocks + kScaleGroup - 1) / kScaleGroup; }

// `setting`: what of the spec the name says.
inline OpCase icq_search_case(int bits, int64_t n, const std::string& setting, const IcqSpec& spec) {
  OpCase c;
  c.name = strf("icq_search/bits=%d,n=%ld,%s", bits, static_cast<long>(n), setting.c_str());
  c.args = {{"tau", Role::out, Kind::f32, 1, block_count(n)},
            {"plain", Role::out, Kind::f32, 1, block_count(n)},
            {"best", Role::out, Kind::f32, 1, block_count(n)},
            weight_arg(n)};
  c.run = [=](Backend& b, const std::vector<Tensor>& t) { b.icq_search(t[0], t[1], t[2], t[3], bits, spec); };
  c.tolerance_f32 = c.tolerance_bf16 = kBitExact;
  c.bytes = static_cast<double>(n) * (4 + 12.0 / 64);
  return c;
}

inline OpCase icq_search_case(int bits, int64_t n, bool fp32) {
  return icq_search_case(bits, n, strf("fp32=%d", fp32), {0.1, 100, fp32});
}
// One of each setting beyond the paper, and all at once.
inline std::vector<std::pair<std::string, IcqSpec>> icq_settings() {
  using enum IcqWidth;
  return {{"ties=mse", {.ties = IcqTies::mse}},
          {"search=exact", {.search = IcqSearch::exact}},
          {"search=exact,ties=mse", {.ties = IcqTies::mse, .search = IcqSearch::exact}},
          {"width=absmax", {.width = absmax}},
          {"width=block-std", {.width = block_std}},
          {"width=raw", {.width = raw}},
          {"width=absmax,search=exact", {.search = IcqSearch::exact, .width = absmax}},
          {"candidates=2n", {.even = true}}};
}

inline std::vector<OpCase> icq_search_cases() {
  std::vector<OpCase> cases;
  for (int bits = 2; bits <= 4; ++bits)
    for (const int64_t n : {int64_t{1}, int64_t{64}, int64_t{64 * 33 + 7}, int64_t{64 * 130}}) {
      cases.push_back(icq_search_case(bits, n, false));
      if (bits == 4) cases.push_back(icq_search_case(bits, n, true));
      for (const auto& [setting, spec] : icq_settings())
        if (n % 64 == 7 || n == 1) cases.push_back(icq_search_case(bits, n, setting, spec));
    }
  return cases;
}

inline OpCase nfk_quantize_case(int bits, int64_t n, bool with_tau) {
  OpCase c;
  c.name = strf("nfk_quantize/bits=%d,n=%ld", bits, static_cast<long>(n));
  const auto shift = [](Rng& r, int64_t) { return static_cast<double>(static_cast<float>(r.normal() * 0.002)); };
  c.args = {{"codes", Role::out, Kind::u8, 1, (n * bits + 7) / 8},
            {"absmax", Role::out, Kind::f32, 1, block_count(n)},
            {"entropy", Role::out, Kind::f32, 1, block_count(n)},
            weight_arg(n),
            {"tau", Role::in, Kind::f32, 1, block_count(n), shift}};
  c.run = [=](Backend& b, const std::vector<Tensor>& t) {
    b.nfk_quantize(t[0], t[1], t[2], t[3], with_tau ? t[4] : Tensor{}, bits);
  };
  c.tolerance_f32 = c.tolerance_bf16 = kBitExact;
  c.bytes = static_cast<double>(n) * (4 + bits / 8.0 + 12.0 / 64);
  return c;
}

inline std::vector<OpCase> nfk_quantize_cases() {
  std::vector<OpCase> cases;
  for (int bits = 2; bits <= 4; ++bits)
    for (const int64_t n : {int64_t{1}, int64_t{63}, int64_t{64}, int64_t{64 * 9 + 33}, int64_t{16384 + 64}})
      cases.push_back(nfk_quantize_case(bits, n, n != 63));
  return cases;
}

inline OpCase double_quantize_scales_case(int64_t blocks) {
  OpCase c;
  c.name = strf("double_quantize_scales/blocks=%ld", static_cast<long>(blocks));
  const auto value = [](Rng& r, int64_t) { return static_cast<double>(static_cast<float>(0.04 + 0.01 * r.normal())); };
  c.args = {{"codes", Role::out, Kind::u8, 1, blocks},
            {"groups", Role::out, Kind::f32, 1, group_count(blocks)},
            {"offset", Role::out, Kind::f32, 1, 1},
            {"absmax", Role::in, Kind::f32, 1, blocks, value},
            map_arg()};
  c.run = [](Backend& b, const std::vector<Tensor>& t) { b.double_quantize_scales(t[0], t[1], t[2], t[3], t[4]); };
  c.tolerance_f32 = c.tolerance_bf16 = kBitExact;
  c.bytes = 9.0 * static_cast<double>(blocks);
  return c;
}

inline OpCase double_quantize_tau_case(int64_t blocks) {
  OpCase c;
  c.name = strf("double_quantize_tau/blocks=%ld", static_cast<long>(blocks));
  c.args = {{"codes", Role::out, Kind::u8, 1, blocks},
            {"groups", Role::out, Kind::f32, 1, group_count(blocks)},
            {"tau", Role::in, Kind::f32, 1, blocks},
            map_arg()};
  c.run = [](Backend& b, const std::vector<Tensor>& t) { b.double_quantize_tau(t[0], t[1], t[2], t[3]); };
  c.tolerance_f32 = c.tolerance_bf16 = kBitExact;
  c.bytes = 5.0 * static_cast<double>(blocks);
  return c;
}

inline OpCase dequantize_tau_case(int64_t blocks) {
  OpCase c;
  c.name = strf("dequantize_tau/blocks=%ld", static_cast<long>(blocks));
  c.args = {{"tau_hat", Role::out, Kind::f32, 1, blocks},
            {"codes", Role::in, Kind::u8, 1, blocks, [](Rng& r, int64_t) { return static_cast<double>(r.below(256)); }},
            {"groups", Role::in, Kind::f32, 1, group_count(blocks)},
            map_arg()};
  c.run = [](Backend& b, const std::vector<Tensor>& t) { b.dequantize_tau(t[0], t[1], t[2], t[3]); };
  c.tolerance_f32 = c.tolerance_bf16 = kBitExact;
  c.bytes = 5.0 * static_cast<double>(blocks);
  return c;
}

inline OpCase squared_errors_case(int64_t n) {
  OpCase c;
  c.name = strf("squared_errors/n=%ld", static_cast<long>(n));
  c.args = {{"errors", Role::out, Kind::f64, 1, block_count(n)}, weight_arg(n), weight_arg(n)};
  c.run = [](Backend& b, const std::vector<Tensor>& t) { b.squared_errors(t[0], t[1], t[2]); };
  c.tolerance_f32 = c.tolerance_bf16 = kBitExact;
  c.bytes = 8.125 * static_cast<double>(n);
  return c;
}
inline std::vector<OpCase> squared_errors_cases() {
  return {squared_errors_case(1), squared_errors_case(33), squared_errors_case(64), squared_errors_case(64 * 19 + 40)};
}

inline std::vector<OpCase> double_quantize_cases() {
  std::vector<OpCase> cases;
  for (const int64_t blocks : {1, 255, 256, 300, 4097, 8192}) {
    cases.push_back(double_quantize_scales_case(blocks));
    cases.push_back(double_quantize_tau_case(blocks));
    cases.push_back(dequantize_tau_case(blocks));
  }
  return cases;
}

// The seven parts of a (rows, cols) matrix with random codes, as arguments from index 2 on, and the way back.
inline std::vector<Arg> matrix_args(int64_t rows, int64_t cols, int bits) {
  const int64_t n = rows * cols, blocks = block_count(n), groups = group_count(blocks);
  const auto byte = [](Rng& r, int64_t) { return static_cast<double>(r.below(256)); };
  const auto positive = [](Rng& r, int64_t) {
    return static_cast<double>(static_cast<float>(0.01 + 0.002 * r.uniform()));
  };
  return {{"codes", Role::in, Kind::u8, 1, (n * bits + 7) / 8, byte},
          {"scale_codes", Role::in, Kind::u8, 1, blocks, byte},
          {"scale_groups", Role::in, Kind::f32, 1, groups, positive},
          {"scale_offset", Role::in, Kind::f32, 1, 1, positive},
          {"tau_codes", Role::in, Kind::u8, 1, blocks, byte},
          {"tau_groups", Role::in, Kind::f32, 1, groups, positive},
          map_arg(),
          {"scales", Role::in, Kind::f32, 1, blocks, positive}};
}
inline QuantizedMatrix matrix_of(const std::vector<Tensor>& t, size_t first, int64_t rows, int64_t cols,
                                 QuantFormat format) {
  QuantizedMatrix q;
  q.rows = rows, q.cols = cols, q.format = format;
  q.codes = t[first], q.scale_codes = t[first + 1], q.scale_groups = t[first + 2], q.scale_offset = t[first + 3];
  q.tau_codes = t[first + 4], q.tau_groups = t[first + 5], q.map = t[first + 6], q.scales = t[first + 7];
  return q;
}

struct MatrixShape {
  int64_t rows, cols, spare;
};
inline OpCase nfk_dequant_case(const QuantFormat& format, const MatrixShape& s) {
  OpCase c;
  const bool tau = format.shift == ShiftKind::tau;
  c.name = strf("nfk_dequant/bits=%d,tau=%d,rows=%ld,cols=%ld,spare=%ld", format.bits, tau, static_cast<long>(s.rows),
                static_cast<long>(s.cols), static_cast<long>(s.spare));
  c.args = matrix_args(s.rows, s.cols, format.bits);
  c.args.insert(c.args.begin(), {"w", Role::out, Kind::storage, s.rows, s.cols});
  c.args[0].spare_cols = s.spare;
  c.run = [=](Backend& b, const std::vector<Tensor>& t) {
    b.nfk_dequant(t[0], matrix_of(t, 1, s.rows, s.cols, format));
  };
  c.tolerance_f32 = kBitExact;  // fp32 steps are prescribed, whatever the storage
  c.bytes = static_cast<double>(s.rows * s.cols) * (2 + format.bits / 8.0 + (tau ? 2.0 : 1.0) / 64);
  return c;
}

inline std::vector<OpCase> nfk_dequant_cases() {
  std::vector<OpCase> cases;
  for (int bits = 2; bits <= 4; ++bits)
    for (const bool tau : {true, false})
      // whole warps; a strided view; an odd number of blocks; a stride that is no multiple of 16 bytes; blocks across
      // rows
      for (const MatrixShape s :
           {MatrixShape{16, 128, 0}, MatrixShape{5, 192, 8}, MatrixShape{1, 64, 0}, MatrixShape{3, 576, 0},
            MatrixShape{3, 64, 3}, MatrixShape{7, 33, 2}, MatrixShape{300, 64, 0}})
        cases.push_back(nfk_dequant_case({QuantKind::nf, bits, kBlock, s.rows == 3 ? ScaleKind::f32 : ScaleKind::dq8,
                                          tau ? ShiftKind::tau : ShiftKind::none},
                                         s));
  return cases;
}

inline OpCase nfk_matmul_case(const QuantFormat& format, int64_t m, const MatrixShape& s, double beta) {
  OpCase c;
  c.name = strf("nfk_matmul/bits=%d,M=%ld,rows=%ld,cols=%ld,spare=%ld", format.bits, static_cast<long>(m),
                static_cast<long>(s.rows), static_cast<long>(s.cols), static_cast<long>(s.spare));
  c.args = matrix_args(s.rows, s.cols, format.bits);
  c.args.insert(c.args.begin(), {{"y", beta == 0 ? Role::out : Role::inout, Kind::storage, m, s.rows},
                                 {"x", Role::in, Kind::storage, m, s.cols}});
  c.args[0].spare_cols = c.args[1].spare_cols = s.spare;
  c.run = [=](Backend& b, const std::vector<Tensor>& t) {
    b.nfk_matmul(t[0], t[1], matrix_of(t, 2, s.rows, s.cols, format), beta);
  };
  c.bytes = static_cast<double>(s.rows * s.cols) * (format.bits / 8.0 + 2.0 / 64) +
            2.0 * static_cast<double>(m * (s.rows + s.cols));
  c.flops = 2.0 * static_cast<double>(m * s.rows * s.cols);
  return c;
}

inline std::vector<OpCase> nfk_matmul_cases() {
  std::vector<OpCase> cases;
  for (int bits = 2; bits <= 4; ++bits)
    for (const int64_t m : {0, 1, 3, 8, 16, 17})
      // 2432 columns: more than one chunk for some warps, the last not full; an unaligned x; blocks across rows
      for (const MatrixShape s :
           {MatrixShape{33, 576, 0}, MatrixShape{20, 2432, 8}, MatrixShape{9, 64, 3}, MatrixShape{5, 37, 0}})
        cases.push_back(nfk_matmul_case({QuantKind::nf, bits, kBlock, m == 17 ? ScaleKind::f32 : ScaleKind::dq8,
                                         m != 3 ? ShiftKind::tau : ShiftKind::none},
                                        m, s, m == 8 ? 0.5 : 0.0));
  // Columns in whole pieces of 256, as the kernels that keep a multiprocessor for each share of the rows want them: 2, 11, 17
  // and 4 pieces a row, for 16 warps; rows that do not fill a tile; rows that no multiprocessor has more of than another.
  const QuantFormat plain_tau{QuantKind::nf, 4, kBlock, ScaleKind::dq8, ShiftKind::tau};
  for (int bits = 2; bits <= 4; ++bits)
    for (const int64_t m : {1, 2, 4, 8, 9, 16, 17, 31, 33, 64})
      for (const MatrixShape s : {MatrixShape{300, 512, 0}, MatrixShape{33, 2816, 8}, MatrixShape{150, 4352, 0},
                                  MatrixShape{2200, 1024, 8}}) {
        if (s.rows == 2200 && bits + m % 3 != 4) continue;  // the large one: each number of bits with some of the m
        QuantFormat format = plain_tau;
        format.bits = bits;
        if (m == 4 || m == 31) format.shift = ShiftKind::none;
        cases.push_back(nfk_matmul_case(format, m, s, m == 2 || m == 16 ? 0.5 : 0.0));
      }
  // More rows than fit on all multiprocessors at once.
  cases.push_back(nfk_matmul_case(plain_tau, 3, {26000, 256, 0}, 0));
  cases.push_back(nfk_matmul_case(plain_tau, 20, {26000, 256, 0}, 0));
  return cases;
}

}  // namespace irq
