// GPTQ's inner loop over the columns of a block (fidelity 5.3), and the permutation of rows and columns. CPU reference.
#include "kernels/common.h"
#include "kernels/int_group.h"

namespace irq {
namespace {

template <bool kFloatZero>
void solve_row(uint8_t* bytes, float* err, std::vector<float>& w, const Tensor& u, const float* scales,
               const void* zeros, const int32_t* order, int64_t first, int64_t length, float top) {
  const auto count = static_cast<int64_t>(w.size());
  for (int64_t i = 0; i < count; ++i) {
    const int64_t column = first + i, g = column / length;
    const float scale = scales[g], zero = kFloatZero ? static_cast<const float*>(zeros)[g]
                                                     : static_cast<float>(static_cast<const uint8_t*>(zeros)[g]);
    const float x = w[static_cast<size_t>(i)], code = int_code<kFloatZero>(x, scale, zero, top);
    const float* ui = u.row<float>(i);
    const float w_hat = scale * (code - zero), e = (x - w_hat) / ui[i];
    bytes[order ? order[column] : column] = static_cast<uint8_t>(static_cast<int>(code));
    err[i] = e;
    for (int64_t j = i + 1; j < count; ++j) {
      const float share = e * ui[j];
      w[static_cast<size_t>(j)] = w[static_cast<size_t>(j)] - share;
    }
  }
}

}  // namespace

void CpuBackend::gptq_block(Tensor bytes, Tensor err, Tensor w, Tensor u, Tensor scales, Tensor zeros, Tensor order,
                            int64_t first, int bits, int group) {
  const int64_t length = group == kPerChannel ? bytes.cols : group;
  const bool float_zero = zeros.dtype == DType::F32;
  const int32_t* to = order ? order.as<int32_t>() : nullptr;
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < w.rows; ++row) {
    std::vector<float> copy(w.row<float>(row), w.row<float>(row) + w.cols);
    const void* z = float_zero ? static_cast<const void*>(zeros.row<float>(row)) : zeros.row<uint8_t>(row);
    (float_zero ? solve_row<true> : solve_row<false>)(bytes.row<uint8_t>(row), err.row<float>(row), copy, u,
                                                      scales.row<float>(row), z, to, first, length, int_top(bits));
  }
}

void CpuBackend::permute(Tensor y, Tensor x, Tensor rows, Tensor cols) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < y.rows; ++i) {
    const float* from = x.row<float>(rows ? rows.as<int32_t>()[i] : i);
    for (int64_t j = 0; j < y.cols; ++j) y.row<float>(i)[j] = from[cols ? cols.as<int32_t>()[j] : j];
  }
}

}  // namespace irq
