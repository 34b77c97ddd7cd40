// Scale and zero point of every group of integer codes, with or without integer ICQ's search. CPU reference.
#include "kernels/common.h"
#include "kernels/int_group.h"
#include "kernels/nfk_block.h"

namespace irq {
namespace {

constexpr int64_t kChunk = 256;

struct Group {
  const float* w;
  int64_t n;
  float low, high;  // the smallest and the largest weight
};

template <bool kFloatZero>
int64_t code_sum(const Group& g, const IntParams& q, int bits, const int64_t* terms) {
  uint32_t counts[16] = {};
  uint8_t codes[kChunk];
  const float top = int_top(bits);
  for (int64_t begin = 0; begin < g.n; begin += kChunk) {
    const int64_t n = std::min(kChunk, g.n - begin);
    for (int64_t i = 0; i < n; ++i)
      codes[i] = static_cast<uint8_t>(static_cast<int>(int_code<kFloatZero>(g.w[begin + i], q.scale, q.zero, top)));
    for (int64_t i = 0; i < n; ++i) ++counts[codes[i]];
  }
  int64_t sum = 0;
  for (int c = 0; c < 1 << bits; ++c) sum += terms[counts[c]];
  return sum;
}

struct Choice {
  IntParams params;
  int64_t sum_plain = 0, sum = 0;  // only where an entropy is wanted or searched
};

template <bool kFloatZero>
Choice choose(const Group& g, const IntSpec& spec, const std::vector<float>& factors, const int64_t* terms,
              bool count) {
  const float lo = std::min(g.low, 0.0f), hi = std::max(g.high, 0.0f);
  Choice best;
  best.params = int_params_of(lo, hi, spec.bits, spec.symmetric);
  if (count || spec.search != IntSearch::none) best.sum_plain = code_sum<kFloatZero>(g, best.params, spec.bits, terms);
  best.sum = best.sum_plain;
  if (spec.search == IntSearch::none) return best;
  const bool shift = spec.search == IntSearch::zero_shift;
  float tau0 = 0, reach = 0;
  if (shift) {
    std::vector<float> sorted(g.w, g.w + g.n);
    std::nth_element(sorted.begin(), sorted.begin() + (g.n - 1) / 2, sorted.end());
    tau0 = sorted[static_cast<size_t>((g.n - 1) / 2)] + 0.0f;  // the lower median; + 0 makes one zero of the two
    reach = std::max(std::abs(g.low - tau0), std::abs(g.high - tau0));
  }
  for (size_t i = shift ? 0 : 1; i < factors.size(); ++i) {
    IntParams q;
    if (shift) {
      const float way = factors[i] * reach;
      q = shifted_int_params(g.low, g.high, way + tau0, spec.bits);
    } else {
      const float to = factors[i] * hi, from = factors[i] * lo;
      q = int_params_of(from, to, spec.bits, spec.symmetric);
    }
    const int64_t sum = code_sum<kFloatZero>(g, q, spec.bits, terms);
    if ((!shift || i > 0) && sum >= best.sum) continue;
    best.sum = sum, best.params = q;
  }
  return best;
}

// False if a weight is NaN or infinite.
bool measure(Group& g) {
  int32_t magnitude = 0;
  float low = INFINITY, high = -INFINITY;
  for (int64_t i = 0; i < g.n; ++i) {
    magnitude = std::max(magnitude, magnitude_bits(g.w[i]));
    low = std::min(low, g.w[i]), high = std::max(high, g.w[i]);
  }
  g.low = low, g.high = high;
  return magnitude < 0x7f800000;
}

}  // namespace

void CpuBackend::int_params(Tensor scales, Tensor zeros, Tensor entropy_plain, Tensor entropy, Tensor w, IntSpec spec) {
  const int64_t length = spec.group == kPerChannel ? w.cols : spec.group;
  const bool count = entropy_plain || entropy, float_zero = zeros.dtype == DType::F32;
  const std::vector<float> factors = int_factors(spec);
  const int64_t* terms = int_entropy_terms(std::min(length, w.cols));
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t row = 0; row < w.rows; ++row)
    for (int64_t k = 0; k < scales.cols; ++k) {
      Group g{w.row<float>(row) + k * length, std::min(length, w.cols - k * length), 0, 0};
      Choice c;
      const bool usable = measure(g);
      if (usable) c = (float_zero ? choose<true> : choose<false>)(g, spec, factors, terms, count);
      const bool good = usable && std::isfinite(c.params.scale);
      scales.row<float>(row)[k] = good ? c.params.scale : NAN;
      if (float_zero) zeros.row<float>(row)[k] = good ? c.params.zero : 0.0f;
      else zeros.row<uint8_t>(row)[k] = good ? static_cast<uint8_t>(static_cast<int>(c.params.zero)) : uint8_t{0};
      if (entropy_plain) entropy_plain.row<float>(row)[k] = good ? int_entropy_bits(c.sum_plain, g.n, terms[g.n]) : NAN;
      if (entropy) entropy.row<float>(row)[k] = good ? int_entropy_bits(c.sum, g.n, terms[g.n]) : NAN;
    }
}

}  // namespace irq
