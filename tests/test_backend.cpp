// Backends without their ops: memory, transfers, choosing a device, the checks, the dry run and the profile.
#include <gtest/gtest.h>

#include <numeric>

#include "tests/op_case.h"

namespace irq {
namespace {

// The text of the Error that f throws, "" if it throws none.
template <class F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const Error& e) { return e.what(); }
  return "";
}

#define EXPECT_ERROR(statement, text)                                   \
  EXPECT_NE(error_of([&] { statement; }).find(text), std::string::npos) \
      << "error text: '" << error_of([&] { statement; }) << "'"

// Uploads into the middle of a larger matrix, reads it back, and looks at what lies around it.
void check_transfers(Backend& backend) {
  constexpr int64_t kRows = 5, kCols = 7, kFrom = 3, kWidth = 4;
  std::vector<float> whole(kRows * kCols), part(kRows * kWidth), back(kRows * kWidth, -1.f), all(kRows * kCols, -1.f);
  std::iota(whole.begin(), whole.end(), 0.f);
  std::iota(part.begin(), part.end(), 1000.f);
  const Tensor t = make_view(backend.allocate(kRows * kCols * 4), DType::F32, kRows, kCols, "t", backend.device());
  const Tensor view = t.slice_cols(kFrom, kWidth);
  backend.upload(t, whole.data());
  backend.download(back.data(), view);
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t c = 0; c < kWidth; ++c)
      EXPECT_EQ(back[static_cast<size_t>(r * kWidth + c)], whole[static_cast<size_t>(r * kCols + kFrom + c)]);
  backend.upload(view, part.data());
  backend.download(all.data(), t);
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t c = 0; c < kCols; ++c) {
      const bool inside = c >= kFrom && c < kFrom + kWidth;
      const float expected =
          inside ? part[static_cast<size_t>(r * kWidth + c - kFrom)] : whole[static_cast<size_t>(r * kCols + c)];
      EXPECT_EQ(all[static_cast<size_t>(r * kCols + c)], expected) << r << ", " << c;
    }
  backend.upload(t.slice_rows(2, 0), nullptr);  // nothing to move
  backend.release(t.data);
}

void check_out_of_memory(Backend& backend) {
  EXPECT_GT(backend.free_bytes(), 0);
  const std::string text = error_of([&] { backend.allocate(int64_t{1} << 52); });  // 4.5 PB
  EXPECT_NE(text.find("not enough"), std::string::npos) << text;
  EXPECT_NE(text.find("asked"), std::string::npos) << text;
  EXPECT_NE(text.find("free"), std::string::npos) << text;
  void* memory = backend.allocate(64);  // and the backend lives on
  backend.release(memory);
}

TEST(CpuBackend, StridedTransfers) { check_transfers(cpu_backend(DType::F32)); }
TEST(CpuBackend, OutOfMemoryIsAnError) { check_out_of_memory(cpu_backend(DType::F32)); }

TEST(CpuBackend, AllocationsAreAlignedAndWhole) {
  Backend& backend = cpu_backend(DType::F32);
  for (const int64_t bytes : {int64_t{0}, int64_t{1}, int64_t{65}, int64_t{3} << 20}) {
    char* memory = static_cast<char*>(backend.allocate(bytes));
    ASSERT_NE(memory, nullptr);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(memory) % 64, 0u);
    if (bytes) memory[0] = memory[bytes - 1] = 1;
    backend.release(memory);
  }
  // More than there is, but not absurdly so: Linux alone would grant it and end the process later.
  EXPECT_ERROR(backend.release(backend.allocate(backend.free_bytes() + (int64_t{1} << 30))), "not enough memory");
}

TEST(CpuBackend, DescribesItself) { EXPECT_EQ(make_backend("cpu")->describe().rfind("CPU, ", 0), 0u); }

TEST(CudaBackend, StridedTransfers) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  check_transfers(cuda_backend(DType::BF16));
}

TEST(CudaBackend, OutOfMemoryIsAnError) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  check_out_of_memory(cuda_backend(DType::BF16));
}

TEST(CudaBackend, DescribesItself) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  const std::string text = make_backend("cuda")->describe();
  EXPECT_NE(text.find("sm_"), std::string::npos) << text;
}

TEST(MakeBackend, ProductionPrecisions) {
  const auto cpu = make_backend("cpu");
  EXPECT_EQ(cpu->device(), Device::CPU);
  EXPECT_EQ(cpu->precision().storage, DType::F32);
  EXPECT_EQ(cpu->precision().master, DType::F32);
  const auto best = make_backend("auto");
  EXPECT_EQ(best->device(), cuda_unavailable_reason().empty() ? Device::CUDA : Device::CPU);
  if (best->device() == Device::CUDA) { EXPECT_EQ(best->precision().storage, DType::BF16); }
}

TEST(MakeBackend, CudaWithoutAGpuSaysWhy) {
  const std::string reason = cuda_unavailable_reason();
  if (reason.empty()) GTEST_SKIP() << "this machine has a GPU";
  EXPECT_ERROR(make_backend("cuda"), reason);
  EXPECT_ERROR(make_backend("cuda"), "--device cpu");
  EXPECT_ERROR(make_backend(Device::CUDA, {DType::F32, DType::F32}), reason);
}

TEST(MakeBackend, RefusesWhatThereIsNot) {
  EXPECT_ERROR(make_backend("gpu"), "auto, cpu or cuda");
  EXPECT_ERROR(make_backend(Device::CPU, {DType::BF16, DType::F32}), "bf16");
  EXPECT_ERROR(make_backend(Device::CUDA, {DType::F64, DType::F64}), "f64");
}

TEST(CheckedBackend, SaysWhichArgumentIsWrong) {
  Backend& b = cpu_backend(DType::F32);
  std::vector<float> memory(64);
  std::vector<int32_t> indices(4);
  const Tensor x = make_view(memory.data(), DType::F32, 2, 4, "x_norm"),
               y = make_view(memory.data() + 8, DType::F32, 2, 3, "out");
  const Tensor tokens = make_view(indices.data(), DType::I32, 1, 2, "tokens");
  EXPECT_ERROR(b.copy(y, x),
               "copy: src has the wrong shape: 'x_norm' (2, 4) f32 on CPU, row stride 4, expected (2, 3)");
  EXPECT_ERROR(b.copy(tokens, tokens), "copy: dst has the wrong type");
  EXPECT_ERROR(b.embedding_fwd(x, x, y.flat()), "tokens");
  EXPECT_ERROR(b.matmul(y, x, false, x, false, 1, 0, {}), "matmul: b has the wrong shape");
  EXPECT_ERROR(b.matmul(x, x, false, x, true, 1, 0, {}), "matmul: y has the wrong shape");
  Tensor elsewhere = x, missing = x, narrow = x, doubles = x;
  elsewhere.device = Device::CUDA;
  missing.data = nullptr;
  narrow.stride = 3;
  doubles.dtype = DType::F64;
  EXPECT_ERROR(b.fill(elsewhere, 0), "wrong device");
  EXPECT_ERROR(b.fill(missing, 0), "missing");
  EXPECT_ERROR(b.fill(narrow, 0), "not a matrix");
  EXPECT_ERROR(b.fill(doubles, 0), "expected f32 (storage) or f32 (master)");
  // The residual is required, with the result's shape, only if it is read.
  EXPECT_ERROR(b.matmul(y.slice_cols(0, 2), x, false, x, true, 1, 1, {}), "matmul: c has the wrong shape");
  EXPECT_ERROR(b.upload(elsewhere, memory.data()), "expected it on CPU");
  EXPECT_ERROR(b.download(nullptr, x), "null memory");
}

TEST(CheckedBackend, DryRunChecksAndDoesNothing) {
  CheckedBackend dry(Device::CUDA, {DType::BF16, DType::F32});
  EXPECT_TRUE(dry.dry());
  EXPECT_EQ(dry.device(), Device::CUDA);
  // Far more than any machine has, at an address that would fault if it were touched.
  const int64_t n = int64_t{1} << 22;
  const Tensor x = make_view(dry.allocate(n * n * 2), DType::BF16, n, n, "x", Device::CUDA);
  dry.matmul(x, x, false, x, true, 1, 1, x);
  dry.swiglu_fwd(x.slice_cols(0, n / 2), x);
  dry.upload(x, &dry);
  dry.synchronize();
  EXPECT_ERROR(dry.matmul(x, x.slice_rows(0, 3), false, x, true, 1, 0, {}), "y has the wrong shape");
  EXPECT_ERROR(dry.swiglu_fwd(x, x), "gate_up has the wrong shape");
  Tensor f32 = x;
  f32.dtype = DType::F32;
  EXPECT_ERROR(dry.swiglu_fwd(f32.slice_cols(0, n / 2), f32), "expected bf16 (storage)");
  dry.release(x.data);
}

TEST(CheckedBackend, ProfileCountsEachOp) {
  const auto b = make_backend("cpu");
  std::vector<float> memory(64, 1.f);
  const Tensor x = make_view(memory.data(), DType::F32, 4, 4, "x"),
               y = make_view(memory.data() + 16, DType::F32, 4, 4, "y");
  b->matmul(y, x, false, x, true, 1, 0, {});
  EXPECT_TRUE(b->profile().empty());
  b->set_profile(true);
  for (int i = 0; i < 3; ++i) b->matmul(y, x, false, x, true, 1, 0, {});
  ASSERT_EQ(b->profile().size(), 1u);
  EXPECT_EQ(b->profile()[0].op, "matmul");
  EXPECT_EQ(b->profile()[0].calls, 3);
  EXPECT_GT(b->profile()[0].ms, 0);
  b->set_profile(false);
  b->matmul(y, x, false, x, true, 1, 0, {});
  EXPECT_EQ(b->profile()[0].calls, 3);
}

}  // namespace
}  // namespace irq
