// IEC: the numeric examples of fidelity 4.6 through the folded and the unfolded path, and the maps against dense P and E.
#include <gtest/gtest.h>

#include <cmath>

#include "src/core/arena.h"
#include "tests/cases/iec.h"

namespace irq {

IRQ_OP_TESTS(Iec, iec_cases());

namespace {

using Vec = std::vector<double>;

struct Mat {
  int64_t rows, cols;
  Vec v;
  Mat(int64_t r, int64_t c, double fill = 0) : rows(r), cols(c), v(static_cast<size_t>(r * c), fill) {}
  double& at(int64_t i, int64_t j) { return v[static_cast<size_t>(i * cols + j)]; }
  double at(int64_t i, int64_t j) const { return v[static_cast<size_t>(i * cols + j)]; }
  Tensor view(const char* name) { return make_view(v.data(), DType::F64, rows, cols, name); }
  Vec row(int64_t i) const { return Vec(v.begin() + i * cols, v.begin() + (i + 1) * cols); }
};

Mat times(const Mat& a, const Mat& b) {
  Mat out(a.rows, b.cols);
  for (int64_t i = 0; i < a.rows; ++i)
    for (int64_t k = 0; k < a.cols; ++k)
      for (int64_t j = 0; j < b.cols; ++j) out.at(i, j) += a.at(i, k) * b.at(k, j);
  return out;
}
Mat transposed(const Mat& a) {
  Mat out(a.cols, a.rows);
  for (int64_t i = 0; i < a.rows; ++i)
    for (int64_t j = 0; j < a.cols; ++j) out.at(j, i) = a.at(i, j);
  return out;
}
double dot(const Mat& a, const Mat& b) {
  double sum = 0;
  for (size_t i = 0; i < a.v.size(); ++i) sum += a.v[i] * b.v[i];
  return sum;
}

// Tables of one matrix.
template <class F>
void with_table(const IecTableBuilder& builder, F&& op) {
  std::vector<uint8_t> bytes(static_cast<size_t>(builder.bytes()));
  const Tensor memory = make_view(bytes.data(), DType::U8, 1, builder.bytes(), "table");
  cpu_backend(DType::F64).upload(memory, builder.data());
  op(builder.in(memory));
}
void fold(Tensor folded, Tensor w, Tensor beta, double scale, bool tile) {
  IecTableBuilder builder(DType::F64, DType::F64);
  builder.add(folded, w, beta, scale, {}, {}, tile);
  with_table(builder, [](const IecTable& table) { cpu_backend(DType::F64).iec_fold_all(table); });
}
void dbeta_of(Tensor dbeta, Tensor dw, bool tile) {
  IecTableBuilder builder(DType::F64, DType::F64);
  builder.add({}, {}, {}, 1, dw, dbeta, tile);
  with_table(builder, [](const IecTable& table) { cpu_backend(DType::F64).iec_dbeta_all(table); });
}

// The (expanded, pooled) matrix of fidelity 4.3, straight from its definition.
Mat dense_map(int64_t pooled, int64_t expanded, bool tile) {
  const int64_t g = std::gcd(pooled, expanded);
  Mat map(expanded, pooled);
  for (int64_t j = 0; j < expanded; ++j)
    for (int64_t i = 0; i < pooled; ++i)
      if (i / (pooled / g) == (tile ? j % g : j / (expanded / g)))
        map.at(j, i) = static_cast<double>(g) / static_cast<double>(pooled);
  return map;
}

// fidelity 4.6: A, B by formula, loss = sum_j y_j (j + 1) / 10, base path 0.
struct Example {
  int64_t h, r, o;
  Vec x;
  double s = 0.25, beta1 = 0.25, beta2 = -0.5;
  Mat a() const {
    Mat m(r, h);
    for (int64_t j = 0; j < r; ++j)
      for (int64_t i = 0; i < h; ++i) m.at(j, i) = static_cast<double>((3 * j + 5 * i) % 7 - 3) / 8;
    return m;
  }
  Mat b() const {
    Mat m(o, r);
    for (int64_t j = 0; j < o; ++j)
      for (int64_t k = 0; k < r; ++k) m.at(j, k) = static_cast<double>((2 * j + 3 * k) % 5 - 2) / 4;
    return m;
  }
  Mat input() const {
    Mat m(1, h);
    m.v = x;
    return m;
  }
  Mat gradient() const {
    Mat m(1, o);
    for (int64_t j = 0; j < o; ++j) m.at(0, j) = static_cast<double>(j + 1) / 10;
    return m;
  }
};
const Example kOdd{6, 4, 10, {1, -2, 3, 0.5, -1.5, 2.5}};
const Example kDivisible{8, 4, 8, {1, -2, 3, 0.5, -1.5, 2.5, 0.25, -0.75}};

struct Result {
  Mat a_folded, b_folded, px, u, eu, y, dx, da, db;  // b_folded without the scale
  double dbeta1, dbeta2;
};

// The mask of one row at dropout rate 0: all ones.
struct LiveRow {
  int32_t zero = 0;
  StepParams params;
  std::vector<uint8_t> memory;
  MaskBits masks(Backend& cpu, int64_t h) {
    const Tensor index = make_view(&zero, DType::I32, 1, 1, "position and sample");
    memory.resize(static_cast<size_t>(mask_blocks(h) * mask_bytes(1)));
    const Tensor bits = make_view(memory.data(), DType::U8, mask_blocks(h), mask_bytes(1), "bits");
    cpu.dropout_masks(bits, h,
                      {.count = 1,
                       .ids = {},
                       .p = 0,
                       .positions = index,
                       .samples = index,
                       .params = make_view(&params, DType::U8, 1, sizeof(params), "params")});
    return {1, 0, bits, index};
  }
};

// Forward and backward of one token. folded: u = A~ x. Otherwise by the ops of training with dropout, at rate 0.
Result run(const Example& e, bool tile, bool folded) {
  Backend& cpu = cpu_backend(DType::F64);
  Mat a = e.a(), b = e.b(), x = e.input(), gy = e.gradient(), beta1(1, 1, e.beta1), beta2(1, 1, e.beta2), one(1, 1, 1);
  Mat zero_a(e.r, e.h), zero_b(e.o, e.r), p(e.r, e.h), ee(e.o, e.r), a_folded(e.r, e.h), b_folded(e.o, e.r),
      b_scaled(e.o, e.r);
  fold(p.view("P"), zero_a.view("0"), one.view("1"), 1, tile);
  fold(ee.view("E"), zero_b.view("0"), one.view("1"), 1, tile);
  fold(a_folded.view("A~"), a.view("A"), beta1.view("beta1"), 1, tile);
  fold(b_folded.view("B~"), b.view("B"), beta2.view("beta2"), 1, tile);
  fold(b_scaled.view("sB~"), b.view("B"), beta2.view("beta2"), e.s, tile);

  Mat u = times(x, transposed(folded ? a_folded : a));
  LiveRow row;
  const MaskBits masks = row.masks(cpu, e.h);
  Mat px(1, e.r);
  if (!folded)
    cpu.lora_dropout_fwd(u.view("u"), px.view("px"), x.view("x"), a.view("a"), {beta1.view("beta1")}, masks, tile);
  const Mat y = times(u, transposed(b_scaled));

  Mat du = times(gy, b_scaled), da = times(transposed(du), x), gv = gy;
  for (double& g : gv.v) g *= e.s;
  Mat db = times(transposed(gv), u), dx = times(du, folded ? a_folded : a), dbeta1(1, 1, NAN), dbeta2(1, 1, NAN);
  if (folded) {
    dbeta_of(dbeta1.view("dbeta1"), da.view("dA"), tile);
  } else {
    Mat pooled(e.r, e.h);
    fold(pooled.view("beta1 P"), {}, beta1.view("beta1"), 1, tile);
    dx = times(du, pooled);
    cpu.lora_dropout_dx(dx.view("dx"), du.view("du"), a.view("a"), masks, 1);
    cpu.lora_dropout_da(da.view("dA"), du.view("du"), x.view("x"), masks, 0);
    cpu.lora_dropout_dbeta1({dbeta1.view("dbeta1")}, du.view("du"), px.view("px"), 1, 0);
  }
  dbeta_of(dbeta2.view("dbeta2"), db.view("dB"), tile);
  return {a_folded,    b_folded,   times(x, transposed(p)), u, times(u, transposed(ee)), y, dx, da, db,
          dbeta1.v[0], dbeta2.v[0]};
}

void expect_vec(const char* what, const Vec& out, const Vec& expected) {
  ASSERT_EQ(out.size(), expected.size()) << what;
  for (size_t i = 0; i < out.size(); ++i)
    EXPECT_NEAR(out[i], expected[i], 5.1e-9) << what << "[" << i << "]";  // 8 printed digits
}

class IecExample : public ::testing::TestWithParam<bool> {};

TEST_P(IecExample, Interleave) {
  const Result r = run(kOdd, false, GetParam());
  expect_vec("Px", r.px.v, {2.0 / 3, 2.0 / 3, 0.5, 0.5});
  expect_vec("u", r.u.v, {-1.08333333, 1.10416667, -0.6875, 2.8125});
  expect_vec("Eu", r.eu.v,
             {0.01041667, 0.01041667, 0.01041667, 0.01041667, 0.01041667, 1.0625, 1.0625, 1.0625, 1.0625, 1.0625});
  expect_vec("y", r.y.v,
             {0.59765625, -0.35807292, 0.125, -0.14713542, -0.22395833, 0.46614583, -0.48958333, -0.00651042,
              -0.27864583, -0.35546875});
  expect_vec("dx", r.dx.v, {-0.02994792, 0.09895833, -0.10026042, 0.02473958, -0.01041667, -0.12760417});
  EXPECT_NEAR(r.dbeta1, -0.33333333, 5.1e-9);
  EXPECT_NEAR(r.dbeta2, 1.06640625, 5.1e-9);
  expect_vec("dA row 0", r.da.row(0), {-0.03125, 0.0625, -0.09375, -0.015625, 0.046875, -0.078125});
  expect_vec("dB row 0", r.db.row(0), {-0.02708333, 0.02760417, -0.0171875, 0.0703125});
  expect_vec("A~ row 0", r.a_folded.row(0), {-0.29166667, 0.33333333, 0.08333333, -0.25, 0.375, 0.125});
  expect_vec("B~ row 0", r.b_folded.row(0), {-0.75, 0, -0.25, 0.5});
  expect_vec("B~ row 9", r.b_folded.row(9), {0.25, -0.25, 0.25, -0.25});
}

TEST_P(IecExample, Tile) {
  const Result r = run(kOdd, true, GetParam());
  expect_vec("Px", r.px.v, {2.0 / 3, 0.5, 2.0 / 3, 0.5});
  expect_vec("u", r.u.v, {-1.08333333, 1.0625, -0.64583333, 2.8125});
  Vec eu;
  for (int j = 0; j < 10; ++j) eu.push_back(j % 2 == 0 ? -0.01041667 : 1.08333333);
  expect_vec("Eu", r.eu.v, eu);
  expect_vec("y", r.y.v,
             {0.59505208, -0.484375, 0.12239583, -0.28645833, -0.21354167, 0.45833333, -0.34765625, -0.01432292,
              -0.14973958, -0.35026042});
  EXPECT_NEAR(r.dbeta1, -0.34895833, 5.1e-9);
  EXPECT_NEAR(r.dbeta2, 0.80598958, 5.1e-9);
}

// r divides h and o: the released code's case; its expansion is interleave.
TEST_P(IecExample, Divisible) {
  expect_vec("y", run(kDivisible, false, GetParam()).y.v,
             {0.779296875, -0.275390625, -0.01953125, -0.2734375, -0.16015625, 0.767578125, -0.759765625, -0.18359375});
  expect_vec("tile y", run(kDivisible, true, GetParam()).y.v,
             {0.779296875, -0.595703125, 0.2890625, -0.4375, -0.1484375, 0.458984375, -0.287109375, -0.18359375});
}

INSTANTIATE_TEST_SUITE_P(Paths, IecExample, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "Folded" : "Pooled"; });

// Every op against products with the dense maps. Both sides are F64: 1e-12 is a thousand roundings.
TEST(IecDense, EveryOpAgreesWithTheDenseMaps) {
  for (auto [h, r] : {std::pair<int64_t, int64_t>{12, 4}, {9, 6}, {7, 5}, {4, 12}, {5, 5}, {1, 3}, {3, 1}})
    for (bool tile : {false, true}) {
      SCOPED_TRACE(strf("h %ld, r %ld, tile %d", h, r, tile));
      const Mat p = dense_map(h, r, tile);
      Rng rng(4);
      Mat w(r, h), beta1(1, 1, 0.6), folded(r, h, NAN), dbeta(1, 1, NAN);
      for (double& value : w.v) value = rng.normal();
      fold(folded.view("folded"), w.view("w"), beta1.view("beta1"), 1, tile);
      for (size_t i = 0; i < w.v.size(); ++i) EXPECT_NEAR(folded.v[i], w.v[i] + 0.6 * p.v[i], 1e-12);
      fold(folded.view("folded"), w.view("w"), beta1.view("beta2"), 0.25, tile);
      for (size_t i = 0; i < w.v.size(); ++i) EXPECT_NEAR(folded.v[i], 0.25 * (w.v[i] + 0.6 * p.v[i]), 1e-12);
      dbeta_of(dbeta.view("dbeta"), w.view("dw"), tile);
      EXPECT_NEAR(dbeta.v[0], dot(w, p), 1e-12);
      Mat pooled(r, h, NAN);
      fold(pooled.view("beta1 P"), {}, beta1.view("beta1"), 1, tile);
      for (size_t i = 0; i < w.v.size(); ++i) EXPECT_NEAR(pooled.v[i], 0.6 * p.v[i], 1e-12);
    }
}

// Without a beta (the U1 and U2 ablations) folding only scales.
TEST(IecDense, NullBetaIsZero) {
  Mat w(4, 6, 3), folded(4, 6, NAN);
  fold(folded.view("folded"), w.view("w"), {}, 1, false);
  EXPECT_EQ(folded.v, Vec(24, 3));
  fold(folded.view("folded"), w.view("w"), {}, 0.5, false);
  EXPECT_EQ(folded.v, Vec(24, 1.5));
}

// The addresses behind a table are read by nobody who could check them later.
TEST(IecTable, RefusesWhatDoesNotFit) {
  Mat w(4, 6), folded(4, 6), wide(4, 8), beta(1, 1), dw(4, 6);
  const Tensor none;
  IecTableBuilder table(DType::F64, DType::F64);
  const auto refuses = [&](Tensor f, Tensor in, Tensor b, Tensor d, Tensor db) {
    EXPECT_THROW(table.add(f, in, b, 1, d, db, false), Error);
  };
  refuses(wide.view("folded"), w.view("w"), none, none, none);                        // another shape
  refuses(none, w.view("w"), none, none, none);                                       // nowhere to fold to
  refuses(none, none, none, none, none);                                              // nothing at all
  refuses(folded.view("folded"), wide.view("w").slice_cols(0, 6), none, none, none);  // gaps between a master's rows
  refuses(folded.view("folded"), w.view("w"), dw.view("beta"), none, none);           // not one number
  refuses(none, none, none, dw.view("dw"), none);                                     // a gradient for no beta
  Tensor single = folded.view("folded");
  single.dtype = DType::F32;
  refuses(single, w.view("w"), none, none, none);  // not the storage type
  EXPECT_EQ(table.bytes(), 0);
  table.add(wide.view("folded").slice_cols(1, 6), w.view("w"), beta.view("beta"), 1, dw.view("dw"), beta.view("dbeta"),
            false);
  EXPECT_EQ(table.bytes(), static_cast<int64_t>(sizeof(IecEntry)));
}

// Planning runs the real code on addresses behind which there is nothing.
TEST(IecTable, DryRunReadsNothing) {
  CheckedBackend dry(Device::CUDA, {DType::BF16, DType::F32});
  Arena arena = Arena::planning(Device::CUDA);
  const Tensor folded = arena.push("folded", DType::BF16, 8, 64), w = arena.push("w", DType::F32, 8, 64),
               beta = arena.push("beta", DType::F32, 1, 1);
  IecTableBuilder builder(DType::BF16, DType::F32);
  builder.add(folded, w, beta, 1, w, beta, false);
  const Tensor memory = arena.push("table", DType::U8, 1, builder.bytes());
  dry.upload(memory, builder.data());
  dry.iec_fold_all(builder.in(memory));
  dry.iec_dbeta_all(builder.in(memory));
  IecTableBuilder other(DType::F32, DType::F32);
  EXPECT_THROW(dry.iec_fold_all(other.in(memory.slice_cols(0, 0))), Error);  // a table for another precision
}

}  // namespace
}  // namespace irq
