// GPTQ's solver: fidelity's golden values, cases with a known answer, and less error than rounding to nearest.
#include <gtest/gtest.h>

#include <cmath>

#include "src/io/inspect.h"
#include "src/quant/gptq.h"
#include "tests/op_case.h"
#include "tests/quant_fixture.h"

namespace irq {
namespace {

struct Problem {
  int64_t rows, cols, samples;
  std::vector<float> w, x;  // (rows, cols), (samples, cols)
};

// Inputs that share a few directions, so that an error in one column can be made good by others.
Problem correlated(int64_t rows, int64_t cols, int64_t samples, uint64_t seed) {
  Problem p{rows, cols, samples, {}, {}};
  Rng rng(seed);
  const int64_t shared = cols / 4;
  std::vector<double> mix(static_cast<size_t>(shared * cols));
  for (double& m : mix) m = rng.normal();
  for (int64_t i = 0; i < rows * cols; ++i) p.w.push_back(static_cast<float>(0.05 * rng.normal()));
  for (int64_t s = 0; s < samples; ++s) {
    std::vector<double> direction(static_cast<size_t>(shared));
    for (double& d : direction) d = rng.normal();
    for (int64_t c = 0; c < cols; ++c) {
      double x = 0.3 * rng.normal();
      for (int64_t k = 0; k < shared; ++k)
        x += 0.3 * direction[static_cast<size_t>(k)] * mix[static_cast<size_t>(k * cols + c)];
      p.x.push_back(to_float(to_bf16(static_cast<float>(x))));
    }
  }
  return p;
}

// sum of ((W_hat - W) X^T)^2, in fp64.
double output_error(const Problem& p, const std::vector<float>& w_hat) {
  double error = 0;
  for (int64_t r = 0; r < p.rows; ++r)
    for (int64_t s = 0; s < p.samples; ++s) {
      double y = 0;
      for (int64_t c = 0; c < p.cols; ++c) {
        const auto i = static_cast<size_t>(r * p.cols + c);
        y += (static_cast<double>(w_hat[i]) - static_cast<double>(p.w[i])) *
             static_cast<double>(p.x[static_cast<size_t>(s * p.cols + c)]);
      }
      error += y * y;
    }
  return error;
}

struct Solved {
  QuantizeStats stats;
  std::vector<uint8_t> codes;
  std::vector<float> scales, zeros, w_hat;
  double error = 0, damping = 0;
};

// By GPTQ, or (gptq null) rounded to nearest, on the backend's device.
Solved solve(Backend& backend, const Problem& p, const IntSpec& spec, const GptqOptions* gptq) {
  const QuantFormat format = integer_format(spec);
  DeviceBuffer w_memory(backend, p.rows * p.cols * 4), x_memory(backend, p.samples * p.cols * 4),
      narrow_memory(backend, p.samples * p.cols * 4), packed_memory(backend, placed_bytes(p.rows, p.cols, format));
  const Tensor w = make_view(w_memory.data(), DType::F32, p.rows, p.cols, "layers.0.wq", backend.device());
  const Tensor wide = make_view(x_memory.data(), DType::F32, p.samples, p.cols, "x", backend.device());
  const Tensor x =
      make_view(narrow_memory.data(), backend.precision().storage, p.samples, p.cols, "x", backend.device());
  backend.upload(w, p.w.data());
  backend.upload(wide, p.x.data());
  backend.copy(x, wide);
  QuantizedMatrix q = place_quantized(packed_memory.data(), p.rows, p.cols, format, {}, backend.device());
  Solved s;
  if (gptq) {
    GptqSolver solver(backend);
    solver.reserve(p.rows, p.cols, p.rows * p.cols);
    solver.begin(p.cols);
    solver.measure(x, 2.0 / static_cast<double>(p.samples));
    solver.factorize("test", *gptq);
    s.damping = solver.damping();
    s.stats = solver.run(q, w, spec, *gptq);
  } else {
    s.stats = Quantizer(backend).run_integer(q, w, spec);
  }
  std::vector<char> host(static_cast<size_t>(placed_bytes(p.rows, p.cols, format)));
  QuantizedMatrix on_host = place_quantized(host.data(), p.rows, p.cols, format, {}, Device::CPU);
  const auto from = matrix_parts(q), to = matrix_parts(on_host);
  for (size_t i = 0; i < from.size(); ++i) backend.download(to[i].tensor->data, *from[i].tensor);
  s.codes = unpack_codes(on_host);
  s.w_hat = dequantize_on_host(on_host);
  for (int64_t i = 0; i < on_host.blocks(); ++i) {
    s.scales.push_back(on_host.scales.as<float>()[i]);
    s.zeros.push_back(format.shift == ShiftKind::float_zero ? on_host.zeros.as<float>()[i]
                                                            : static_cast<float>(on_host.zeros.as<uint8_t>()[i]));
  }
  s.error = output_error(p, s.w_hat);
  return s;
}

std::vector<Backend*> backends() {
  std::vector<Backend*> list = {&cpu_backend(DType::F32)};
  if (cuda_unavailable_reason().empty()) list.push_back(&cuda_backend(DType::BF16));
  return list;
}

// fidelity 9.4, evaluated there in fp64.
TEST(GptqGolden, CodesScalesZerosAndErrors) {
  Problem p{2, 8, 12, {}, {}};
  p.w = {.11f, -.23f, .31f, .07f, -.42f, .18f, .26f, -.05f, -.17f, .29f, -.08f, .41f, .13f, -.36f, .02f, .22f};
  for (int i = 0; i < 12; ++i)
    for (int j = 0; j < 8; ++j) p.x.push_back(static_cast<float>((5 * i + 3 * j + i * j) % 7 - 3));
  const IntSpec spec{3, 4};
  struct Golden {
    bool fresh;
    std::vector<uint8_t> codes;
    std::vector<double> scales;
    double error;
  };
  const Golden goldens[] = {{false,
                             {4, 0, 7, 4, 0, 6, 6, 4, 0, 5, 1, 6, 6, 0, 5, 7},
                             {.07714286, .09714286, .08285714, .08285714},
                             0.26403673},
                            {true,
                             {4, 0, 7, 4, 0, 6, 7, 4, 0, 5, 1, 6, 6, 0, 5, 7},
                             {.07714286, .09945182, .08285714, .08269387},
                             0.31786844}};
  for (Backend* backend : backends()) {
    for (const Golden& g : goldens) {
      const GptqOptions options{.fresh = g.fresh};
      const Solved s = solve(*backend, p, spec, &options);
      EXPECT_NEAR(s.damping, 0.09583333, 1e-7);
      EXPECT_EQ(s.codes, g.codes);
      EXPECT_EQ(s.zeros, (std::vector<float>{3, 4, 2, 4}));
      // fp32: 12 roundings of 2^-24 on numbers below 0.7; the error is quadratic in differences near 0.05 times inputs to 3.
      for (size_t i = 0; i < 4; ++i) EXPECT_NEAR(s.scales[i], g.scales[i], 2e-7) << i;
      EXPECT_NEAR(s.error, g.error, 4e-6);
    }
    EXPECT_NEAR(solve(*backend, p, spec, nullptr).error, 0.91465714, 4e-6);
  }
}

// Inputs that have nothing to do with each other leave nothing to make good: GPTQ rounds to nearest.
TEST(Gptq, WithoutCorrelationItRoundsToNearest) {
  Problem p = correlated(9, 150, 150, 5);
  std::fill(p.x.begin(), p.x.end(), 0.0f);
  for (int64_t i = 0; i < 150; ++i) p.x[static_cast<size_t>(i * 150 + i)] = 1 + static_cast<float>(i % 5);
  for (Backend* backend : backends())
    for (const bool fresh : {false, true})
      for (const IntSpec& spec : {IntSpec{4, 32}, IntSpec{3, kPerChannel}, IntSpec{2, 64, false, IntSearch::clip}}) {
        const GptqOptions options{.act_order = spec.group == kPerChannel, .fresh = fresh};
        const Solved a = solve(*backend, p, spec, &options), b = solve(*backend, p, spec, nullptr);
        EXPECT_EQ(a.codes, b.codes);
        EXPECT_EQ(a.scales, b.scales);
        EXPECT_EQ(a.zeros, b.zeros);
        // A float sum over the blocks' entropies in another order or place: the same numbers.
        EXPECT_NEAR(a.stats.entropy, b.stats.entropy, 1e-9);
      }
}

TEST(Gptq, BeatsRoundingToNearest) {
  const Problem p = correlated(24, 200, 800, 11);  // columns are no multiple of 128
  for (Backend* backend : backends())
    for (int bits = 2; bits <= 4; ++bits)
      for (const IntSpec& spec : {IntSpec{bits, 32}, IntSpec{bits, 24}, IntSpec{bits, 136}, IntSpec{bits, kPerChannel},
                                  IntSpec{bits, 32, true}, IntSpec{bits, 32, false, IntSearch::clip},
                                  IntSpec{bits, 64, false, IntSearch::zero_shift}}) {
        const double nearest = solve(*backend, p, spec, nullptr).error;
        for (const bool second : {false, true}) {  // act-order where it is allowed, fresh ranges elsewhere
          GptqOptions options;
          (spec.group == kPerChannel ? options.act_order : options.fresh) = second;
          const Solved s = solve(*backend, p, spec, &options);
          EXPECT_LT(s.error, 0.8 * nearest) << bits << " bits, group " << spec.group << " " << second;
          for (const uint8_t c : s.codes) ASSERT_LT(c, 1 << bits);
        }
      }
}

// A column that no input reaches gets weight 0, and does not spoil the factorization.
TEST(Gptq, DeadColumnsBecomeZero) {
  Problem p = correlated(6, 40, 200, 3);
  for (int64_t s = 0; s < p.samples; ++s)
    for (const int64_t dead : {0, 17, 39}) p.x[static_cast<size_t>(s * 40 + dead)] = 0;
  for (Backend* backend : backends())
    for (const bool order : {false, true}) {
      const GptqOptions options{.act_order = order};
      const Solved s = solve(*backend, p, {4, kPerChannel}, &options);
      for (int64_t r = 0; r < p.rows; ++r)
        for (const int64_t dead : {0, 17, 39}) EXPECT_EQ(s.w_hat[static_cast<size_t>(r * 40 + dead)], 0.0f);
    }
}

TEST(Gptq, FactorIsTheCholeskyFactorOfTheInverse) {
  const int64_t n = 150;
  const Problem p = correlated(1, n, 300, 9);
  std::vector<double> h(static_cast<size_t>(n * n));
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j)
      for (int64_t s = 0; s < p.samples; ++s)
        h[static_cast<size_t>(i * n + j)] += static_cast<double>(p.x[static_cast<size_t>(s * n + i)]) *
                                             static_cast<double>(p.x[static_cast<size_t>(s * n + j)]);
  const std::vector<float> narrow(h.begin(), h.end());
  for (Backend* backend : backends()) {
    DeviceBuffer h_memory(*backend, n * n * 4), u_memory(*backend, n * n * 4), info_memory(*backend, 4);
    const Tensor h_device = make_view(h_memory.data(), DType::F32, n, n, "h", backend->device());
    const Tensor u_device = make_view(u_memory.data(), DType::F32, n, n, "u", backend->device());
    const Tensor info = make_view(info_memory.data(), DType::I32, 1, 1, "info", backend->device());
    backend->upload(h_device, narrow.data());
    backend->gptq_factor(u_device, info, h_device);
    EXPECT_EQ(download<int32_t>(*backend, info)[0], 0);
    const std::vector<float> u = download<float>(*backend, u_device);
    // U H U^T = 1. In fp32 the condition of H, below 1e3 here, multiplies 2^-24 times a sum of 150.
    double worst = 0;
    for (int64_t a = 0; a < n; ++a) {
      std::vector<double> uh(static_cast<size_t>(n), 0.0);
      for (int64_t i = a; i < n; ++i)
        for (int64_t j = 0; j < n; ++j)
          uh[static_cast<size_t>(j)] +=
              static_cast<double>(u[static_cast<size_t>(a * n + i)]) * h[static_cast<size_t>(i * n + j)];
      for (int64_t b = 0; b < n; ++b) {
        double entry = 0;
        for (int64_t j = b; j < n; ++j)
          entry += uh[static_cast<size_t>(j)] * static_cast<double>(u[static_cast<size_t>(b * n + j)]);
        worst = std::max(worst, std::abs(entry - (a == b)));
      }
      EXPECT_GT(u[static_cast<size_t>(a * n + a)], 0);
    }
    EXPECT_LT(worst, 2e-3);
    std::vector<float> bad = narrow;
    bad[5 * n + 5] = -1;
    backend->upload(h_device, bad.data());
    backend->gptq_factor(u_device, info, h_device);
    EXPECT_NE(download<int32_t>(*backend, info)[0], 0);
  }
}

TEST(Gptq, RejectsWhatIsNotFinite) {
  for (const bool in_weights : {true, false}) {
    Problem p = correlated(4, 64, 100, 2);
    (in_weights ? p.w : p.x)[130] = NAN;
    const GptqOptions options;
    try {
      solve(cpu_backend(DType::F32), p, {4, 32}, &options);
      FAIL();
    } catch (const Error& e) {
      const std::string text = e.what();
      EXPECT_NE(text.find(in_weights ? "row 2, column 2" : "inputs on the calibration data are not finite"),
                std::string::npos)
          << text;
    }
  }
}

}  // namespace
}  // namespace irq
