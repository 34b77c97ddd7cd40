// LoRA's A branch under dropout, and the pooled branch beside it: masks from their bits, around plain products.
#include "kernels/lora_dropout.h"

#include <cstring>
#include <vector>

#include "kernels/common.h"
#include "kernels/dropout.h"
#include "kernels/iec.h"

namespace irq {
namespace {

constexpr bool kPlain = false, kTransposed = true;
constexpr int64_t kRowsAtOnce = 256;  // bounds the memory for a masked copy

struct Rows {
  int64_t begin, count;
  Tensor of(const Tensor& t) const { return t.slice_rows(begin, count); }
};
template <class F>
void for_row_blocks(int64_t rows, F&& f) {
  for (int64_t n = 0; n < rows; n += kRowsAtOnce) f(Rows{n, std::min(kRowsAtOnce, rows - n)});
}

Tensor columns_of(const Tensor& u, const MaskBits& masks, int m) {
  return u.slice_cols(u.cols / masks.count * m, u.cols / masks.count);
}
Tensor rows_of(const Tensor& a, const MaskBits& masks, int m) {
  return a.slice_rows(a.rows / masks.count * m, a.rows / masks.count);
}

// f(row of the block, feature) for every element that adapter m keeps.
template <class F>
void for_kept(const Rows& rows, int64_t cols, const MaskBits& masks, int m, F&& f) {
  const Tensor bits = masks.only(m).bits;
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < rows.count; ++n) {
    uint64_t word = 0;
    for (int64_t c = 0; c < cols; ++c) {
      if (c % kMaskFeatures == 0)
        std::memcpy(&word, bits.row<uint8_t>(c / kMaskFeatures) + 8 * (rows.begin + n), sizeof(word));
      if (word >> mask_bit(c) & 1) f(n, c);
    }
  }
}

// x times adapter m's mask, in `memory`.
template <class T>
Tensor masked(std::vector<T>& memory, const Tensor& x, const Rows& rows, const MaskBits& masks, int m) {
  memory.assign(static_cast<size_t>(rows.count * x.cols), T(0));
  const Tensor in = rows.of(x);
  for_kept(rows, x.cols, masks, m,
           [&](int64_t n, int64_t c) { memory[static_cast<size_t>(n * x.cols + c)] = in.row<T>(n)[c]; });
  return make_view(memory.data(), x.dtype, rows.count, x.cols, "masked input");
}

// px[n] = P x[n], the mean of a slice for each of its outputs.
template <class T>
void pool(const Tensor& px, const Tensor& x, const int32_t* position, bool tile) {
  if (px.numel() == 0 || x.cols == 0) return;
  const IecMap map(x.cols, px.cols, tile);
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < x.rows; ++n)
    for (int t = 0; t < map.groups; ++t) {
      const T* slice = x.row<T>(n) + int64_t{t} * map.slice;
      T sum = 0;
      for (int i = 0; position[n] >= 0 && i < map.slice; ++i) sum += slice[i];
      for (int k = 0; k < map.repeat; ++k) px.row<T>(n)[map.member(t, k)] = sum / static_cast<T>(map.slice);
    }
}

}  // namespace

void CpuBackend::lora_dropout_fwd(Tensor u, Tensor px, Tensor x, Tensor a, AdapterScalars beta1, MaskBits masks,
                                  bool tile) {
  const double scale = dropout_rate(masks.p).scale;
  dispatch_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (px) pool<T>(px, x, masks.positions.as<int32_t>(), tile);
    std::vector<T> memory;
    for (int m = 0; m < masks.count; ++m) {
      const Tensor um = columns_of(u, masks, m), am = rows_of(a, masks, m);
      for_row_blocks(x.rows, [&](const Rows& rows) {
        matmul(rows.of(um), masked(memory, x, rows, masks, m), kPlain, am, kTransposed, scale, 0, {});
      });
      const Tensor& beta = beta1[static_cast<size_t>(m)];
      if (px && beta) axpby(um, px, static_cast<double>(*beta.as<T>()), 1);
    }
  });
}

void CpuBackend::lora_dropout_da(Tensor da, Tensor du, Tensor x, MaskBits masks, double beta) {
  const double scale = dropout_rate(masks.p).scale;
  dispatch_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    std::vector<T> memory;
    for (int m = 0; m < masks.count; ++m) {
      const Tensor dam = rows_of(da, masks, m), dum = columns_of(du, masks, m);
      if (x.rows == 0 && beta == 0) fill(dam, 0);
      if (x.rows == 0 && beta != 0) axpby(dam, dam, 0, beta);
      for_row_blocks(x.rows, [&](const Rows& rows) {
        matmul(dam, rows.of(dum), kTransposed, masked(memory, x, rows, masks, m), kPlain, scale,
               rows.begin == 0 ? beta : 1, dam);
      });
    }
  });
}

void CpuBackend::lora_dropout_dx(Tensor dx, Tensor du, Tensor a, MaskBits masks, double beta) {
  dispatch_float(dx.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T scale = static_cast<T>(dropout_rate(masks.p).scale);
    std::vector<T> sums, memory;
    for_row_blocks(dx.rows, [&](const Rows& rows) {
      const size_t count = static_cast<size_t>(rows.count * dx.cols);
      sums.assign(count, T(0)), memory.resize(count);
      for (int m = 0; m < masks.count; ++m) {
        matmul(make_view(memory.data(), dx.dtype, rows.count, dx.cols, "du A"), rows.of(columns_of(du, masks, m)),
               kPlain, rows_of(a, masks, m), kPlain, 1, 0, {});
        for_kept(rows, dx.cols, masks, m, [&](int64_t n, int64_t c) {
          const size_t i = static_cast<size_t>(n * dx.cols + c);
          sums[i] += memory[i];
        });
      }
#pragma omp parallel for schedule(static)
      for (int64_t n = 0; n < rows.count; ++n) {
        T* out = dx.row<T>(rows.begin + n);
        for (int64_t c = 0; c < dx.cols; ++c)
          out[c] =
              (beta == 0 ? T(0) : static_cast<T>(beta) * out[c]) + scale * sums[static_cast<size_t>(n * dx.cols + c)];
      }
    });
  });
}

void CpuBackend::lora_dropout_dbeta1(AdapterScalars dbeta1, Tensor du, Tensor px, int count, double beta) {
  dispatch_float(px.dtype, [&](auto zero) {
    using T = decltype(zero);
    for (int m = 0; m < count; ++m) {
      if (!dbeta1[static_cast<size_t>(m)]) continue;
      double sum = 0;
      for (int64_t n = 0; n < px.rows; ++n)
        for (int64_t j = 0; j < px.cols; ++j)
          sum += static_cast<double>(du.row<T>(n)[m * px.cols + j]) * static_cast<double>(px.row<T>(n)[j]);
      T& out = *dbeta1[static_cast<size_t>(m)].as<T>();
      out = static_cast<T>(beta == 0 ? sum : beta * static_cast<double>(out) + sum);
    }
  });
}

}  // namespace irq
