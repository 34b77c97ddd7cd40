// global_norm: exact cases, and the same bits for any number of threads.
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>

#include "tests/cases/global_norm.h"

namespace irq {

IRQ_OP_TESTS(GlobalNorm, global_norm_cases());

namespace {

template <class T>
T norm_of(std::vector<T>& g) {
  T norm = std::nan("");
  cpu_backend(dtype_of<T>())
      .global_norm(make_view(&norm, dtype_of<T>(), 1, 1, "norm"),
                   make_view(g.data(), dtype_of<T>(), 1, static_cast<int64_t>(g.size()), "g"));
  return norm;
}

TEST(GlobalNormDirect, Exact) {
  std::vector<double> g = {3, 0, -4};
  EXPECT_EQ(norm_of(g), 5);
  // 2^26 ones: a plain float sum stops growing at 2^24.
  std::vector<float> ones(1 << 26, 1.0f);
  EXPECT_EQ(norm_of(ones), 8192.0f);
  // One large value first: in float, 2^24 + 1 is 2^24, and the ones behind it would be lost.
  std::vector<float> mixed(65536, 1.0f);
  mixed[0] = 4096;
  EXPECT_EQ(norm_of(mixed), static_cast<float>(std::sqrt(16777216.0 + 65535.0)));
}

TEST(GlobalNormDirect, DoesNotDependOnThreads) {
  Rng rng(6);
  std::vector<double> g(200001);
  for (double& value : g) value = rng.normal();
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  const double one = norm_of(g);
  omp_set_num_threads(5);
  const double five = norm_of(g);
  omp_set_num_threads(before);
  EXPECT_EQ(one, five);
}

}  // namespace
}  // namespace irq
