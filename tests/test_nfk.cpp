// The NF-k ops: the ladder of trust, edge cases of the codes, and the orchestration of one matrix.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/nfk_block.h"
#include "tests/cases/nfk.h"
#include "tests/quant_fixture.h"
#include "tests/sm80_kernels.h"

IRQ_OP_TESTS(IcqSearchOp, irq::icq_search_cases());
IRQ_OP_TESTS(NfkQuantizeOp, irq::nfk_quantize_cases());
IRQ_OP_TESTS(DoubleQuantizeOp, irq::double_quantize_cases());
IRQ_OP_TESTS(SquaredErrorsOp, irq::squared_errors_cases());
IRQ_OP_TESTS(NfkDequantOp, irq::nfk_dequant_cases());
IRQ_OP_TESTS(NfkMatmulOp, irq::nfk_matmul_cases());

namespace irq {
namespace {

// A Hopper GPU takes a kernel of its own above 16 rows of x; those for sm_80 must be right there too.
std::vector<OpCase> nfk_matmul_sm80_cases() {
  std::vector<OpCase> cases;
  for (const OpCase& c : nfk_matmul_cases())
    if (c.args[0].rows > 16 && c.args[1].cols % 256 == 0) cases.push_back(by_sm80_kernels(c));
  return cases;
}
IRQ_OP_TESTS(NfkMatmulSm80, nfk_matmul_sm80_cases());

// Two thread blocks that share rows, and eight; few chunks each, and more than there are stages. The CPU would take too long.
TEST(NfkMatmulCuda, BothKernelsAgreeOnLargeShapes) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  for (const int bits : {2, 3, 4})
    for (const int64_t m : {20, 32, 64})
      for (const MatrixShape& s :
           {MatrixShape{11008, 1024, 0}, MatrixShape{4094, 2816, 8}, MatrixShape{4096, 11008, 0}}) {
        if (bits != 4 && (m != 64 || s.spare == 0)) continue;
        if (s.cols == 11008 && m == 32) continue;
        const OpCase c = nfk_matmul_case({QuantKind::nf, bits, kBlock, ScaleKind::dq8, ShiftKind::tau}, m, s, 0);
        const HostArgs args = make_inputs(c);
        const HostArgs first = run_case(c, cuda_backend(DType::BF16), args);
        EXPECT_EQ(first, run_case(c, cuda_backend(DType::BF16), args)) << c.name;
        use_only_sm80_kernels(true);
        const HostArgs second = run_case(c, cuda_backend(DType::BF16), args);
        use_only_sm80_kernels(false);
        EXPECT_LE(relative_l2(first[0], second[0]), 5e-3) << c.name;  // weights and results rounded to bf16 in each
      }
}

QuantFormat plain_format(int bits, ScaleKind scale = ScaleKind::f32) {
  return {QuantKind::nf, bits, kBlock, scale, ShiftKind::none};
}

TEST(NfkQuantize, ZeroBlockHoldsTheZeroCode) {
  Backend& backend = cpu_backend(DType::F32);
  for (int bits = 2; bits <= 4; ++bits) {
    std::vector<float> w(128, 0.0f);
    for (size_t i = 64; i < 128; ++i) w[i] = 0.01f * static_cast<float>(i);
    const Quantized q = quantize_on(backend, w, 2, 64, plain_format(bits), nullptr);
    const std::vector<uint8_t> codes = unpack(q.codes, 128, bits);
    for (size_t i = 0; i < 64; ++i) EXPECT_EQ(codes[i], nf_codebook(bits).zero_code);
    EXPECT_EQ(q.entropy[0], 0.0f);
    // With double quantization the scale of the zero block is not 0, but NF3 and NF4 still give 0.
    const Quantized dq = quantize_on(backend, w, 2, 64, plain_format(bits, ScaleKind::dq8), nullptr);
    for (size_t i = 0; i < 64; ++i)
      if (bits > 2) { EXPECT_EQ(dq.dequant[i], 0.0f); }
  }
}

TEST(NfkQuantize, ShortTailIsPaddedWithZeroBitsAndScaledByItself) {
  for (int bits = 2; bits <= 4; ++bits) {
    std::vector<float> w(64 + 5, 1.0f);
    w[64] = -0.25f, w[65] = 0.125f, w[66] = 0.25f, w[67] = 0.0f, w[68] = 0.2f;
    const Quantized q = quantize_on(cpu_backend(DType::F32), w, 1, 69, plain_format(bits), nullptr);
    EXPECT_EQ(q.scales, (std::vector<float>{1.0f, 0.25f}));
    const std::vector<uint8_t> codes = unpack(q.codes, 69, bits);
    for (size_t i = 64; i < 69; ++i) EXPECT_EQ(codes[i], nfk_code(nf_codebook(bits), w[i], 0.25f, 4.0f));
    const int used = 69 * bits % 8;
    if (used != 0) { EXPECT_EQ(q.codes.back() & ((1 << (8 - used)) - 1), 0); }
    EXPECT_LE(q.entropy[1], std::log2(5.0f));
    EXPECT_EQ(q.dequant[64], -0.25f);
    EXPECT_EQ(q.dequant[66], 0.25f);
  }
}

TEST(Quantizer, AnySizeWithTails) {
  Rng rng(3);
  const IcqSpec icq;
  for (int bits = 2; bits <= 4; ++bits)
    for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 1}, {3, 21}, {5, 64}, {257, 64}, {100, 200}}) {
      std::vector<float> w(static_cast<size_t>(rows * cols));
      for (float& x : w) x = static_cast<float>(0.02 * rng.normal());
      QuantFormat format;
      format.bits = bits;
      const Quantized q = quantize_on(cpu_backend(DType::F32), w, rows, cols, format, &icq);
      EXPECT_GE(q.stats.entropy, q.stats.entropy_plain - 1e-6) << bits << " " << rows << "x" << cols;
      EXPECT_EQ(q.stats.blocks, block_count(rows * cols));
      double error = 0, energy = 0;
      for (size_t i = 0; i < w.size(); ++i) {
        error += std::pow(static_cast<double>(q.dequant[i]) - static_cast<double>(w[i]), 2);
        energy += std::pow(static_cast<double>(w[i]), 2);
      }
      if (rows * cols > 1000) {
        EXPECT_LT(error / energy, bits == 4 ? 0.02 : bits == 3 ? 0.06 : 0.25);  // Gaussian: 0.009, 0.04, 0.2
      }
    }
}

TEST(Quantizer, NamesTheMatrixAndTheElementOfANan) {
  const IcqSpec icq;
  for (const bool with_icq : {false, true})
    for (const ScaleKind scale : {ScaleKind::f32, ScaleKind::dq8})
      for (const float bad : {NAN, INFINITY, -INFINITY}) {
        std::vector<float> w(128 * 3, 0.5f);
        w[128 + 77] = bad;
        QuantFormat format = plain_format(4, scale);
        if (with_icq) format.shift = ShiftKind::tau;
        try {
          quantize_on(cpu_backend(DType::F32), w, 3, 128, format, with_icq ? &icq : nullptr);
          FAIL() << "accepted " << bad;
        } catch (const Error& e) {
          EXPECT_NE(std::string(e.what()).find("layers.0.wq"), std::string::npos) << e.what();
          EXPECT_NE(std::string(e.what()).find("row 1, column 77"), std::string::npos) << e.what();
        }
      }
}

TEST(Quantizer, SaysThatWeightsAreTooFarApart) {
  std::vector<float> w(64, -3e38f);
  w[3] = 3e38f;
  const IcqSpec icq;
  EXPECT_THROW(quantize_on(cpu_backend(DType::F32), w, 1, 64, {}, &icq), Error);
}

TEST(Quantizer, Sizes) {
  const int64_t rows = 4096, cols = 4096, blocks = rows * cols / 64;
  for (int bits = 2; bits <= 4; ++bits) {
    QuantFormat format;
    format.bits = bits;
    EXPECT_EQ(quantized_bytes(rows, cols, format), rows * cols * bits / 8 + 2 * blocks + 8 * (blocks / 256) + 4);
    EXPECT_GE(placed_bytes(rows, cols, format), quantized_bytes(rows, cols, format));
    format.shift = ShiftKind::none;
    const double bits_per_weight =
        8.0 * static_cast<double>(quantized_bytes(rows, cols, format)) / static_cast<double>(rows * cols);
    EXPECT_NEAR(bits_per_weight, bits + 0.127, 1e-3);  // fidelity 2.4
  }
}

// Every device quantizes to the same bits.
TEST(Quantizer, CudaEqualsCpu) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  Rng rng(5);
  const int64_t rows = 201, cols = 320;
  std::vector<float> w(static_cast<size_t>(rows * cols));
  for (size_t i = 0; i < w.size(); ++i) {
    const double x = rng.normal();
    const size_t kind = i / 640 % 8;  // whole blocks of each kind
    w[i] = static_cast<float>(kind == 0   ? x * x * x
                              : kind == 1 ? 0.0
                              : kind == 2 ? 0.25
                              : kind == 3 ? 1e-41 * x
                              : kind == 4 ? std::round(2 * x)
                              : kind == 5 ? 1.0 + 1e-5 * x
                                          : 0.02 * x);
  }
  for (int bits = 2; bits <= 4; ++bits)
    for (const bool fp32 : {false, true}) {
      const IcqSpec icq{0.1, 100, fp32};
      QuantFormat format;
      format.bits = bits;
      const Quantized a = quantize_on(cpu_backend(DType::F32), w, rows, cols, format, &icq);
      const Quantized b = quantize_on(cuda_backend(DType::BF16), w, rows, cols, format, &icq);
      EXPECT_EQ(a.tau, b.tau);
      EXPECT_EQ(a.codes, b.codes);
      EXPECT_EQ(a.absmax, b.absmax);
      EXPECT_EQ(a.entropy, b.entropy);
      EXPECT_EQ(a.entropy_plain, b.entropy_plain);
      EXPECT_EQ(a.offset, b.offset);
      EXPECT_EQ(a.scale_codes, b.scale_codes);
      EXPECT_EQ(a.scale_groups, b.scale_groups);
      EXPECT_EQ(a.tau_codes, b.tau_codes);
      EXPECT_EQ(a.tau_groups, b.tau_groups);
      EXPECT_EQ(a.dequant, b.dequant);
    }
}

}  // namespace
}  // namespace irq
