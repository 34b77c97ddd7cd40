// Choosing matmul's algorithm by timing: results stay right, in-place operands whole, and choices survive a file.
#include <gtest/gtest.h>

#include <cstdlib>

#include "src/core/file.h"
#include "src/train/matmul_cache.h"
#include "tests/cases/matmul.h"
#include "tests/scratch_dir.h"

namespace irq {
namespace {

// The shapes of a training step, small: forward with a residual, du into spare columns, dA in place, dB.
std::vector<OpCase> step_cases() {
  return {matmul_case({256, 512, 320, false, true, 1, 1, false, 64}),
          matmul_case({256, 64, 512, false, false, 1, 0, false, 64}),
          matmul_case({64, 512, 256, true, false, 1, 1, true, 0, Kind::storage, Kind::master}),
          matmul_case({512, 64, 256, true, false, 0.25, 0, false, 0, Kind::storage, Kind::master}),
          matmul_case({256, 320, 512, false, false, 1, 0.5, true, 8}),
          matmul_blocks_case(3, 128, 64, 256, 1)};
}

std::unique_ptr<CheckedBackend> tuning_backend() {
  auto backend = make_backend(Device::CUDA, {DType::BF16, DType::F32});
  backend->tune_matmul(true);
  return backend;
}

TEST(MatmulTuneCpu, HasNothingToChoose) {
  Backend& b = cpu_backend(DType::F32);
  b.tune_matmul(true);
  EXPECT_EQ(b.matmul_choices(false), "");
  EXPECT_FALSE(b.restore_matmul_choices("irq matmul choices 1 | anything\n"));
  EXPECT_EQ(matmul_cache_path(b), "");
  EXPECT_EQ(save_matmul_cache(b), "");
  load_matmul_cache(b);
}

TEST(MatmulTuneCuda, ChangesNoResultBeyondRounding) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  const auto backend = tuning_backend();
  for (const OpCase& c : step_cases()) {
    HostArgs in = make_inputs(c);
    round_storage_to_bf16(c, in);
    const std::vector<double> expected = run_case(c, cpu_backend(DType::F64), in)[0];
    const std::vector<double> first = run_case(c, *backend, in)[0];  // timed here
    EXPECT_LE(relative_l2(first, expected), c.tolerance_bf16) << c.name;
    for (int repeat = 0; repeat < 3; ++repeat) EXPECT_EQ(run_case(c, *backend, in)[0], first) << c.name;
  }
  const std::vector<MatmulTiming> timings = backend->take_matmul_timings();
  EXPECT_EQ(timings.size(), step_cases().size());
  for (const MatmulTiming& t : timings) {
    EXPECT_GT(t.chosen_us, 0);
    EXPECT_LE(t.chosen_us, t.first_us);
    EXPECT_LT(t.chosen, t.candidates);
  }
  EXPECT_TRUE(backend->take_matmul_timings().empty());
}

TEST(MatmulTuneCuda, ChoicesAreRestored) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  const auto first = tuning_backend(), second = tuning_backend();
  std::vector<std::vector<double>> results;
  for (const OpCase& c : step_cases()) results.push_back(run_case(c, *first, make_inputs(c))[0]);
  const std::string text = first->matmul_choices(true);
  EXPECT_TRUE(second->restore_matmul_choices(text + "nonsense\n1 2 3\n"));
  EXPECT_EQ(second->matmul_choices(false), text);
  size_t i = 0;
  for (const OpCase& c : step_cases()) EXPECT_EQ(run_case(c, *second, make_inputs(c))[0], results[i++]) << c.name;
  EXPECT_TRUE(second->take_matmul_timings().empty());  // nothing was timed again
  EXPECT_EQ(second->matmul_choices(true), text);
  // Another GPU's choices, or another library's.
  EXPECT_FALSE(tuning_backend()->restore_matmul_choices("irq matmul choices 1 | another GPU sm_80 | cuBLASLt 1\n"));
}

TEST(MatmulTuneCuda, TheCacheIsAFileThatMayBeAnything) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  const ScratchDir dir;
  const char* before = std::getenv("XDG_CACHE_HOME");
  const std::string old = before ? before : "";
  setenv("XDG_CACHE_HOME", (dir / "cache").c_str(), 1);
  const auto first = tuning_backend(), second = tuning_backend(), third = tuning_backend();
  const OpCase c = step_cases()[0];
  run_case(c, *first, make_inputs(c));
  EXPECT_EQ(save_matmul_cache(*first), "");
  load_matmul_cache(*second);
  EXPECT_EQ(second->matmul_choices(false), first->matmul_choices(true));
  write_text_file(matmul_cache_path(*third), std::string(1000, '\xff'));
  load_matmul_cache(*third);
  EXPECT_EQ(third->matmul_choices(false).find('\n') + 1, third->matmul_choices(false).size());  // the header alone
  write_text_file(dir / "file", "");
  setenv("XDG_CACHE_HOME", (dir / "file").c_str(), 1);  // no folder can be made there
  EXPECT_NE(save_matmul_cache(*first), "");
  if (before) setenv("XDG_CACHE_HOME", old.c_str(), 1);
  else unsetenv("XDG_CACHE_HOME");
}

}  // namespace
}  // namespace irq
