// Cases of LoRA under dropout: one to three adapters, ranks that fill a tensor-core tile and ranks that do not, widths with
// even, odd and short slices of the pooled branch, dead rows, strided and unaligned views.
#pragma once
#include "tests/cases/dropout.h"
#include "tests/op_case.h"

namespace irq {

struct LoraDropoutShape {
  int64_t n, h, r;
  int count;
  double p = 0.1, beta = 0;
  int64_t spare = 0;
  bool tile = false, pool = true;
};

inline AdapterMasks masks_of(const std::vector<Tensor>& t, int count, double p) {
  AdapterMasks m;
  m.count = count, m.ids = {9, 3, 12, 5}, m.p = p;
  m.positions = t[t.size() - 4], m.samples = t[t.size() - 3], m.params = t[t.size() - 2];
  return m;
}
inline MaskBits bits_of(const std::vector<Tensor>& t, int count, double p) {
  return {count, p, t[t.size() - 1], t[t.size() - 4]};
}
inline Arg matrix_argument(const char* name, Role role, Kind kind, int64_t rows, int64_t cols, int64_t spare) {
  return {.name = name, .role = role, .kind = kind, .rows = rows, .cols = cols, .spare_cols = spare};
}
inline std::string lora_dropout_name(const char* op, const LoraDropoutShape& s) {
  return strf("%s/N=%ld,h=%ld,r=%ld,adapters=%d,p=%d,beta=%d,spare=%ld,tile=%d,pool=%d", op, s.n, s.h, s.r, s.count,
              static_cast<int>(s.p * 1000), static_cast<int>(s.beta * 10), s.spare, s.tile, s.pool);
}

// The last arguments of the cases of products, and the bits themselves, which are made before.
inline void add_masks(OpCase& k, const LoraDropoutShape& s) {
  for (Arg& a : mask_arguments(s.n)) k.args.push_back(std::move(a));
  k.args.push_back({.name = "bits",
                    .role = Role::in,
                    .kind = Kind::u8,
                    .rows = s.count * mask_blocks(s.h),
                    .cols = mask_bytes(s.n),
                    .value = [](Rng&, int64_t) { return 0; }});
  k.prepare = [=](Backend& b, const std::vector<Tensor>& t) {
    b.dropout_masks(t.back(), s.h, masks_of(t, s.count, s.p));
  };
}

inline double mask_bits_bytes(const LoraDropoutShape& s) {
  return static_cast<double>(s.count * mask_blocks(s.h) * mask_bytes(s.n));
}

inline OpCase dropout_masks_case(const LoraDropoutShape& s) {
  OpCase k;
  k.name = strf("dropout_masks/N=%ld,h=%ld,adapters=%d,p=%d", s.n, s.h, s.count, static_cast<int>(s.p * 1000));
  add_masks(k, s);
  k.args.back().role = Role::out;
  k.args.back().value = nullptr;
  k.run = k.prepare, k.prepare = nullptr;
  k.tolerance_f32 = k.tolerance_bf16 = 0;  // bits
  k.bytes = mask_bits_bytes(s);
  return k;
}

inline OpCase lora_dropout_fwd_case(const LoraDropoutShape& s) {
  OpCase k;
  k.name = lora_dropout_name("lora_dropout_fwd", s);
  k.args = {matrix_argument("u", Role::out, Kind::storage, s.n, s.r * s.count, s.spare),
            matrix_argument("px", s.pool ? Role::out : Role::in, Kind::storage, s.n, s.r, s.spare),
            matrix_argument("x", Role::in, Kind::storage, s.n, s.h, s.spare),
            matrix_argument("a", Role::in, Kind::storage, s.r * s.count, s.h, s.spare),
            {.name = "beta1", .role = Role::in, .kind = Kind::master, .rows = 1, .cols = 1, .value = [](Rng&, int64_t) {
               return 0.7;
             }}};
  add_masks(k, s);
  k.run = [=](Backend& b, const std::vector<Tensor>& t) {
    AdapterScalars beta1{};
    for (int m = 0; m < s.count; ++m)
      if (m != 1) beta1[static_cast<size_t>(m)] = t[4];  // the second adapter has none
    b.lora_dropout_fwd(t[0], s.pool ? t[1] : Tensor{}, t[2], t[3], beta1, bits_of(t, s.count, s.p), s.tile);
  };
  const auto n = static_cast<double>(s.n), h = static_cast<double>(s.h), ranks = static_cast<double>(s.r * s.count);
  k.bytes = 2 * (n * (h + ranks) + ranks * h) + mask_bits_bytes(s);
  k.flops = 2 * n * h * ranks;
  return k;
}

inline OpCase lora_dropout_da_case(const LoraDropoutShape& s) {
  OpCase k;
  k.name = lora_dropout_name("lora_dropout_da", s);
  k.args = {matrix_argument("da", s.beta == 0 ? Role::out : Role::inout, Kind::master, s.r * s.count, s.h, s.spare),
            matrix_argument("du", Role::in, Kind::storage, s.n, s.r * s.count, s.spare),
            matrix_argument("x", Role::in, Kind::storage, s.n, s.h, s.spare)};
  add_masks(k, s);
  k.run = [=](Backend& b, const std::vector<Tensor>& t) {
    b.lora_dropout_da(t[0], t[1], t[2], bits_of(t, s.count, s.p), s.beta);
  };
  const auto n = static_cast<double>(s.n), h = static_cast<double>(s.h), ranks = static_cast<double>(s.r * s.count);
  k.bytes = 2 * n * (h + ranks) + 4 * ranks * h + mask_bits_bytes(s);
  k.flops = 2 * n * h * ranks;
  return k;
}

inline OpCase lora_dropout_dx_case(const LoraDropoutShape& s) {
  OpCase k;
  k.name = lora_dropout_name("lora_dropout_dx", s);
  k.args = {matrix_argument("dx", s.beta == 0 ? Role::out : Role::inout, Kind::storage, s.n, s.h, s.spare),
            matrix_argument("du", Role::in, Kind::storage, s.n, s.r * s.count, s.spare),
            matrix_argument("a", Role::in, Kind::storage, s.r * s.count, s.h, s.spare)};
  add_masks(k, s);
  k.run = [=](Backend& b, const std::vector<Tensor>& t) {
    b.lora_dropout_dx(t[0], t[1], t[2], bits_of(t, s.count, s.p), s.beta);
  };
  const auto n = static_cast<double>(s.n), h = static_cast<double>(s.h), ranks = static_cast<double>(s.r * s.count);
  k.bytes = 2 * (n * (h * (s.beta == 0 ? 1 : 2) + ranks) + ranks * h) + mask_bits_bytes(s);
  k.flops = 2 * n * h * ranks;
  return k;
}

inline OpCase lora_dropout_dbeta1_case(const LoraDropoutShape& s) {
  OpCase k;
  k.name = lora_dropout_name("lora_dropout_dbeta1", s);
  const auto around_one = [](Rng& rng, int64_t) { return 1 + rng.normal(); };  // the sum does not cancel
  const Role role = s.beta == 0 ? Role::out : Role::inout;
  k.args = {matrix_argument("dbeta1 of the first", role, Kind::master, 1, 1, 0),
            matrix_argument("dbeta1 of the last", role, Kind::master, 1, 1, 0),
            matrix_argument("du", Role::in, Kind::storage, s.n, s.r * s.count, s.spare),
            matrix_argument("px", Role::in, Kind::storage, s.n, s.r, s.spare)};
  k.args[2].value = around_one, k.args[3].value = around_one;
  k.run = [=](Backend& b, const std::vector<Tensor>& t) {
    AdapterScalars dbeta1{};
    dbeta1[0] = t[0];
    dbeta1[static_cast<size_t>(s.count - 1)] = t[1];
    if (s.count == 1) b.copy(t[0], t[1]);  // one adapter has one result
    b.lora_dropout_dbeta1(dbeta1, t[2], t[3], s.count, s.beta);
    if (s.count == 1) b.copy(t[0], t[1]);
  };
  k.bytes = 2 * static_cast<double>(s.n * s.r * (s.count + 1));
  k.flops = 2 * static_cast<double>(s.n * s.r * s.count);
  return k;
}

inline std::vector<OpCase> lora_dropout_cases() {
  const std::vector<LoraDropoutShape> shapes = {
      {.n = 67, .h = 512, .r = 64, .count = 3},
      {.n = 131, .h = 768, .r = 64, .count = 1, .p = 0.3, .beta = 1, .tile = true},  // slices of 12
      {.n = 64, .h = 352, .r = 8, .count = 2, .beta = 0.5, .spare = 8},  // slices of 44; 352 is no multiple of 64
      {.n = 33, .h = 1376, .r = 64, .count = 2},                         // slices of 43
      {.n = 70, .h = 2176, .r = 64, .count = 1},                         // several blocks share a tile of rows
      {.n = 129, .h = 1024, .r = 16, .count = 2, .tile = true},
      {.n = 40, .h = 96, .r = 24, .count = 3, .spare = 16, .tile = true},  // slices of 4
      {.n = 19, .h = 352, .r = 80, .count = 2, .beta = 1},                 // four times up to 64 ranks
      {.n = 9, .h = 144, .r = 72, .count = 1},                             // 72 slices: more than are summed at once
      {.n = 300, .h = 520, .r = 16, .count = 4, .p = 0.6, .pool = false},  // more than half dropped
      {.n = 11, .h = 37, .r = 10, .count = 2, .beta = 1},                  // nothing is a multiple of anything
      {.n = 7, .h = 64, .r = 16, .count = 1, .beta = 0.5, .spare = 3},     // rows that do not start at 16 bytes
      {.n = 1, .h = 8, .r = 8, .count = 1},
      {.n = 5, .h = 64, .r = 5, .count = 3, .p = 0},
      {.n = 0, .h = 64, .r = 16, .count = 2, .beta = 1}};
  std::vector<OpCase> cases;
  for (const LoraDropoutShape& s : shapes) {
    if (s.beta == 0) cases.push_back(dropout_masks_case(s));
    cases.push_back(lora_dropout_fwd_case(s));
    cases.push_back(lora_dropout_da_case(s));
    cases.push_back(lora_dropout_dx_case(s));
    cases.push_back(lora_dropout_dbeta1_case(s));
  }
  return cases;
}

}  // namespace irq
