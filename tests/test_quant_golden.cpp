// Golden values of fidelity 1, 2, 9.1, 9.2, and the codes that the released code really wrote.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "kernels/nfk_block.h"
#include "tests/golden_data.h"
#include "tests/op_case.h"
#include "tests/quant_fixture.h"

namespace irq {
namespace {

TEST(Codebook, ThresholdsAreMidpointsToOneUlp) {
  for (int bits = 2; bits <= 4; ++bits) {
    const Codebook& book = nf_codebook(bits);
    EXPECT_EQ(book.bits, bits);
    for (int j = 0; j + 1 < 1 << bits; ++j) {
      const float middle =
          static_cast<float>((static_cast<double>(book.level[j]) + static_cast<double>(book.level[j + 1])) / 2);
      const int ulps = std::bit_cast<int32_t>(middle) - std::bit_cast<int32_t>(book.threshold[j]);
      const bool known = bits == 4 && (j == 0 || j == 8 || j == 12 || j == 14);  // as upstream's literals round
      EXPECT_EQ(std::abs(ulps), known ? 1 : 0) << bits << " " << j;
    }
    if (bits != 2) { EXPECT_EQ(book.level[book.zero_code], 0.0f); }
  }
  EXPECT_EQ(nf_codebook(4).level[1], -0.6961928009986877f);
  EXPECT_EQ(nf_codebook(3).level[1], -0.4786292016506195f);
  EXPECT_EQ(nf_codebook(2).level[1], -0.25256848335266113f);
}

TEST(DynamicMap, CanonicalValues) {
  const auto& map = dynamic_map();
  EXPECT_EQ(strf("%08x", crc32(map.data(), 1024)), "b66387ba");
  const char* first[] = {"bf7e3333", "bf7a999a", "bf770000", "bf736666", "bf6fcccd",
                         "bf6c3333", "bf68999a", "bf650000", "bf616666", "bf5dcccd"};
  for (size_t i = 0; i < 10; ++i) EXPECT_EQ(hex_of(map[i]), first[i]);
  const char* middle[] = {"b8ba1f4b", "b88aefb3", "b8378034", "b7b24207",
                          "b70205ff", "b65a1a93", "b513a3b6", "00000000"};
  for (size_t i = 0; i < 8; ++i) EXPECT_EQ(hex_of(map[120 + i]), middle[i]);
  EXPECT_EQ(map[128], 5.5e-7f);
  EXPECT_EQ(map[255], 1.0f);
  for (size_t i = 1; i < 256; ++i) EXPECT_LT(map[i - 1], map[i]);
}

TEST(EntropyTerms, AreRoundedLogarithms) {
  const auto& terms = entropy_terms();
  EXPECT_EQ(terms[0], 0);
  EXPECT_EQ(terms[1], 0);
  EXPECT_EQ(terms[2], 2199023255552);
  EXPECT_EQ(terms[3], 5228054097396);
  EXPECT_EQ(terms[5], 12764934695942);
  EXPECT_EQ(terms[64], 422212465065984);
  for (size_t c = 2; c <= 64; ++c) {
    EXPECT_EQ(terms[c], std::llround(static_cast<long double>(c) * std::log2(static_cast<long double>(c)) * 0x1p40L));
    const double p = static_cast<double>(c) / 64, exact = -p * std::log2(p);
    EXPECT_NEAR(static_cast<double>(entropy_terms_fp32()[c]), exact, 2e-7 * exact) << c;  // two ulps
  }
}

struct PlainGolden {
  int bits;
  const char* packed;
  double entropy, mean_entropy, mse;
  const char *crc_codes, *crc_packed;
};
const PlainGolden kPlain[] = {
    {4, "652cb0589eb357175cd959e2a328adb06aac2623a2c7ce06b40b67d61a876af8", 3.839518, 3.725817, 2.669791e-06,
     "ae648a85", "9435a681"},
    {3, "48ea149a94c35b4531a4cba87662c9a73b83a854f331b77b", 2.831672, 2.730796, 1.261446e-05, "ea4b16f3", "b7475d21"},
    {2, "5686b9616e6d96a86a5599b192692a6e", 1.655626, 1.537161, 6.400584e-05, "732a6d2e", "9fa5db18"},
};

double mean_square_error(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    sum += d * d;
  }
  return sum / static_cast<double>(a.size());
}

void expect_plain_golden(Backend& backend) {
  const std::vector<float> w = golden_weights();
  ASSERT_EQ(strf("%08x", crc32(w)), "3a1e1f90");
  for (const PlainGolden& g : kPlain) {
    SCOPED_TRACE(g.bits);
    const QuantFormat format{QuantKind::nf, g.bits, kBlock, ScaleKind::f32, ShiftKind::none};
    const Quantized q = quantize_on(backend, w, 300, 64, format, nullptr);
    EXPECT_EQ(hex_of(q.scales[0]), "3d2bfa00");
    EXPECT_EQ(strf("%08x", crc32(q.scales)), "b2384cb2");
    EXPECT_EQ(hex_of(q.codes.data(), static_cast<size_t>(8 * g.bits)), g.packed);
    EXPECT_EQ(strf("%08x", crc32(q.codes)), g.crc_packed);
    EXPECT_EQ(strf("%08x", crc32(unpack(q.codes, 19200, g.bits))), g.crc_codes);
    EXPECT_NEAR(static_cast<double>(q.entropy[0]), g.entropy, 6e-7);  // six decimals given
    EXPECT_NEAR(q.stats.entropy, g.mean_entropy, 6e-7);
    EXPECT_NEAR(mean_square_error(q.dequant, w), g.mse, 6e-7 * g.mse);  // seven digits given
  }
  const QuantFormat format{QuantKind::nf, 4, kBlock, ScaleKind::dq8, ShiftKind::none};
  const Quantized q = quantize_on(backend, w, 300, 64, format, nullptr);
  EXPECT_EQ(hex_of(q.offset), "3d33309f");
  EXPECT_EQ(hex_of(q.scale_groups[0]), "3c5b4384");
  EXPECT_EQ(hex_of(q.scale_groups[1]), "3c56b07c");
  EXPECT_EQ(std::vector<int>(q.scale_codes.begin(), q.scale_codes.begin() + 8),
            (std::vector<int>{61, 206, 220, 253, 59, 31, 43, 65}));
  EXPECT_EQ(std::vector<int>(q.scale_codes.begin() + 256, q.scale_codes.begin() + 260),
            (std::vector<int>{238, 214, 6, 57}));
  EXPECT_EQ(strf("%08x", crc32(q.scale_codes)), "62ce3947");
  const float scales[] = {0.041938770562410355f, 0.04800285026431084f, 0.050637587904930115f, 0.05684804171323776f};
  double worst = 0;
  for (size_t b = 0; b < 300; ++b) {
    const float s_hat = dynamic_map()[q.scale_codes[b]] * q.scale_groups[b / 256] + q.offset;
    if (b < 4) { EXPECT_EQ(s_hat, scales[b]); }
    worst = std::max(worst, static_cast<double>(std::abs(s_hat - q.absmax[b]) / q.absmax[b]));
  }
  EXPECT_NEAR(worst, 0.003007, 6e-7);
  const float values[] = {-0.003818526631221175f, -0.007749170530587435f, -0.022020917385816574f, 0.01848282851278782f};
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(q.dequant[i], values[i]);
  EXPECT_NEAR(mean_square_error(q.dequant, w), 2.670010e-06, 6e-13);
}
TEST(NfkGolden, Cpu) { expect_plain_golden(cpu_backend(DType::F32)); }
TEST(NfkGolden, Cuda) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  expect_plain_golden(cuda_backend(DType::BF16));
}

// The 8-bit rules against their definitions, on every entry, every midpoint and their neighbours.
TEST(DynamicMap, RoundingRules) {
  Backend& backend = cpu_backend(DType::F32);
  const auto& map = dynamic_map();
  std::vector<float> probes = {-1.0f, 1.0f, 0.0f, -0.0f};
  for (size_t i = 0; i + 1 < 256; ++i) {
    const float middle = (map[i] + map[i + 1]) * 0.5f;
    for (const float x : {map[i], middle, std::nextafter(middle, 2.0f), std::nextafter(middle, -2.0f)})
      probes.push_back(x);
  }
  const auto view = [&](auto& v, DType t) {
    return make_view(v.data(), t, 1, static_cast<int64_t>(v.size()), "probe");
  };
  std::vector<float> table(map.begin(), map.end());
  for (const float probe : probes) {
    std::vector<float> tau = {probe, -1.0f}, group(1);  // -1 makes the group's maximum 1: fl(tau / 1) = tau
    std::vector<uint8_t> code(2);
    backend.double_quantize_tau(view(code, DType::U8), view(group, DType::F32), view(tau, DType::F32),
                                view(table, DType::F32));
    int nearest = 0;
    for (int j = 1; j < 256; ++j)
      if (std::abs(probe - map[static_cast<size_t>(j)]) < std::abs(probe - map[static_cast<size_t>(nearest)]))
        nearest = j;
    EXPECT_EQ(code[0], nearest) << hex_of(probe);
    // Scales p + 4 and 4 - p have the mean 4 exactly; with +-1 beside them the group's maximum is 1.
    std::vector<float> scales = {4.0f + probe, 4.0f - probe, 5.0f, 3.0f}, offset(1);
    code.resize(4);
    backend.double_quantize_scales(view(code, DType::U8), view(group, DType::F32), view(offset, DType::F32),
                                   view(scales, DType::F32), view(table, DType::F32));
    ASSERT_EQ(offset[0], 4.0f);
    ASSERT_EQ(group[0], 1.0f);
    const float x = scales[0] - 4.0f;
    int expected = 0;
    for (int j = 0; j < 255; ++j) {
      const float middle = (map[static_cast<size_t>(j)] + map[static_cast<size_t>(j) + 1]) * 0.5f;
      if (x > middle || (x == middle && j % 2 == 1)) expected = j + 1;
    }
    EXPECT_EQ(code[0], expected) << hex_of(x);
  }
}

// Against the released code's output in its own mode: everything equal.
void expect_released(Backend& backend, const std::string& set, const std::filesystem::path& folder) {
  const auto bytes = [&](const char* name) { return read_npy<uint8_t>(folder / (set + "." + name + ".npy")); };
  const auto floats = [&](const char* name) { return read_npy<float>(folder / (set + "." + name + ".npy")); };
  const std::vector<float> w = floats("w"), map = read_npy<float>(folder / "dynamic_map_torch.npy");
  for (const bool with_icq : {false, true}) {
    SCOPED_TRACE(with_icq ? "icq" : "nf4");
    const std::string prefix = with_icq ? "icq." : "nf4.";
    const IcqSpec spec{0.1, 100, true};
    QuantFormat format;
    format.shift = with_icq ? ShiftKind::tau : ShiftKind::none;
    const float offset = floats((prefix + "offset").c_str())[0];
    const Quantized q = quantize_on(backend, w, 128, 512, format, with_icq ? &spec : nullptr, map.data(), &offset);
    EXPECT_EQ(q.codes, bytes((prefix + "packed").c_str()));
    EXPECT_EQ(q.scale_codes, bytes((prefix + "absmax8").c_str()));
    EXPECT_LE(std::abs(std::bit_cast<int32_t>(q.offset) - std::bit_cast<int32_t>(offset)),
              1);  // the order of torch's mean
    const std::vector<float> groups = floats((prefix + "absmax2").c_str());
    for (size_t g = 0; g < 4; ++g)  // max |absmax - offset|: the offset's ulp moves it, and its own rounding adds one
      EXPECT_NEAR(q.scale_groups[g], groups[g], q.offset == offset ? 0.0f : (std::abs(offset) + groups[g]) * 0x1p-23f);
    const std::vector<float> entropies = floats((prefix + "entropy").c_str());
    const std::vector<uint8_t> codes = unpack(q.codes, 128 * 512, 4);
    for (size_t b = 0; b < 1024; ++b) {
      uint8_t counts[16] = {};
      for (size_t i = 0; i < 64; ++i) ++counts[codes[b * 64 + i]];
      EXPECT_EQ(hex_of(entropy_fp32(counts)), hex_of(entropies[b])) << b;
    }
    if (!with_icq) continue;
    EXPECT_EQ(q.tau_codes, bytes("tau8"));
    EXPECT_EQ(q.tau_groups, floats("tau2"));
    const std::vector<float> dequant =
        floats("icq.deq");                       // before tau is added; made with their offset, and so is ours
    for (size_t i = 0; i < dequant.size(); ++i)  // differs only where the group's scale does, by the offset's ulp
      ASSERT_NEAR(q.dequant_unshifted[i], dequant[i],
                  q.offset == offset ? 0.0f : (std::abs(offset) + groups[0]) * 0x1p-22f)
          << i;

    const IcqSpec exact;  // the default: no block's entropy is lower than theirs
    const Quantized best = quantize_on(backend, w, 128, 512, format, &exact, map.data());
    for (size_t b = 0; b < 1024; ++b) EXPECT_GE(best.entropy[b], entropies[b] - 1e-6f) << b;
  }
}
std::string missing_released_files() {
  return shared_golden_folder().empty()
             ? "the released code's outputs are not in $IRQ_SHARED_DATA/golden or ../shared/data/golden"
             : "";
}
TEST(ReleasedCode, Cpu) {
  if (const std::string reason = missing_released_files(); !reason.empty()) GTEST_SKIP() << reason;
  for (const char* set : {"gauss", "heavy"}) expect_released(cpu_backend(DType::F32), set, shared_golden_folder());
}
TEST(ReleasedCode, Cuda) {
  if (const std::string reason = missing_released_files(); !reason.empty()) GTEST_SKIP() << reason;
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  for (const char* set : {"gauss", "heavy"}) expect_released(cuda_backend(DType::BF16), set, shared_golden_folder());
}

// The first 32 rows (256 blocks: one whole group of taus) travel with the repository: tests/golden/README.md. The offset
// is a mean over all 1,024 blocks, so the scale codes cannot be checked on a part.
void expect_released_part(Backend& backend) {
  const std::filesystem::path path = std::filesystem::path(__FILE__).parent_path() / "golden/icq_released.bin";
  const std::vector<char> bytes = file_bytes(path);
  ASSERT_EQ(bytes.size(), 1024u + 2u * (65536 + 8192 + 256 + 4 + 1024)) << path;
  const char* next = bytes.data();
  const auto take = [&](auto& out) {
    std::memcpy(out.data(), next, out.size() * sizeof(out[0]));
    next += out.size() * sizeof(out[0]);
  };
  std::vector<float> map(256), w(32 * 512), tau_group(1), entropies(256);
  std::vector<uint8_t> packed(8192), tau_codes(256);
  take(map);
  for (const char* set : {"gauss", "heavy"}) {
    SCOPED_TRACE(set);
    take(w), take(packed), take(tau_codes), take(tau_group), take(entropies);
    const IcqSpec spec{0.1, 100, true};
    const Quantized q = quantize_on(backend, w, 32, 512, {}, &spec, map.data());
    EXPECT_EQ(q.codes, packed);
    EXPECT_EQ(q.tau_codes, tau_codes);
    EXPECT_EQ(q.tau_groups, tau_group);
    for (size_t b = 0; b < 256; ++b)
      EXPECT_NEAR(q.entropy[b], entropies[b], 5e-7f) << b;  // two ulps: theirs is an fp32 sum
    const IcqSpec exact;
    const Quantized best = quantize_on(backend, w, 32, 512, {}, &exact, map.data());
    for (size_t b = 0; b < 256; ++b) EXPECT_GE(best.entropy[b], entropies[b] - 1e-6f) << b;
  }
}
TEST(ReleasedCode, PartInTheRepositoryCpu) { expect_released_part(cpu_backend(DType::F32)); }
TEST(ReleasedCode, PartInTheRepositoryCuda) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  expect_released_part(cuda_backend(DType::BF16));
}

}  // namespace
}  // namespace irq
