// rmsnorm: the ladder of its cases, a worked example, finite differences, and the order of the roundings.
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>

#include "tests/cases/rmsnorm.h"

namespace irq {
namespace {

IRQ_OP_TESTS(Rmsnorm, rmsnorm_cases());

TEST(RmsnormFwd, WorkedExample) {
  std::vector<double> x = {3, 4, 0, 0}, w = {1, 2, 3, 4}, y(4, NAN), rstd(1, NAN);
  const auto view = [](std::vector<double>& v) { return make_view(v.data(), DType::F64, 1, int64_t(v.size()), "v"); };
  cpu_backend(DType::F64).rmsnorm_fwd(view(y), view(rstd), view(x), view(w), 0.0);  // mean square 25/4, rstd 0.4
  EXPECT_DOUBLE_EQ(rstd[0], 0.4);
  EXPECT_DOUBLE_EQ(y[0], 1.2);
  EXPECT_DOUBLE_EQ(y[1], 3.2);
  EXPECT_EQ(y[2], 0.0);
}

// A padding row is all zeros: eps keeps it finite.
TEST(RmsnormFwd, ZeroRowGivesZeros) {
  std::vector<double> x(8, 0.0), w(8, 1.0), y(8, NAN), rstd(1, NAN);
  const auto view = [](std::vector<double>& v) { return make_view(v.data(), DType::F64, 1, int64_t(v.size()), "v"); };
  cpu_backend(DType::F64).rmsnorm_fwd(view(y), view(rstd), view(x), view(w), 1e-6);
  EXPECT_EQ(y, std::vector<double>(8, 0.0));
  EXPECT_DOUBLE_EQ(rstd[0], 1e3);
}

struct Norm {
  static constexpr int64_t kN = 3, kC = 11;
  std::vector<double> x = std::vector<double>(kN * kC), w = std::vector<double>(kC), dy = x, y = x,
                      rstd = std::vector<double>(kN);
  Norm() {
    Rng rng(11);
    for (auto* v : {&x, &w, &dy})
      for (double& e : *v) e = rng.normal();
  }
  static Tensor rows(std::vector<double>& v) { return make_view(v.data(), DType::F64, kN, kC, "rows"); }
  static Tensor vec(std::vector<double>& v) { return make_view(v.data(), DType::F64, 1, int64_t(v.size()), "vec"); }
  double loss() {
    cpu_backend(DType::F64).rmsnorm_fwd(rows(y), vec(rstd), rows(x), vec(w), 1e-3);
    double sum = 0;
    for (size_t i = 0; i < y.size(); ++i) sum += y[i] * dy[i];
    return sum;
  }
  // Central differences: error h^2 from the third derivative and 1e-16 / h from rounding, both below 1e-9 at h = 1e-5.
  std::vector<double> slopes(std::vector<double>& v) {
    std::vector<double> out;
    for (double& e : v) {
      const double kept = e;
      e = kept + 1e-5;
      const double up = loss();
      e = kept - 1e-5;
      out.push_back((up - loss()) / 2e-5);
      e = kept;
    }
    loss();
    return out;
  }
};

TEST(RmsnormBwd, FiniteDifferences) {
  Norm n;
  const std::vector<double> want_x = n.slopes(n.x), want_w = n.slopes(n.w);
  std::vector<double> dx(n.x.size(), NAN), dw(n.w.size(), NAN);
  Backend& b = cpu_backend(DType::F64);
  b.rmsnorm_bwd(n.rows(dx), n.rows(n.dy), n.rows(n.x), n.vec(n.w), n.vec(n.rstd), 0.0);
  b.rmsnorm_bwd_weight(n.vec(dw), n.rows(n.dy), n.rows(n.x), n.vec(n.rstd), 0.0);
  EXPECT_LE(relative_l2(dx, want_x), 1e-8);
  EXPECT_LE(relative_l2(dw, want_w), 1e-8);
  // beta adds to what is there.
  std::vector<double> twice = dx, twice_w = dw;
  b.rmsnorm_bwd(n.rows(twice), n.rows(n.dy), n.rows(n.x), n.vec(n.w), n.vec(n.rstd), 1.0);
  b.rmsnorm_bwd_weight(n.vec(twice_w), n.rows(n.dy), n.rows(n.x), n.vec(n.rstd), 1.0);
  for (size_t i = 0; i < dx.size(); ++i) EXPECT_DOUBLE_EQ(twice[i], 2 * dx[i]);
  for (size_t i = 0; i < dw.size(); ++i) EXPECT_DOUBLE_EQ(twice_w[i], 2 * dw[i]);
}

TEST(RmsnormBwdWeight, SameBitsForAnyNumberOfThreads) {
  const OpCase c = rmsnorm_bwd_weight_case(100, 300, 0.0);
  const HostArgs in = make_inputs(c);
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const HostArgs one = run_case(c, cpu_backend(DType::F32), in);
  omp_set_num_threads(5);
  const HostArgs five = run_case(c, cpu_backend(DType::F32), in);
  omp_set_num_threads(threads);
  EXPECT_EQ(one[0], five[0]);
}

// Two runs on the GPU give the same bits, whatever the schedule of its blocks.
TEST(RmsnormBwdWeight, CudaIsDeterministic) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  const OpCase c = rmsnorm_bwd_weight_case(3000, 520, 1.0);
  const HostArgs in = make_inputs(c);
  const HostArgs first = run_case(c, cuda_backend(DType::BF16), in);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(run_case(c, cuda_backend(DType::BF16), in)[0], first[0]);
}

// The normalised row is rounded to bf16 before the weight multiplies it (as Hugging Face's LLaMA does): from the
// kernel's own rstd, both roundings can be redone on the host, bit for bit.
TEST(RmsnormFwd, CudaRoundsBeforeTheWeight) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  for (const int64_t cols : {64, 37, 4096}) {
    const OpCase c = rmsnorm_fwd_case(3, cols);
    HostArgs in = make_inputs(c);
    round_storage_to_bf16(c, in);
    const HostArgs out = run_case(c, cuda_backend(DType::BF16), in);
    for (size_t i = 0; i < out[0].size(); ++i) {
      const float r = float(out[1][i / size_t(cols)]), w = float(in[3][i % size_t(cols)]);
      const float normal = to_float(to_bf16(float(in[2][i]) * r));
      ASSERT_EQ(float(out[0][i]), to_float(to_bf16(normal * w))) << i;
    }
  }
}

}  // namespace
}  // namespace irq
