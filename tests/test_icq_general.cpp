// ICQ beyond the paper: every setting against its definition, the exact search against fine grids, ties, CPU = CUDA, and what
// files, names and tools make of the settings. Golden values are in test_golden_variants.cpp.
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "kernels/icq_breakpoints.h"
#include "kernels/nfk_block.h"
#include "src/core/rng.h"
#include "src/quant/icq_options.h"
#include "src/train/quantize_base.h"
#include "tests/cases/nfk.h"
#include "tests/golden_data.h"
#include "tests/io_files.h"
#include "tests/quant_fixture.h"

namespace irq {
namespace {

// Blocks of many kinds, one after another; sizes 1 to 64.
class Blocks {
 public:
  static constexpr int kKinds = 10;
  std::vector<float> next() {
    const int kind = count_ % kKinds, n = count_ % 7 == 6 ? 1 + static_cast<int>(rng_.below(64)) : 64;
    ++count_;
    std::vector<float> w(static_cast<size_t>(n));
    const float constant = normal(), far = 30 * normal(), scale = std::pow(10.0f, 8 * normal());
    for (float& x : w) {
      const float z = normal();
      switch (kind) {
        case 0: x = z * z * z; break;
        case 1: x = constant; break;
        case 2: x = far + z; break;
        case 3: x = 0.25f * std::round(2 * z); break;
        case 4: x = to_float(to_bf16(z)); break;
        case 5: x = rng_.below(40) == 0 ? 1.0f : 0.0f; break;
        case 6: x = scale * z; break;
        case 7: x = 1.0f + 1e-5f * z; break;  // few fp32 taus between the ends
        default: x = 0.02f * z;
      }
    }
    return w;
  }

 private:
  float normal() { return static_cast<float>(rng_.normal()); }
  Rng rng_{23};
  int count_ = 0;
};

struct Tried {
  int64_t sum = 0;
  double error = 0;
};
Tried try_tau(const std::vector<float>& sorted, int bits, float tau) {
  const Codebook& book = nf_codebook(bits);
  const int n = static_cast<int>(sorted.size());
  float u[kBlock];
  for (int i = 0; i < n; ++i) u[i] = sorted[static_cast<size_t>(i)] - tau;
  const float a = block_absmax(u, n);
  uint8_t counts[16] = {};
  for (int i = 0; i < n; ++i) ++counts[nfk_code(book, u[i], a, 1.0f / a)];
  return {entropy_sum(counts, 1 << bits), icq_squared_error(sorted.data(), n, book, tau)};
}

// The grid, by the words of icq_search_general.cpp: every candidate on its own.
IcqChoice by_definition(std::vector<float> w, int bits, const IcqSpec& spec) {
  std::sort(w.begin(), w.end());
  const int n = static_cast<int>(w.size());
  const float tau0 = w[static_cast<size_t>((n - 1) / 2)] + 0.0f;
  const float absmax = std::max(std::abs(w.front() - tau0), std::abs(w.back() - tau0));
  if (absmax == 0) return {0, tau0, entropy_terms()[static_cast<size_t>(n)]};
  const float unit = icq_unit(spec.width, w.data(), n, absmax);
  IcqChoice best;
  double least = 0;
  const std::vector<float> factors = icq_factors(spec);
  for (size_t i = 0; i < factors.size(); ++i) {
    const float shift = factors[i] * unit, tau = shift + tau0;
    const Tried t = try_tau(w, bits, tau);
    const bool better =
        i == 0 || t.sum < best.sum || (t.sum == best.sum && spec.ties == IcqTies::mse && t.error < least);
    if (better) best = {static_cast<int>(i), tau, t.sum}, least = t.error;
  }
  return best;
}

IcqChoice search(const std::vector<float>& w, int bits, const IcqSpec& spec) {
  return icq_search_block_general(w.data(), static_cast<int>(w.size()), nf_codebook(bits), spec, icq_factors(spec));
}

TEST(IcqGeneral, GridsEqualTheDefinition) {
  Blocks blocks;
  for (int repeat = 0; repeat < 50; ++repeat) {
    const std::vector<float> w = blocks.next();
    for (const auto& [name, base] : icq_settings())
      for (int bits = 2; bits <= 4; ++bits) {
        if (base.search == IcqSearch::exact) continue;
        IcqSpec spec = base;
        if (repeat % 3 == 1) spec.lambda = 1.5, spec.n = 20;  // wider than the block
        const IcqChoice expected = by_definition(w, bits, spec), found = search(w, bits, spec);
        ASSERT_EQ(hex_of(expected.tau), hex_of(found.tau)) << name << " bits " << bits << " repeat " << repeat;
        ASSERT_EQ(expected.sum, found.sum) << name;
      }
  }
}

TEST(IcqGeneral, DeviationIsThatOfTheBlock) {
  const std::vector<float> w = {-3, -1, 1, 3};
  EXPECT_EQ(icq_unit(IcqWidth::block_std, w.data(), 4, 9), std::sqrt(5.0f));
  EXPECT_EQ(icq_unit(IcqWidth::raw, w.data(), 4, 9), 1.0f);
  EXPECT_EQ(icq_unit(IcqWidth::absmax, w.data(), 4, 9), 9.0f);
}

// Where the block's codes change, the fp32 codes on both sides are those on both sides of the breakpoint.
TEST(IcqGeneral, WeightsPassThresholdsAtTheBreakpoints) {
  Rng rng(5);
  for (int bits = 2; bits <= 4; ++bits) {
    const Codebook& book = nf_codebook(bits);
    const IcqBreakpoints solve(book);
    std::vector<float> w(64);
    for (float& x : w) x = static_cast<float>(rng.normal());
    std::sort(w.begin(), w.end());
    for (int j = 0; j < (1 << bits) - 1; ++j)
      for (size_t i = 1; i + 1 < 64; ++i) {
        const double at = solve(j, w[i], w.front(), w.back());
        const auto above = [&](double tau64) {
          const float tau = static_cast<float>(tau64);
          const float a = std::max(std::abs(w.front() - tau), std::abs(w.back() - tau));
          return (w[i] - tau) * (1.0f / a) > book.threshold[j];
        };
        // 16 ulp of the block's extent: tau, the difference, 1/a and the product are each rounded once.
        const double off = 16 * 0x1p-24 * static_cast<double>(w.back() - w.front() + std::abs(static_cast<float>(at)));
        EXPECT_TRUE(above(at - 4 * off)) << bits << " " << j << " " << i;
        EXPECT_FALSE(above(at + 4 * off)) << bits << " " << j << " " << i;
      }
  }
}

// No grid finds more entropy: 100,001 candidates on blocks of every kind, by the fast search that test_icq.cpp proves.
TEST(IcqGeneral, ExactIsNeverBelowAFineGrid) {
  Blocks blocks;
  int better_than_default = 0;
  for (int repeat = 0; repeat < 120; ++repeat) {
    const std::vector<float> w = blocks.next();
    const int n = static_cast<int>(w.size());
    const bool wide = repeat % 4 == 3;
    const IcqSpec exact{.lambda = wide ? 2.0 : 0.1, .search = IcqSearch::exact},
        fine{.lambda = exact.lambda, .n = 50'000}, coarse{.lambda = exact.lambda};
    const std::vector<float> fine_factors = icq_factors(fine), coarse_factors = icq_factors(coarse);
    for (int bits = 2; bits <= 4; ++bits) {
      const Codebook& book = nf_codebook(bits);
      const IcqChoice found = search(w, bits, exact);
      const int64_t grid = icq_search_block(w.data(), n, book, coarse_factors, false).sum;
      EXPECT_LE(found.sum, grid) << "repeat " << repeat << " bits " << bits;
      EXPECT_LE(found.sum, icq_search_block(w.data(), n, book, fine_factors, false).sum)
          << "repeat " << repeat << " bits " << bits;
      std::vector<float> sorted = w;
      std::sort(sorted.begin(), sorted.end());
      EXPECT_EQ(found.sum, try_tau(sorted, bits, found.tau).sum);  // and tau has what is claimed
      better_than_default += found.sum < grid;
    }
  }
  EXPECT_GT(better_than_default, 20);  // 39 of 360: the default's 201 candidates leave little
}

TEST(IcqGeneral, LeastErrorAmongEqualsCostsNothing) {
  Blocks blocks;
  int lower = 0;
  for (int repeat = 0; repeat < 80; ++repeat) {
    const std::vector<float> w = blocks.next();
    std::vector<float> sorted = w;
    std::sort(sorted.begin(), sorted.end());
    for (const IcqSearch way : {IcqSearch::grid, IcqSearch::exact})
      for (int bits = 2; bits <= 4; ++bits) {
        const IcqChoice first = search(w, bits, {.search = way}),
                        mse = search(w, bits, {.ties = IcqTies::mse, .search = way});
        EXPECT_EQ(first.sum, mse.sum);
        const double a = try_tau(sorted, bits, first.tau).error, b = try_tau(sorted, bits, mse.tau).error;
        EXPECT_LE(b, a) << repeat << " bits " << bits;
        lower += b < a;
      }
  }
  EXPECT_GT(lower, 100);
}

TEST(IcqGeneral, BlocksThatHoldNanOrInfinityAreMarked) {
  for (const float bad : {NAN, INFINITY, -INFINITY})
    for (const auto& [name, spec] : icq_settings()) {
      std::vector<float> w(64, 0.5f);
      w[17] = bad, w[3] = -1;
      EXPECT_TRUE(std::isnan(search(w, 4, spec).tau)) << name;
      EXPECT_EQ(search(w, 4, spec).index, -1) << name;
    }
}

TEST(IcqGeneral, CudaEqualsTheReference) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  Blocks kinds;
  std::vector<float> w;
  while (w.size() < 64 * 1000) {  // of short blocks the rest is filled by the next kind: blocks of two kinds too
    const std::vector<float> more = kinds.next();
    w.insert(w.end(), more.begin(), more.end());
  }
  w.resize(64 * 1000 - 23);
  w[64 * 69 + 3] = NAN;
  w[64 * 79 + 60] = -INFINITY;
  const int64_t n = static_cast<int64_t>(w.size()), blocks = 1000;
  const auto run = [&](Backend& backend, int bits, const IcqSpec& spec) {
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
  for (const auto& [name, base] : icq_settings())
    for (int bits = 2; bits <= 4; ++bits)
      for (const double lambda : {0.1, 1.5}) {
        IcqSpec spec = base;
        spec.lambda = lambda;
        EXPECT_EQ(run(cpu_backend(DType::F32), bits, spec), run(cuda_backend(DType::BF16), bits, spec))
            << name << " bits " << bits << " lambda " << lambda;
      }
  const IcqSpec longest{.n = 2047, .ties = IcqTies::mse};  // marks in both halves of a lane's bits
  EXPECT_EQ(run(cpu_backend(DType::F32), 2, longest), run(cuda_backend(DType::BF16), 2, longest));
}

// The whole matrix: codes, scales, shifts and both errors have the same bits on both devices.
TEST(IcqGeneral, CudaQuantizesAsTheReference) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  Rng rng(9);
  std::vector<float> w(300 * 100);
  for (float& x : w) x = static_cast<float>(0.02 * rng.normal());
  for (auto [name, spec] : icq_settings()) {
    spec.consistent = true;
    const Quantized a = quantize_on(cpu_backend(DType::F32), w, 300, 100, {}, &spec);
    const Quantized b = quantize_on(cuda_backend(DType::BF16), w, 300, 100, {}, &spec);
    EXPECT_EQ(a.codes, b.codes) << name;
    EXPECT_EQ(a.scale_codes, b.scale_codes) << name;
    EXPECT_EQ(a.tau_codes, b.tau_codes) << name;
    EXPECT_EQ(a.stats.entropy, b.stats.entropy) << name;
    EXPECT_EQ(a.stats.error_plain, b.stats.error_plain) << name;
    EXPECT_EQ(a.stats.error, b.stats.error) << name;
  }
}

// The errors are those of what is stored, with and without a shift; the codes of `consistent` are those of w - tau_hat.
TEST(IcqGeneral, StoredErrorsAndConsistentCodes) {
  Rng rng(4);
  std::vector<float> w(40 * 33);
  for (float& x : w) x = static_cast<float>(0.02 * rng.normal() + 0.01);
  const IcqSpec spec{.consistent = true};
  QuantFormat plain_format;
  plain_format.shift = ShiftKind::none;
  const Quantized q = quantize_on(cpu_backend(DType::F32), w, 40, 33, {}, &spec);
  const Quantized plain = quantize_on(cpu_backend(DType::F32), w, 40, 33, plain_format, nullptr);
  const auto error = [&](const Quantized& x) {
    double sum = 0;
    for (size_t i = 0; i < w.size(); ++i)
      sum += std::pow(static_cast<double>(x.dequant[i]) - static_cast<double>(w[i]), 2);
    return sum / static_cast<double>(w.size());
  };
  EXPECT_NEAR(q.stats.error, error(q), 1e-13 * error(q));  // the same terms in another order of fp64 sums
  EXPECT_NEAR(q.stats.error_plain, error(plain), 1e-13 * error(plain));
  EXPECT_EQ(plain.stats.error, q.stats.error_plain);
  const std::vector<uint8_t> codes = unpack(q.codes, static_cast<int64_t>(w.size()), 4);
  for (size_t b = 0; b < q.tau.size(); ++b) {
    const float tau_hat = dynamic_map()[q.tau_codes[b]] * q.tau_groups[b / kScaleGroup];
    for (size_t i = 64 * b; i < std::min<size_t>(64 * b + 64, w.size()); ++i)
      EXPECT_EQ(codes[i], nfk_code(nf_codebook(4), w[i] - tau_hat, q.absmax[b], 1.0f / q.absmax[b])) << i;
  }
}

// A NaN spoils tau_hat, and with it absmax, of its whole group: still the element itself is named.
TEST(IcqGeneral, ConsistentNamesTheElementOfANan) {
  std::vector<float> w(64 * 20, 0.0f);
  for (size_t i = 0; i < w.size(); ++i) w[i] = static_cast<float>(i % 17);
  w[64 * 11 + 5] = NAN;
  const IcqSpec spec{.consistent = true};
  const std::string text = error_of([&] { quantize_on(cpu_backend(DType::F32), w, 20, 64, {}, &spec); });
  EXPECT_NE(text.find("a weight is not a number"), std::string::npos) << text;
  EXPECT_NE(text.find("row 11, column 5"), std::string::npos) << text;
}

// ---- words, names, files ---------------------------------------------------------------------------------------------

std::vector<IcqSpec> every_setting() {
  std::vector<IcqSpec> all;
  for (const std::string& ties : kIcqTies)
    for (const std::string& way : kIcqSearches)
      for (const std::string& width : kIcqWidths)
        for (const std::string& candidates : kIcqCandidates)
          for (const bool consistent : {false, true})
            all.push_back(icq_spec(0.1, 100, "exact", {ties, way, width, candidates, consistent}));
  return all;
}

TEST(IcqSettings, NamesAndDescriptionsTellThemApart) {
  std::set<std::string> names, texts;
  IrqInfo first;
  for (const IcqSpec& spec : every_setting()) {
    IrqInfo info;
    info.icq = spec;
    names.insert(cached_name("m.bin", info));
    texts.insert(describe(spec));
    EXPECT_EQ(same_quantization(first, info), spec == IcqSpec{});
    info.format.shift = first.format.shift = ShiftKind::none;
    EXPECT_TRUE(same_quantization(first, info));  // without a search its settings mean nothing
    first.format.shift = ShiftKind::tau;
  }
  EXPECT_EQ(names.size(), every_setting().size());
  EXPECT_EQ(texts.size(), every_setting().size());
  EXPECT_EQ(describe(IcqSpec{}), "lambda 0.1, n 100, entropy exact");
  EXPECT_EQ(describe(IcqSpec{.ties = IcqTies::mse, .width = IcqWidth::block_std, .consistent = true}),
            "lambda 0.1, n 100, entropy exact, ties mse, width block-std, consistent");
}

TEST(IcqSettings, HeadersKeepThemAndOldFilesHaveNone) {
  const ScratchDir dir;
  for (const IcqSpec& spec : every_setting()) {
    IrqInfo info = small_info();
    info.icq = spec;
    write_irq(dir / "m.irq", info);
    EXPECT_EQ(IrqReader(dir / "m.irq").info().icq, spec) << describe(spec);
  }
  // Files of before have zeros in the five slots behind the source's hash.
  write_irq(dir / "m.irq", small_info());
  const std::string bytes = read_bytes(dir / "m.irq");
  for (size_t slot = 43; slot < 48; ++slot) {
    int32_t value = -1;
    std::memcpy(&value, &bytes[4 * slot], 4);
    EXPECT_EQ(value, 0) << slot;
  }
  EXPECT_EQ(IrqReader(dir / "m.irq").info().icq, small_info().icq);
  for (const size_t slot : {43, 44, 45, 46, 47})
    for (const int32_t value : {-1, 4}) {
      forge(dir / "m.irq", {{slot, value}});
      const std::string text = error_of([&] { IrqReader(dir / "m.irq"); });
      EXPECT_NE(text.find("its ICQ was searched in a way unknown here"), std::string::npos) << text;
      forge(dir / "m.irq", {{slot, 0}});
    }
}

}  // namespace
}  // namespace irq
