// Ops of QA-LoRA and PEQA: the ladder of trust, and the written-out example of fidelity 5.5.
#include <gtest/gtest.h>

#include "tests/cases/grouped.h"

IRQ_OP_TESTS(GroupedOps, irq::grouped_cases());

namespace irq {
namespace {

using Vec = std::vector<double>;

Tensor view(Vec& v, int64_t rows, int64_t cols) { return make_view(v.data(), DType::F64, rows, cols, "v"); }

// Fidelity 5.5: o = 2, h = 8, L = 2, r = 1, s = 0.25.
struct PoolExample {
  std::vector<float> w = {};  // scale * (q - zero)
  Vec a = {.5, -1, .25, 2}, b = {1, -2}, x = {1, 2, -1, .5, 0, 3, -2, 1};
  PoolExample() {
    const int q[2][8] = {{3, 1, 0, 2, 1, 3, 2, 0}, {0, 2, 1, 3, 3, 1, 0, 2}};
    const float scale[2][4] = {{.5f, .25f, .5f, 1}, {.25f, .5f, .125f, .5f}};
    const float zero[2][4] = {{1, 2, 1, 2}, {2, 1, 2, 1}};
    for (int o = 0; o < 2; ++o)
      for (int i = 0; i < 8; ++i) w.push_back(scale[o][i / 2] * (static_cast<float>(q[o][i]) - zero[o][i / 2]));
  }
  // y = W x + s B (A pool(x)), with the folded A (as the model runs it) or with the pooled x.
  Vec y(PoolKind kind, bool folded) {
    Backend& cpu = cpu_backend(DType::F64);
    const GroupPool pool = group_pool_of({kind, 2, false}, 8);
    Vec u(1);
    if (folded) {
      Vec wide(8);
      IecTableBuilder builder(DType::F64, DType::F64);
      builder.add(view(wide, 1, 8), view(a, 1, 4), {}, 1, {}, {}, false, {pool, false});
      std::vector<uint8_t> bytes(static_cast<size_t>(builder.bytes()));
      const Tensor memory = make_view(bytes.data(), DType::U8, 1, builder.bytes(), "table");
      cpu.upload(memory, builder.data());
      cpu.iec_fold_all(builder.in(memory));
      cpu.matmul(view(u, 1, 1), view(x, 1, 8), false, view(wide, 1, 8), true, 1, 0, {});
    } else {
      Vec pooled(4);
      cpu.group_pool(view(pooled, 1, 4), view(x, 1, 8), pool);
      cpu.matmul(view(u, 1, 1), view(pooled, 1, 4), false, view(a, 1, 4), true, 1, 0, {});
    }
    Vec out(2);
    for (size_t o = 0; o < 2; ++o) {
      for (size_t i = 0; i < 8; ++i) out[o] += static_cast<double>(w[8 * o + i]) * x[i];
      out[o] += 0.25 * b[o] * u[0];
    }
    return out;
  }
};

// All of its numbers are short binary fractions: exact.
TEST(QaLora, WrittenExample) {
  PoolExample e;
  for (const bool folded : {false, true}) {
    EXPECT_EQ(e.y(PoolKind::mean, folded), (Vec{2.59375, 0.9375}));
    EXPECT_EQ(e.y(PoolKind::sum, folded), (Vec{2.6875, 0.75}));
  }
}

TEST(QaLora, ConventionsDifferByAFactor) {
  Backend& cpu = cpu_backend(DType::F64);
  Vec x = {1, 2, 3, 4, 5, 6, 10}, y(3);
  const auto pooled = [&](PoolKind kind) {
    cpu.group_pool(view(y, 1, 3), view(x, 1, 7), group_pool_of({kind, 3, false}, 7));
    return y;
  };
  EXPECT_EQ(pooled(PoolKind::mean), (Vec{2, 5, 10}));  // the last group's mean is over its real length
  EXPECT_EQ(pooled(PoolKind::sum), (Vec{6, 15, 10}));
  EXPECT_EQ(pooled(PoolKind::peft), (Vec{6, 15, 30}));  // mean times the number of groups
}

TEST(Peqa, ScaleGradientByHand) {
  // One row of 3-bit codes 5 2 7 0 | 1 3 4, groups of 4, zeros 3 and 1: dw . (code - zero).
  QuantizedMatrix q = int_matrix(1, 7, 3, 8, false);
  q.format.group = 4;
  std::vector<uint8_t> codes = {0b10101011, 0b10000010, 0b11100000}, zeros = {3, 1};
  std::vector<float> scales = {1, 1};
  q.codes = make_view(codes.data(), DType::U8, 1, 3, "codes");
  q.zeros = make_view(zeros.data(), DType::U8, 1, 2, "zeros");
  q.scales = make_view(scales.data(), DType::F32, 1, 2, "scales");
  Vec dw = {1, 2, 3, 4, 5, 6, 7}, ds = {100, 200};
  cpu_backend(DType::F64).int_scale_grad(view(ds, 1, 2), view(dw, 1, 7), q, 0);
  EXPECT_EQ(ds, (Vec{2 * 1 - 1 * 2 + 4 * 3 - 3 * 4, 0 * 5 + 2 * 6 + 3 * 7}));
  cpu_backend(DType::F64).int_scale_grad(view(ds, 1, 2), view(dw, 1, 7), q, 1);
  EXPECT_EQ(ds, (Vec{0, 66}));
}

}  // namespace
}  // namespace irq
