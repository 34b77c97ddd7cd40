// LoRA under dropout: the ops against their composition of plain ones, and the masks computed in two halves.
#include <gtest/gtest.h>

#include <list>

#include "kernels/dropout.h"
#include "tests/cases/lora_dropout.h"
#include "tests/sm80_kernels.h"

namespace irq {

IRQ_OP_TESTS(LoraDropout, lora_dropout_cases());

namespace {

// A Hopper GPU takes kernels of its own; those for sm_80 must be right there too.
std::vector<OpCase> sm80_cases() {
  std::vector<OpCase> cases = lora_dropout_cases();
  for (OpCase& c : cases) c = by_sm80_kernels(c);
  return cases;
}
IRQ_OP_TESTS(LoraDropoutSm80, sm80_cases());

// At the widths of a 7B: many blocks, ranges and splits, where the CPU would take too long.
TEST(LoraDropoutCuda, BothKernelsAgreeOnLargeShapes) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  for (const LoraDropoutShape& s : {LoraDropoutShape{.n = 1100, .h = 4096, .r = 64, .count = 3},
                                    LoraDropoutShape{.n = 1100, .h = 4096, .r = 64, .count = 2, .beta = 1},
                                    LoraDropoutShape{.n = 500, .h = 11008, .r = 64, .count = 1},
                                    // Three row ranges of da, three feature ranges of fwd: not pairs.
                                    LoraDropoutShape{.n = 3000, .h = 11008, .r = 64, .count = 1},
                                    LoraDropoutShape{.n = 5600, .h = 4096, .r = 64, .count = 1}})
    for (OpCase c : {lora_dropout_fwd_case(s), lora_dropout_da_case(s), lora_dropout_dx_case(s)}) {
      const HostArgs args = make_inputs(c);
      const HostArgs first = run_case(c, cuda_backend(DType::BF16), args);
      use_only_sm80_kernels(true);
      const HostArgs second = run_case(c, cuda_backend(DType::BF16), args);
      use_only_sm80_kernels(false);
      for (size_t i = 0; i < c.args.size(); ++i) {
        if (c.args[i].role == Role::in) continue;
        EXPECT_LE(relative_l2(first[i], second[i]), 5e-3)  // the same terms in another order; one rounding to bf16 each
            << c.name << ": " << c.args[i].name;
      }
    }
}

TEST(LoraDropoutCuda, SameBitsEveryTime) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  const LoraDropoutShape s = {.n = 700, .h = 1024, .r = 64, .count = 3};
  for (const OpCase& c : {lora_dropout_fwd_case(s), lora_dropout_da_case(s), lora_dropout_dx_case(s)}) {
    const HostArgs args = make_inputs(c);
    const HostArgs first = run_case(c, cuda_backend(DType::BF16), args);
    for (int i = 0; i < 3; ++i) EXPECT_EQ(first, run_case(c, cuda_backend(DType::BF16), args)) << c.name;
  }
}

TEST(DropoutHalves, GiveTheDrawsOfDropout) {
  Rng rng(5);
  for (int i = 0; i < 1000; ++i) {
    const uint32_t seed[2] = {rng.next_u32(), rng.next_u32()};
    const int position = static_cast<int>(rng.below(5000)), adapter = static_cast<int>(rng.below(300));
    const int sample = static_cast<int>(rng.below(1u << 31));
    const int64_t feature = static_cast<int64_t>(rng.below(11008));
    const Philox4 whole = dropout_bits(feature, position, sample, adapter, seed);
    const Philox4 halves =
        dropout_pair(dropout_row(position, sample, seed), dropout_column(feature, adapter, seed), seed);
    ASSERT_EQ(whole.x, halves.x);
    ASSERT_EQ(whole.y, halves.y);
    ASSERT_EQ(whole.z, halves.z);
    ASSERT_EQ(whole.w, halves.w);
  }
}

TEST(DropoutHalves, KeepTwoDrawsAtOnce) {
  for (const uint32_t threshold : {0u, 1u, 6554u, 0x7fffu, 0x8000u, 0x8001u, 40000u, 0xfffeu}) {
    const DropoutThreshold t = dropout_threshold(threshold);
    for (uint32_t draw = 0; draw < 65536; ++draw) {
      const uint32_t other = (draw * 40503u) & 0xffffu;  // in the other half, where it must not matter
      const uint32_t kept = dropout_kept(draw | other << 16, t);
      ASSERT_EQ((kept >> 15 & 1) != 0, draw >= threshold) << draw << " against " << threshold;
      ASSERT_EQ(kept >> 31 != 0, other >= threshold) << other << " against " << threshold;
    }
  }
}

struct Mat {
  int64_t rows, cols;
  std::vector<double> v;
  Mat(int64_t r, int64_t c, double value = NAN) : rows(r), cols(c), v(static_cast<size_t>(r * c), value) {}
  Mat(int64_t r, int64_t c, uint64_t seed) : Mat(r, c) {
    Rng rng(seed);
    for (double& x : v) x = rng.normal();
  }
  Tensor view(const char* name) { return make_view(v.data(), DType::F64, rows, cols, name); }
};

// Rows of two samples and a dead one, two adapters.
struct Fixture {
  static constexpr int64_t n = 6, h = 24, r = 4;
  static constexpr int count = 2;
  std::vector<int32_t> positions{0, 1, 2, -1, 0, 1}, samples{3, 3, 3, -1, 8, 8};
  StepParams params;
  Mat x{n, h, uint64_t{1}}, a{r * count, h, uint64_t{2}}, du{n, r*count, uint64_t{3}}, beta1{1, 1, 0.7};
  Backend& cpu = cpu_backend(DType::F64);
  std::list<std::vector<uint8_t>> memories;

  Fixture() { params.seed[0] = 17; }
  AdapterMasks masks(double p) {
    return {.count = count,
            .ids = {4, 9},
            .p = p,
            .positions = make_view(positions.data(), DType::I32, 1, n, "positions"),
            .samples = make_view(samples.data(), DType::I32, 1, n, "samples"),
            .params = make_view(&params, DType::U8, 1, sizeof(params), "params")};
  }
  MaskBits bits(double p) {
    std::vector<uint8_t>& memory = memories.emplace_back(static_cast<size_t>(count * mask_blocks(h) * mask_bytes(n)));
    const Tensor view = make_view(memory.data(), DType::U8, count * mask_blocks(h), mask_bytes(n), "bits");
    const AdapterMasks k = masks(p);
    cpu.dropout_masks(view, h, k);
    return {count, p, view, k.positions};
  }
  // drop(x) of adapter m, with the scale.
  Mat dropped(double p, int m) {
    Mat y(n, h);
    const AdapterMasks k = masks(p);
    cpu.dropout(y.view("dropped"), x.view("x"), k.positions, k.samples, k.params, k.ids[static_cast<size_t>(m)], p, 0);
    return y;
  }
};

void expect_near(const std::vector<double>& out, const std::vector<double>& expected) {
  ASSERT_EQ(out.size(), expected.size());
  for (size_t i = 0; i < out.size(); ++i) ASSERT_NEAR(out[i], expected[i], 1e-12) << "element " << i;  // F64 rounding
}

// u, dA and dx as `dropout` and products make them; the live rows' means beside u.
TEST(LoraDropoutOps, AreTheirComposition) {
  Fixture f;
  const double p = 0.3;
  Mat u(f.n, f.r * f.count), px(f.n, f.r), da(f.r * f.count, f.h), dx(f.n, f.h, uint64_t{7}), dbeta1(1, 1, 0.5);
  Mat expected_u = u, expected_px(f.n, f.r, 0.0), expected_da = da, expected_dx = dx;
  const AdapterScalars beta1{f.beta1.view("beta1"), Tensor{}};
  f.cpu.lora_dropout_fwd(u.view("u"), px.view("px"), f.x.view("x"), f.a.view("a"), beta1, f.bits(p), false);
  f.cpu.lora_dropout_da(da.view("da"), f.du.view("du"), f.x.view("x"), f.bits(p), 0);
  f.cpu.lora_dropout_dx(dx.view("dx"), f.du.view("du"), f.a.view("a"), f.bits(p), 0.5);
  f.cpu.lora_dropout_dbeta1({Tensor{}, dbeta1.view("dbeta1")}, f.du.view("du"), px.view("px"), f.count, 2);

  for (int64_t i = 0; i < f.n; ++i)
    for (int64_t j = 0; j < f.r; ++j)
      for (int64_t k = 0; k < 6 && i != 3; ++k)  // gcd(24, 4) = 4 slices of 6
        expected_px.v[static_cast<size_t>(i * f.r + j)] += f.x.v[static_cast<size_t>(i * f.h + j * 6 + k)] / 6;
  double dot = 2 * 0.5;
  f.cpu.axpby(expected_dx.view("dx"), expected_dx.view("dx"), 0, 0.5);
  for (int m = 0; m < f.count; ++m) {
    const auto columns = [&](Mat& t) { return t.view("").slice_cols(m * f.r, f.r); };
    const auto rows = [&](Mat& t) { return t.view("").slice_rows(m * f.r, f.r); };
    Mat dropped = f.dropped(p, m), through(f.n, f.h);
    f.cpu.matmul(columns(expected_u), dropped.view(""), false, rows(f.a), true, 1, 0, {});
    if (m == 0) f.cpu.axpby(columns(expected_u), expected_px.view(""), 0.7, 1);
    f.cpu.matmul(rows(expected_da), columns(f.du), true, dropped.view(""), false, 1, 0, {});
    f.cpu.matmul(through.view(""), columns(f.du), false, rows(f.a), false, 1, 0, {});
    const AdapterMasks k = f.masks(p);
    f.cpu.dropout(expected_dx.view(""), through.view(""), k.positions, k.samples, k.params,
                  k.ids[static_cast<size_t>(m)], p, 1);
    for (int64_t i = 0; m == 1 && i < f.n; ++i)
      for (int64_t j = 0; j < f.r; ++j)
        dot += f.du.v[static_cast<size_t>(i * f.r * 2 + f.r + j)] * expected_px.v[static_cast<size_t>(i * f.r + j)];
  }
  expect_near(px.v, expected_px.v);
  expect_near(u.v, expected_u.v);
  expect_near(da.v, expected_da.v);
  expect_near(dx.v, expected_dx.v);
  EXPECT_NEAR(dbeta1.v[0], dot, 1e-12);
}

// Every bit at its place: dropout of ones is zero where the bit is; beyond the last feature, in dead rows and in the row that
// fills a piece up to 16 bytes there are none.
TEST(DropoutMasks, AreDropoutsOwn) {
  Backend& cpu = cpu_backend(DType::F64);
  constexpr int64_t n = 5, h = 150;
  std::vector<int32_t> positions{4, 0, -1, 9, 2}, samples{1, 7, 7, 7, 1 << 30};
  StepParams params;
  params.seed[0] = 3, params.seed[1] = 99;
  AdapterMasks masks{.count = 2,
                     .ids = {11, 6},
                     .p = 0.3,
                     .positions = make_view(positions.data(), DType::I32, 1, n, "positions"),
                     .samples = make_view(samples.data(), DType::I32, 1, n, "samples"),
                     .params = make_view(&params, DType::U8, 1, sizeof(params), "params")};
  std::vector<uint8_t> memory(static_cast<size_t>(2 * mask_blocks(h) * mask_bytes(n)), 0xff);
  ASSERT_EQ(memory.size(), 2u * 3 * 48);
  cpu.dropout_masks(make_view(memory.data(), DType::U8, 6, 48, "bits"), h, masks);
  for (int m = 0; m < 2; ++m) {
    Mat ones(n, h, 1.0), dropped(n, h);
    cpu.dropout(dropped.view(""), ones.view(""), masks.positions, masks.samples, masks.params,
                masks.ids[static_cast<size_t>(m)], masks.p, 0);
    for (int64_t row = 0; row < 6; ++row)
      for (int64_t c = 0; c < 3 * 64; ++c) {
        uint64_t word;
        std::memcpy(&word, memory.data() + (m * 3 + c / 64) * 48 + row * 8, 8);
        const bool kept = row < n && c < h && dropped.v[static_cast<size_t>(row * h + c)] != 0;
        ASSERT_EQ((word >> mask_bit(c) & 1) != 0, kept) << "adapter " << m << ", row " << row << ", feature " << c;
      }
  }
}

// dx is the transpose of u: <du, u(x)> = <dx(du), x>, and so is dA: <du, u(A)> = <dA(du), A>.
TEST(LoraDropoutOps, GradientsAreTransposes) {
  Fixture f;
  Mat u(f.n, f.r * f.count), dx(f.n, f.h), da(f.r * f.count, f.h);
  f.cpu.lora_dropout_fwd(u.view("u"), {}, f.x.view("x"), f.a.view("a"), {}, f.bits(0.4), false);
  f.cpu.lora_dropout_dx(dx.view("dx"), f.du.view("du"), f.a.view("a"), f.bits(0.4), 0);
  f.cpu.lora_dropout_da(da.view("da"), f.du.view("du"), f.x.view("x"), f.bits(0.4), 0);
  const auto dot = [](const Mat& a, const Mat& b) {
    double sum = 0;
    for (size_t i = 0; i < a.v.size(); ++i) sum += a.v[i] * b.v[i];
    return sum;
  };
  EXPECT_NEAR(dot(f.du, u), dot(dx, f.x), 1e-11);
  EXPECT_NEAR(dot(f.du, u), dot(da, f.a), 1e-11);
}

// Dead rows of a padded batch may hold anything: they are not read, and give zeros.
TEST(LoraDropoutOps, DeadRowsAreNotRead) {
  Fixture f;
  for (int64_t c = 0; c < f.h; ++c) f.x.v[static_cast<size_t>(3 * f.h + c)] = NAN;
  Mat u(f.n, f.r * f.count), px(f.n, f.r), da(f.r * f.count, f.h);
  f.cpu.lora_dropout_fwd(u.view("u"), px.view("px"), f.x.view("x"), f.a.view("a"), {f.beta1.view("beta1")}, f.bits(0.1),
                         true);
  f.cpu.lora_dropout_da(da.view("da"), f.du.view("du"), f.x.view("x"), f.bits(0.1), 0);
  for (int64_t j = 0; j < f.r * f.count; ++j) EXPECT_EQ(u.v[static_cast<size_t>(3 * f.r * f.count + j)], 0);
  for (int64_t j = 0; j < f.r; ++j) EXPECT_EQ(px.v[static_cast<size_t>(3 * f.r + j)], 0);
  for (const Mat* m : {&u, &px, &da})
    for (const double value : m->v) ASSERT_TRUE(std::isfinite(value));
}

}  // namespace
}  // namespace irq
