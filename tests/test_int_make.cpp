// Rounding to nearest and integer ICQ: the ops' ladder, fidelity's golden values, and the exact entropy terms.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/int_group.h"
#include "src/io/inspect.h"
#include "tests/cases/int_make.h"
#include "tests/golden_data.h"
#include "tests/quant_fixture.h"

IRQ_OP_TESTS(IntParamsOp, irq::int_params_cases());
IRQ_OP_TESTS(IntStreamOp, irq::int_stream_cases());
IRQ_OP_TESTS(GptqOp, irq::gptq_cases());

namespace irq {
namespace {

// The numbers of nf_codebook.h come from elsewhere: the arithmetic that continues them must give them too.
TEST(IntEntropy, TermsContinueTheTable) {
  const int64_t* terms = int_entropy_terms(30000);
  for (size_t c = 0; c < entropy_terms().size(); ++c) EXPECT_EQ(terms[c], entropy_terms()[c]) << c;
  // 128 log2 128 = 896 and 16384 log2 16384 = 229376 exactly; the others within an ulp of long double's 64 bits.
  EXPECT_EQ(terms[128], int64_t{896} << 40);
  EXPECT_EQ(terms[16384], int64_t{229376} << 40);
  for (const int64_t c : {100, 11008, 28672, 29999}) {
    const long double exact = static_cast<long double>(c) * std::log2(static_cast<long double>(c)) * 0x1p40L;
    EXPECT_LE(std::abs(static_cast<long double>(terms[c]) - exact), 0.5L + exact * 0x1p-62L) << c;
  }
  EXPECT_EQ(int_entropy_terms(30000), terms);
  EXPECT_EQ(int_entropy_terms(20000), terms);
  EXPECT_EQ(int_entropy_terms(64), entropy_terms().data());
}

TEST(IntFactors, ReleasedOrder) {
  const std::vector<float> f = int_factors({4, 32, false, IntSearch::clip, 0.1, 50});
  ASSERT_EQ(f.size(), 101u);
  EXPECT_EQ(f[0], 1.0f);
  EXPECT_FLOAT_EQ(f[1], 1.002f);
  EXPECT_EQ(f[50], 1.1f);
  EXPECT_FLOAT_EQ(f[51], 0.998f);
  EXPECT_EQ(f[100], 0.9f);
  for (size_t i = 1; i < f.size(); ++i)
    EXPECT_NEAR(f[i], i <= 50 ? 1 + 0.002 * static_cast<double>(i) : 1 - 0.002 * static_cast<double>(i - 50), 1.3e-7);
}

struct MadeMatrix {
  QuantizeStats stats;
  std::vector<char> memory;
  QuantizedMatrix q;
};
MadeMatrix make(const std::vector<float>& weights, int64_t rows, int64_t cols, const IntSpec& spec) {
  Backend& backend = cpu_backend(DType::F32);
  MadeMatrix m;
  std::vector<float> w = weights;
  m.memory.resize(static_cast<size_t>(placed_bytes(rows, cols, integer_format(spec))) + 256);
  m.q = place_quantized(m.memory.data(), rows, cols, integer_format(spec), {}, Device::CPU);
  m.stats = Quantizer(backend).run_integer(m.q, make_view(w.data(), DType::F32, rows, cols, "w"), spec);
  return m;
}

// fidelity 9.4's matrix: rounding to nearest, 3 bits, groups of 4.
TEST(IntGolden, RoundToNearest) {
  const std::vector<float> w = {.11f,  -.23f, .31f,  .07f, -.42f, .18f,  .26f, -.05f,
                                -.17f, .29f,  -.08f, .41f, .13f,  -.36f, .02f, .22f};
  const MadeMatrix m = make(w, 2, 8, {3, 4, false, IntSearch::none, 0, 0});
  EXPECT_EQ(unpack_codes(m.q), (std::vector<uint8_t>{4, 0, 7, 4, 0, 6, 7, 3, 0, 6, 1, 7, 6, 0, 4, 7}));
  EXPECT_EQ(m.stats.blocks, 4);
}

// fidelity 5.4: the mean entropy per group of 32 of the golden weights, without and with the released search: of the first
// 200 groups (a plain fp64 evaluation gives these numbers for 200 groups and for no other count).
TEST(IntGolden, ClipSearchRaisesTheEntropyAsReleased) {
  const double plain[] = {1.629559, 2.654143, 3.495422}, best[] = {1.696973, 2.730859, 3.604074};
  std::vector<float> w = golden_weights();
  w.resize(200 * 32);
  for (int bits = 2; bits <= 4; ++bits) {
    const MadeMatrix m = make(w, 100, 64, {bits, 32, false, IntSearch::clip, 0.1, 50});
    EXPECT_NEAR(m.stats.entropy_plain, plain[bits - 2], 6e-7) << bits;  // six decimals given
    EXPECT_NEAR(m.stats.entropy, best[bits - 2], 6e-7) << bits;
    const MadeMatrix nearest = make(w, 100, 64, {bits, 32, false, IntSearch::none, 0.1, 50});
    EXPECT_EQ(nearest.stats.entropy, m.stats.entropy_plain);
    // The entropies are those of the codes that are stored.
    double mean = 0;
    for (const float h : block_entropies(m.q)) mean += static_cast<double>(h) / 200;
    EXPECT_NEAR(mean, m.stats.entropy, 1e-6) << bits;  // block_entropies rounds each to f32
  }
}

// The paper's reading: no loss of entropy against the median alone, and w_hat still near w.
TEST(IntShift, CodesAreOfTheShiftedWeights) {
  for (int bits = 2; bits <= 4; ++bits) {
    const std::vector<float> w = golden_weights();
    const MadeMatrix m = make(w, 300, 64, {bits, 32, false, IntSearch::zero_shift, 0.1, 50});
    const MadeMatrix median = make(w, 300, 64, {bits, 32, false, IntSearch::zero_shift, 0.1, 0});
    EXPECT_GT(m.stats.entropy, m.stats.entropy_plain);
    EXPECT_GE(m.stats.entropy, median.stats.entropy);
    double mean = 0;
    for (const float h : block_entropies(m.q)) mean += static_cast<double>(h) / 600;
    EXPECT_NEAR(mean, m.stats.entropy, 1e-6);
    const std::vector<float> back = dequantize_on_host(m.q);
    int outside = 0;  // half a step, and what the search may clip at the ends: a tenth of 0.54 of the largest deviation
    for (size_t i = 0; i < w.size(); ++i) {
      const float scale = m.q.scales.as<float>()[i / 32];
      outside += std::abs(back[i] - w[i]) > scale * (0.5f + 0.055f * static_cast<float>(1 << bits) + 0.5f);
    }
    EXPECT_EQ(outside, 0) << bits;
  }
}

TEST(IntReject, NamesTheWeight) {
  std::vector<float> w(3 * 100, 0.5f);
  w[240] = -INFINITY;
  for (const IntSearch search : {IntSearch::none, IntSearch::clip, IntSearch::zero_shift}) try {
      make(w, 3, 100, {4, 32, false, search, 0.1, 3});
      FAIL();
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find("row 2, column 40"), std::string::npos) << e.what();
    }
  w[240] = 3e38f, w[250] = -3e38f;
  try {
    make(w, 3, 100, {4, 32, false, IntSearch::none, 0.1, 3});
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("32 weights from row 2, column 32"), std::string::npos) << e.what();
  }
}

TEST(IntSizes, BytesToTheByte) {
  // codes + f32 scales + u8 or f32 zeros per group of 32 of a row
  EXPECT_EQ(quantized_bytes(10, 70, integer_format({3, 32})), (700 * 3 + 7) / 8 + 30 * 5);
  EXPECT_EQ(quantized_bytes(10, 70, integer_format({2, kPerChannel})), 175 + 10 * 5);
  EXPECT_EQ(quantized_bytes(10, 70, integer_format({4, 64, false, IntSearch::zero_shift})), 350 + 20 * 8);
}

}  // namespace
}  // namespace irq
