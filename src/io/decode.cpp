// A quantized matrix decoded on the host, for showing it. The arithmetic is that of the dequantization op.
#include <algorithm>
#include <cmath>

#include "kernels/int_codes.h"
#include "kernels/nf_codebook.h"
#include "src/core/check.h"
#include "src/io/inspect.h"

namespace irq {
namespace {

// The first weight of block b in the flattened matrix, and how many it has.
std::pair<int64_t, int64_t> block_range(const QuantizedMatrix& q, int64_t b) {
  if (!q.is_integer()) {
    const int64_t begin = b * q.format.group;
    return {begin, std::min<int64_t>(q.format.group, q.numel() - begin)};
  }
  const int64_t row = b / q.groups_per_row(), col = b % q.groups_per_row() * q.group_size();
  return {row * q.cols + col, std::min(q.group_size(), q.cols - col)};
}

std::vector<float> dequantize_integers(const QuantizedMatrix& q, const std::vector<uint8_t>& codes) {
  std::vector<float> w(codes.size());
#pragma omp parallel for
  for (int64_t b = 0; b < q.blocks(); ++b) {
    const auto [begin, n] = block_range(q, b);
    const float scale = q.scales.as<float>()[b];
    const float zero =
        q.format.shift == ShiftKind::float_zero ? q.zeros.as<float>()[b] : static_cast<float>(q.zeros.as<uint8_t>()[b]);
    for (int64_t i = begin; i < begin + n; ++i)
      w[static_cast<size_t>(i)] = scale * (static_cast<float>(codes[static_cast<size_t>(i)]) - zero);
  }
  return w;
}

}  // namespace

std::vector<uint8_t> unpack_codes(const QuantizedMatrix& q) {
  const int bits = q.format.bits;
  const uint8_t* stream = q.codes.as<uint8_t>();
  std::vector<uint8_t> codes(static_cast<size_t>(q.numel()));
#pragma omp parallel for
  for (int64_t i = 0; i < q.numel(); ++i)
    codes[static_cast<size_t>(i)] = static_cast<uint8_t>(stream_code(stream, bits, i));
  return codes;
}

std::vector<float> block_scales(const QuantizedMatrix& q) {
  std::vector<float> s(static_cast<size_t>(q.blocks()));
  for (int64_t b = 0; b < q.blocks(); ++b) {
    if (q.format.scale == ScaleKind::f32) {
      s[static_cast<size_t>(b)] = q.scales.as<float>()[b];
      continue;
    }
    const float scaled =
        q.map.as<float>()[q.scale_codes.as<uint8_t>()[b]] * q.scale_groups.as<float>()[b / kScaleGroup];
    s[static_cast<size_t>(b)] = scaled + *q.scale_offset.as<float>();  // two roundings
  }
  return s;
}

std::vector<float> block_taus(const QuantizedMatrix& q) {
  std::vector<float> tau(static_cast<size_t>(q.blocks()));
  if (!q.has_tau()) return tau;
  for (int64_t b = 0; b < q.blocks(); ++b)
    tau[static_cast<size_t>(b)] =
        q.map.as<float>()[q.tau_codes.as<uint8_t>()[b]] * q.tau_groups.as<float>()[b / kScaleGroup];
  return tau;
}

// H = (T[n] - sum over codes of T[count]) / (n 2^40), exact integers up to the division (fidelity 3.6), for blocks of up
// to 64 weights; log2 n - sum(c log2 c) / n in double for longer ones.
std::vector<float> block_entropies(const QuantizedMatrix& q) {
  const std::vector<uint8_t> codes = unpack_codes(q);
  const auto& terms = entropy_terms();
  std::vector<float> entropy(static_cast<size_t>(q.blocks()));
#pragma omp parallel for
  for (int64_t b = 0; b < q.blocks(); ++b) {
    const auto [begin, n] = block_range(q, b);
    int64_t count[16] = {};
    for (int64_t i = begin; i < begin + n; ++i) ++count[codes[static_cast<size_t>(i)]];
    const double size = static_cast<double>(n);
    double h = 0;
    if (n <= 64) {
      int64_t sum = terms[static_cast<size_t>(n)];
      for (const int64_t c : count) sum -= terms[static_cast<size_t>(c)];
      h = static_cast<double>(sum) / (size * 0x1p40);
    } else {
      h = std::log2(size);
      for (const int64_t c : count)
        if (c > 0) h -= static_cast<double>(c) * std::log2(static_cast<double>(c)) / size;
    }
    entropy[static_cast<size_t>(b)] = static_cast<float>(h);
  }
  return entropy;
}

std::vector<float> dequantize_on_host(const QuantizedMatrix& q) {
  const std::vector<uint8_t> codes = unpack_codes(q);
  if (q.is_integer()) return dequantize_integers(q, codes);
  const std::vector<float> scale = block_scales(q), tau = block_taus(q);
  const Codebook& book = nf_codebook(q.format.bits);
  std::vector<float> w(codes.size());
#pragma omp parallel for
  for (int64_t i = 0; i < q.numel(); ++i) {
    const size_t at = static_cast<size_t>(i), block = static_cast<size_t>(i / q.format.group);
    const float product = book.level[codes[at]] * scale[block];
    w[at] = q.has_tau() ? product + tau[block] : product;
  }
  return w;
}

}  // namespace irq
