// matmul: the ladder of its cases, the CPU against the definition, and what the cases cannot say.
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <limits>

#include "tests/cases/matmul.h"

namespace irq {
namespace {

IRQ_OP_TESTS(Matmul, matmul_cases());
IRQ_OP_TESTS(MatmulBlocks, matmul_blocks_cases());

// y by the definition, one sum after the other in double. Independent of the kernel's blocking.
std::vector<double> by_definition(const MatmulCase& s, const HostArgs& args) {
  std::vector<double> y(static_cast<size_t>(s.m * s.n));
  const auto at = [](const std::vector<double>& x, int64_t i) { return x[static_cast<size_t>(i)]; };
  for (int64_t i = 0; i < s.m; ++i)
    for (int64_t j = 0; j < s.n; ++j) {
      double sum = 0;
      for (int64_t p = 0; p < s.k; ++p)
        sum += at(args[1], s.transpose_a ? p * s.m + i : i * s.k + p) *
               at(args[2], s.transpose_b ? j * s.k + p : p * s.n + j);
      const double base = s.beta == 0 ? 0 : s.beta * at(args[s.in_place ? 0 : 3], i * s.n + j);
      y[static_cast<size_t>(i * s.n + j)] = s.alpha * sum + base;
    }
  return y;
}

TEST(MatmulCpu, F64FollowsTheDefinition) {
  for (const bool ta : {false, true})
    for (const bool tb : {false, true})
      for (const int64_t m : {1, 2, 7, 33, 129})
        for (const int64_t n : {1, 7, 33, 129})
          for (const int64_t k : {0, 1, 7, 33, 129, 300}) {
            const MatmulCase s{m, n, k, ta, tb, -1.5, 0.5, m % 2 == 0, n % 3};
            const OpCase c = matmul_case(s);
            const HostArgs in = make_inputs(c);
            // Both sides round in F64 (1.1e-16), in different orders: 300 terms cannot differ by 1e-13.
            EXPECT_LE(relative_l2(run_case(c, cpu_backend(DType::F64), in)[0], by_definition(s, in)), 1e-13) << c.name;
          }
}

std::vector<double> with_threads(int threads, const OpCase& c) {
  const int before = omp_get_max_threads();
  omp_set_num_threads(threads);
  std::vector<double> y = run_case(c, cpu_backend(DType::F32), make_inputs(c))[0];
  omp_set_num_threads(before);
  return y;
}

TEST(MatmulCpu, SameBitsWithAnyNumberOfThreads) {
  for (const MatmulCase& s :
       {MatmulCase{200, 150, 600}, {100, 150, 600, true, false}, {3, 700, 500}, {5, 700, 500, false, false}}) {
    const OpCase c = matmul_case(s);
    const std::vector<double> one = with_threads(1, c);
    for (const int threads : {2, 3, 7})
      EXPECT_EQ(with_threads(threads, c), one) << c.name << ", " << threads << " threads";
  }
}

TEST(MatmulCpu, BetaZeroReadsNeitherYNorC) {
  MatmulCase s{20, 30, 300};
  OpCase c = matmul_case(s);
  c.args[3].value = [](Rng&, int64_t) { return std::numeric_limits<double>::quiet_NaN(); };
  const HostArgs out = run_case(c, cpu_backend(DType::F32), make_inputs(c));
  for (const double x : out[0]) ASSERT_TRUE(std::isfinite(x));
}

// An infinity in one row of a must not reach the other rows through the zeros that pad the packed panels.
TEST(MatmulCpu, InfinityStaysInItsRow) {
  OpCase c = matmul_case({20, 21, 10});
  c.args[1].value = [](Rng& rng, int64_t i) {
    return i == 7 * 10 + 3 ? std::numeric_limits<double>::infinity() : rng.normal();
  };
  const std::vector<double> y = run_case(c, cpu_backend(DType::F32), make_inputs(c))[0];
  for (size_t i = 0; i < y.size(); ++i) EXPECT_EQ(std::isfinite(y[i]), i / 21 != 7) << i;
}

void check_empty(Backend& backend) {
  const DType t = backend.precision().storage;
  void* memory = backend.allocate(4096);
  const Tensor none = make_view(memory, t, 0, 8, "none", backend.device());
  const Tensor some = make_view(memory, t, 4, 8, "some", backend.device());
  backend.matmul(make_view(memory, t, 0, 4, "y", backend.device()), none, false, some, true, 1, 0, {});
  backend.matmul(make_view(memory, t, 4, 0, "y", backend.device()), some, false, none, true, 1, 0, {});
  backend.synchronize();
  backend.release(memory);
}

TEST(MatmulCpu, EmptyResultIsFine) { check_empty(cpu_backend(DType::F32)); }

TEST(MatmulCuda, EmptyResultIsFine) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  check_empty(cuda_backend(DType::BF16));
}

TEST(MatmulCuda, SameBitsEveryTime) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  // Few tiles and a long sum: the shape for which a library splits the sum over blocks.
  for (const Kind out : {Kind::storage, Kind::master}) {
    const OpCase c = matmul_case({64, 64, 16384, true, false, 1, 0, false, 0, Kind::storage, out});
    const HostArgs in = make_inputs(c);
    const std::vector<double> first = run_case(c, cuda_backend(DType::BF16), in)[0];
    for (int repeat = 0; repeat < 5; ++repeat)
      EXPECT_EQ(run_case(c, cuda_backend(DType::BF16), in)[0], first) << c.name;
  }
}

}  // namespace
}  // namespace irq
