// The candidates of integer ICQ and the exact entropy terms of groups of any length.
#include "kernels/int_group.h"

#include <map>
#include <mutex>

#include "kernels/nf_codebook.h"
#include "kernels/nfk_block.h"

namespace irq {
namespace {

using Wide = unsigned __int128;

// The upper 128 bits of the product of two 128-bit numbers.
Wide multiply_high(Wide a, Wide b) {
  const uint64_t a0 = static_cast<uint64_t>(a), a1 = static_cast<uint64_t>(a >> 64);
  const uint64_t b0 = static_cast<uint64_t>(b), b1 = static_cast<uint64_t>(b >> 64);
  const Wide low = Wide{a0} * b0, middle1 = Wide{a1} * b0, middle2 = Wide{a0} * b1;
  const Wide carry = (low >> 64) + static_cast<uint64_t>(middle1) + static_cast<uint64_t>(middle2);
  return Wide{a1} * b1 + (middle1 >> 64) + (middle2 >> 64) + (carry >> 64);
}

// log2(c) with 80 binary places: a number m in [1, 2) squared gives the next bit of its logarithm. With 127 places kept,
// each squaring's error is below 2^-126, and halves with every bit in the logarithm: below 2^-125 in all.
Wide log2_fixed(int64_t c) {
  constexpr int kPlaces = 80;
  int whole = 0;
  while (c >> (whole + 1)) ++whole;
  Wide m = Wide(c) << (127 - whole), log = static_cast<Wide>(whole);  // m: 1 bit before the point, 127 behind
  for (int i = 0; i < kPlaces; ++i) {
    m = multiply_high(m, m);  // 2 bits before the point, 126 behind
    const bool two = m >> 127;
    if (!two) m <<= 1;
    log = log << 1 | (two ? 1u : 0u);
  }
  return log;
}

int64_t entropy_term(int64_t c) {  // c <= 2^18, log2(c) < 2^5: the product has less than 103 bits
  if (c < 2) return 0;
  return static_cast<int64_t>((log2_fixed(c) * static_cast<Wide>(c) + (Wide{1} << 39)) >> 40);
}

}  // namespace

std::vector<float> int_factors(const IntSpec& spec) {
  if (spec.search == IntSearch::zero_shift) return icq_factors({spec.range, spec.n});
  std::vector<float> factors = {1.0f};
  if (spec.search == IntSearch::none || spec.n == 0) return factors;
  for (const double sign : {1.0, -1.0}) {
    // n + 1 numbers from 1 to the end, the second half counted back from it.
    const float end = static_cast<float>(1 + sign * spec.range), step = (end - 1.0f) / static_cast<float>(spec.n);
    for (int i = 1; i <= spec.n; ++i) {
      const bool first_half = i < (spec.n + 1) / 2;
      const float way = step * static_cast<float>(first_half ? i : spec.n - i);
      factors.push_back(first_half ? 1.0f + way : end - way);
    }
  }
  return factors;
}

const int64_t* int_entropy_terms(int64_t n) {
  IRQ_CHECK(n >= 0 && n <= kLongestGroup, "entropy of a group of %ld", n);
  if (n <= kBlock) return entropy_terms().data();
  static std::mutex mutex;
  static std::map<int64_t, std::vector<int64_t>> tables;  // by their last index
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = tables.lower_bound(n);
  if (found != tables.end()) return found->second.data();
  std::vector<int64_t> table(static_cast<size_t>(n) + 1);
#pragma omp parallel for schedule(dynamic, 64)
  for (int64_t c = 0; c <= n; ++c) table[static_cast<size_t>(c)] = entropy_term(c);
  return tables.emplace(n, std::move(table)).first->second.data();
}

}  // namespace irq
