// ICQ's search: the fast search equals the definition on every kind of block, and fidelity 9.3's golden values.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "kernels/nfk_block.h"
#include "src/core/rng.h"
#include "tests/golden_data.h"
#include "tests/op_case.h"
#include "tests/quant_fixture.h"

namespace irq {
namespace {

using Generator = std::function<void(Rng&, float*, int)>;

void expect_search_equals_definition(const char* what, const Generator& fill, int repeats, IcqSpec spec = {}) {
  Rng rng(7);
  const std::vector<float> factors = icq_factors(spec);
  for (int repeat = 0; repeat < repeats; ++repeat) {
    const int n = repeat % 4 == 3 ? 1 + static_cast<int>(rng.below(64)) : 64;
    float w[kBlock];
    fill(rng, w, n);
    for (int bits = 2; bits <= 4; ++bits)
      for (const bool fp32 : {false, true}) {
        const Codebook& book = nf_codebook(bits);
        int64_t sum_plain = -1;
        const IcqChoice plain = icq_search_block_plain(w, n, book, factors, fp32);
        const IcqChoice fast = icq_search_block(w, n, book, factors, fp32, &sum_plain);
        ASSERT_EQ(plain.index, fast.index) << what << " bits " << bits << " n " << n << " repeat " << repeat;
        ASSERT_EQ(hex_of(plain.tau), hex_of(fast.tau)) << what;
        ASSERT_EQ(plain.sum, fast.sum) << what;
        const float a = block_absmax(w, n);
        uint8_t counts[16] = {};
        for (int i = 0; i < n; ++i) ++counts[nfk_code(book, w[i], a, 1.0f / a)];
        ASSERT_EQ(sum_plain, entropy_sum(counts, 1 << bits)) << what;
      }
  }
}

TEST(IcqSearch, EqualsTheDefinition) {
  const auto normal = [](Rng& r) { return static_cast<float>(r.normal()); };
  expect_search_equals_definition("gauss", [&](Rng& r, float* w, int n) { for (int i = 0; i < n; ++i) w[i] = 0.02f * normal(r); }, 60);
  expect_search_equals_definition("heavy", [&](Rng& r, float* w, int n) { for (int i = 0; i < n; ++i) { const float x = normal(r); w[i] = x * x * x; } }, 30);
  expect_search_equals_definition("shifted far", [&](Rng& r, float* w, int n) { for (int i = 0; i < n; ++i) w[i] = 1.0f + 1e-5f * normal(r); }, 20);
  expect_search_equals_definition("one ulp apart", [&](Rng& r, float* w, int n) { for (int i = 0; i < n; ++i) w[i] = 1.0f + 0x1p-23f * static_cast<float>(r.below(4)); }, 12);
  expect_search_equals_definition("duplicates", [&](Rng& r, float* w, int n) { for (int i = 0; i < n; ++i) w[i] = 0.25f * static_cast<float>(static_cast<int>(r.below(7)) - 3); }, 30);
  expect_search_equals_definition("bf16", [&](Rng& r, float* w, int n) { for (int i = 0; i < n; ++i) w[i] = to_float(to_bf16(normal(r))); }, 20);
  expect_search_equals_definition("signed zeros", [&](Rng& r, float* w, int n) { for (int i = 0; i < n; ++i) w[i] = r.below(2) ? 0.0f : -0.0f; }, 8);
  expect_search_equals_definition("constant", [&](Rng& r, float* w, int n) { std::fill(w, w + n, normal(r)); }, 8);
  expect_search_equals_definition("one outlier", [&](Rng& r, float* w, int n) { std::fill(w, w + n, 0.0f); w[r.below(static_cast<uint64_t>(n))] = normal(r); }, 12);
  expect_search_equals_definition("on the thresholds", [&](Rng& r, float* w, int n) { for (int i = 0; i < n; ++i) w[i] = nf_codebook(4).threshold[r.below(15)]; w[0] = 1; }, 20);
  for (const float scale : {1e-45f, 1e-43f, 1e-40f, 2e-39f, 1e-38f, 1e-33f, 1e-29f, 1e29f, 1e37f})
    expect_search_equals_definition("tiny or huge", [&](Rng& r, float* w, int n) { for (int i = 0; i < n; ++i) w[i] = scale * normal(r); }, 6);
}

TEST(IcqSearch, EqualsTheDefinitionForOtherGrids) {
  const auto fill = [](Rng& r, float* w, int n) { for (int i = 0; i < n; ++i) w[i] = static_cast<float>(r.normal()); };
  for (const IcqSpec spec : {IcqSpec{0.1, 0}, IcqSpec{0.1, 1}, IcqSpec{0.0, 5}, IcqSpec{1e-7, 20}, IcqSpec{0.5, 25}, IcqSpec{3.0, 40}, IcqSpec{100.0, 30}})
    expect_search_equals_definition("other grid", fill, 6, spec);
}

// The GPU goes from event to event instead of from candidate to candidate: the same bits on all kinds of blocks and grids.
TEST(IcqSearch, CudaEqualsTheReference) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  const int64_t blocks = 700, n = blocks * kBlock - 23;
  Rng rng(11);
  std::vector<float> w(static_cast<size_t>(n));
  for (size_t i = 0; i < w.size(); ++i) {
    const double x = rng.normal(), offset = static_cast<double>(i / 64 % 7);
    switch (i / 64 % 10) {  // whole blocks of each kind
      case 0: w[i] = static_cast<float>(x * x * x); break;
      case 1: w[i] = static_cast<float>(offset + 0.5 * x); break;
      case 2: w[i] = static_cast<float>(30 * offset + x); break;  // candidates so close that rounding matters
      case 3: w[i] = 0.25f * static_cast<float>(std::round(2 * x)); break;
      case 4: w[i] = to_float(to_bf16(static_cast<float>(x))); break;
      case 5: w[i] = i % 64 == 5 ? 1.0f : 0.0f; break;
      case 6: w[i] = static_cast<float>(std::pow(10.0, 10 * offset - 40) * x); break;
      default: w[i] = static_cast<float>(0.02 * x);
    }
  }
  w[64 * 69 + 3] = NAN;
  w[64 * 79 + 60] = -INFINITY;
  const auto search = [&](Backend& backend, int bits, const IcqSpec& spec) {
    std::vector<Tensor> t;
    for (const int64_t size : {blocks, blocks, blocks, n})
      t.push_back(make_view(backend.allocate(size * 4), DType::F32, 1, size, "icq", backend.device()));
    backend.upload(t[3], w.data());
    backend.icq_search(t[0], t[1], t[2], t[3], bits, spec);
    std::vector<std::string> out;  // as text, so that NaN equals NaN
    std::vector<float> host(static_cast<size_t>(blocks));
    for (size_t part = 0; part < 3; ++part) {
      backend.download(host.data(), t[part]);
      for (const float x : host) out.push_back(std::isnan(x) ? "nan" : hex_of(x));
    }
    for (const Tensor& x : t) backend.release(x.data);
    return out;
  };
  for (const IcqSpec spec : {IcqSpec{0.1, 100}, IcqSpec{0.1, 100, true}, IcqSpec{0.1, 0}, IcqSpec{0.1, 2047}, IcqSpec{1e-6, 10}, IcqSpec{3.0, 40}})
    for (int bits = 2; bits <= 4; ++bits)
      EXPECT_EQ(search(cpu_backend(DType::F32), bits, spec), search(cuda_backend(DType::BF16), bits, spec)) << bits << " " << spec.lambda << " " << spec.n;
}

TEST(IcqSearch, BlockThatHoldsNanOrInfinityIsMarked) {
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    std::vector<float> w(64, 0.5f);
    w[17] = bad;
    const IcqChoice choice = icq_search_block(w.data(), 64, nf_codebook(4), icq_factors({}), false);
    EXPECT_EQ(choice.index, -1);
    EXPECT_TRUE(std::isnan(choice.tau));
  }
}

TEST(IcqGolden, GridAndFirstBlock) {
  const std::vector<float> factors = icq_factors({});
  ASSERT_EQ(factors.size(), 201u);
  const std::pair<int, const char*> expected[] = {{0, "bd5da11c"}, {50, "bcdda11c"}, {99, "ba0dd7c0"}, {101, "3a0dd7c0"}, {200, "3d5da11c"}};
  for (const auto& [i, hex] : expected) EXPECT_EQ(hex_of(factors[static_cast<size_t>(i)]), hex) << i;

  const std::vector<float> w = golden_weights();
  std::vector<float> sorted(w.begin(), w.begin() + 64);
  std::sort(sorted.begin(), sorted.end());
  EXPECT_FLOAT_EQ(sorted[30], 0.00102758408f);
  EXPECT_EQ(hex_of(sorted[31]), "3aa13000");
  const float tau0 = sorted[31], scale0 = std::max(sorted[63] - tau0, tau0 - sorted[0]);
  EXPECT_FLOAT_EQ(scale0, 0.0415453911f);
  const double entropies[] = {3.805289, 3.786488, 3.861187, 3.829576, 3.813310, 3.756909, 3.800247, 3.777924, 3.794759};
  const int plateaus[] = {21, 22, 1};  // NF2, NF3, NF4
  for (int bits = 2; bits <= 4; ++bits) {
    const Codebook& book = nf_codebook(bits);
    const IcqChoice best = icq_search_block(w.data(), 64, book, factors, false);
    int plateau = 0;
    for (size_t i = 0; i < factors.size(); ++i) {
      const float shift = factors[i] * scale0, tau = shift + tau0;
      float u[64];
      for (int j = 0; j < 64; ++j) u[j] = w[static_cast<size_t>(j)] - tau;
      const float a = block_absmax(u, 64);
      uint8_t counts[16] = {};
      for (const float x : u) ++counts[nfk_code(book, x, a, 1.0f / a)];
      const int64_t sum = entropy_sum(counts, 1 << bits);
      plateau += sum == best.sum;
      if (bits == 4 && i % 25 == 0) {
        EXPECT_NEAR(static_cast<double>(entropy_bits(sum, 64)), entropies[i / 25], 6e-7) << i;  // six decimals given
      }
    }
    EXPECT_EQ(plateau, plateaus[bits - 2]) << bits;
  }
}

struct Golden {
  int bits, index;
  const char *tau, *absmax;
  double plain, best, mean_plain, mean_best;
  const char *first_block, *crc_index, *crc_codes, *groups[2];
  std::vector<int> tau_codes;
  const char* crc_tau;
  double tau_hat, mse;  // mse: fp32 scales, exact tau subtracted, tau_hat added
};
const Golden kGolden[] = {
    {4, 50, "38ddd5b0", "3d2b8b15", 3.839518, 3.861187, 3.725817, 3.801477, "552cb0589eb357175cd959e2a328adb06aac2623a1c7ce06b40b67d61a876af8",
     "5e99529b", "5e772e80", {"3c04dd02", "3bc303b8"}, {160, 244, 48, 44, 57, 85, 49, 63}, "fe7f8131", 0.000115304581, 2.759693e-06},
    {3, 0, "ba85754a", "3d3025aa", 2.831672, 2.885858, 2.730796, 2.787117, "2216502447522303266424615114565035461311516356035205336314433574",
     "0a628261", "530dae9c", {"3c122ba6", "3bd60888"}, {62, 221, 52, 38, 35, 89, 29, 56}, "f5d406fb", -0.00108034268, 1.261310e-05},
    {2, 68, "3a05cd41", "3d29e2cb", 1.655626, 1.684617, 1.537161, 1.599684, "1112201223211201123212312112222012221111202123012102122102221232",
     "b30cd5cd", "45749bd3", {"3c36ee7d", "3bc99977"}, {171, 215, 95, 44, 53, 151, 52, 57}, "93b41e40", 0.000504181196, 6.329010e-05},
};

void expect_golden(Backend& backend) {
  const std::vector<float> w = golden_weights();
  const IcqSpec spec;
  for (const Golden& g : kGolden) {
    SCOPED_TRACE(g.bits);
    QuantFormat format;
    format.bits = g.bits;
    const Quantized q = quantize_on(backend, w, 300, 64, format, &spec);
    EXPECT_EQ(hex_of(q.tau[0]), g.tau);
    EXPECT_EQ(hex_of(q.absmax[0]), g.absmax);
    EXPECT_NEAR(static_cast<double>(q.entropy_plain[0]), g.plain, 6e-7);  // six decimals given
    EXPECT_NEAR(static_cast<double>(q.entropy[0]), g.best, 6e-7);
    EXPECT_NEAR(q.stats.entropy_plain, g.mean_plain, 6e-7);
    EXPECT_NEAR(q.stats.entropy, g.mean_best, 6e-7);
    const std::vector<uint8_t> codes = unpack(q.codes, 19200, g.bits);
    std::string digits;
    for (size_t i = 0; i < 64; ++i) digits += strf("%x", codes[i]);
    EXPECT_EQ(digits, g.first_block);
    EXPECT_EQ(strf("%08x", crc32(codes)), g.crc_codes);
    EXPECT_EQ(hex_of(q.tau_groups[0]), g.groups[0]);
    EXPECT_EQ(hex_of(q.tau_groups[1]), g.groups[1]);
    EXPECT_EQ(std::vector<int>(q.tau_codes.begin(), q.tau_codes.begin() + 8), g.tau_codes);
    EXPECT_EQ(strf("%08x", crc32(q.tau_codes)), g.crc_tau);
    EXPECT_FLOAT_EQ(dynamic_map()[q.tau_codes[0]] * q.tau_groups[0], static_cast<float>(g.tau_hat));
    // The indices behind the taus.
    const std::vector<float> factors = icq_factors(spec);
    std::vector<uint8_t> indices;
    double error = 0;
    for (int64_t b = 0; b < 300; ++b) {
      const IcqChoice choice = icq_search_block(&w[static_cast<size_t>(b * 64)], 64, nf_codebook(g.bits), factors, false);
      indices.push_back(static_cast<uint8_t>(choice.index));
      EXPECT_EQ(hex_of(choice.tau), hex_of(q.tau[static_cast<size_t>(b)])) << b;
      const float tau_hat = dynamic_map()[q.tau_codes[static_cast<size_t>(b)]] * q.tau_groups[static_cast<size_t>(b / kScaleGroup)];
      for (size_t i = static_cast<size_t>(b * 64); i < static_cast<size_t>(b * 64 + 64); ++i) {
        const float value = nf_codebook(g.bits).level[codes[i]] * q.absmax[static_cast<size_t>(b)];
        const double d = static_cast<double>(value + tau_hat) - static_cast<double>(w[i]);
        error += d * d;
      }
    }
    EXPECT_EQ(indices[0], g.index);
    EXPECT_EQ(strf("%08x", crc32(indices)), g.crc_index);
    EXPECT_NEAR(error / 19200, g.mse, 6e-7 * g.mse);  // seven digits given
    if (g.bits == 4) {
      const std::vector<int> first = {50, 174, 11, 35, 136, 81, 151, 196, 7, 186, 128, 184};
      EXPECT_EQ(std::vector<int>(indices.begin(), indices.begin() + 12), first);
    }
  }
}
TEST(IcqGolden, AllBlocksCpu) { expect_golden(cpu_backend(DType::F32)); }
TEST(IcqGolden, AllBlocksCuda) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  expect_golden(cuda_backend(DType::BF16));
}

TEST(IcqGolden, OtherCandidateCounts) {
  const std::vector<float> w = golden_weights();
  const std::pair<int, double> expected[] = {{25, 3.799636}, {50, 3.800664}, {125, 3.801657}, {200, 3.801937}};
  for (const auto& [n, mean] : expected) {
    const std::vector<float> factors = icq_factors({0.1, n, false});
    double sum = 0;
    for (size_t b = 0; b < 300; ++b) sum += static_cast<double>(entropy_bits(icq_search_block(&w[b * 64], 64, nf_codebook(4), factors, false).sum, 64));
    EXPECT_NEAR(sum / 300, mean, 6e-7) << n;
  }
}

// fidelity 9.3 counts 11 blocks for a sum in some other order; in the order of the released code's GPU, which
// test_quant_golden.cpp checks against its real output, it is 8. Kept so that a change of the order or the terms shows.
TEST(IcqGolden, TiesOfTheFp32SumMoveEightBlocks) {
  const std::vector<float> w = golden_weights(), factors = icq_factors({});
  int moved = 0;
  for (size_t b = 0; b < 300; ++b) {
    const IcqChoice exact = icq_search_block(&w[b * 64], 64, nf_codebook(4), factors, false);
    const IcqChoice fp32 = icq_search_block(&w[b * 64], 64, nf_codebook(4), factors, true);
    moved += exact.index != fp32.index;
    EXPECT_NEAR(static_cast<double>(exact.sum), static_cast<double>(fp32.sum), 64 * 0x1p40 * 1e-6);  // ties: the entropy is the same
  }
  EXPECT_EQ(moved, 8);
}

}  // namespace
}  // namespace irq
