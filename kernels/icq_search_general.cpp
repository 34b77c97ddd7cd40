// ICQ's search beyond the paper (IcqSpec: ties, search, width, even). CPU reference; the CUDA kernel gives the same bits.
//
// The grid: candidates tau_i = fl(fl(f_i * unit) + tau0), unit by IcqWidth. A block whose weights are all equal keeps tau0.
//
// `exact`: the highest entropy that any tau between the grid's two ends reaches, not only its 2n+1 points. With
// a(tau) = max(largest - tau, tau - smallest), weight w passes threshold t where w = P(tau) = tau + t a(tau). P is
// continuous and ascends (slopes 1 - t and 1 + t, |t| < 1), so there is one such tau, a breakpoint: the solution left of
// the kink at the middle of the block is (w - t largest) / (1 - t), right of it (w + t smallest) / (1 + t); as P is the
// larger of both lines for t > 0 and the smaller one else, the breakpoint is the smaller or the larger solution. Between
// neighbouring breakpoints, a piece, the codes are constant. At most 15 x 64 breakpoints, in fp64 (their error is below
// 1e-7 of an fp32 rounding of the block's largest weight); one candidate of each piece: its middle, rounded to fp32, as far
// from both breakpoints as can be. Its codes are counted by the fp32 arithmetic that quantizes.
// What rounding may do: within a few ulp of two breakpoints that nearly coincide, fp32 codes exist that no real tau has.
// Of these the middles see what they see (in 18,000 searches of blocks of six kinds no grid of 100,001 candidates found
// more). That the result is not below the spec's own grid is ensured by trying that too: it wins only where its entropy
// is strictly higher.
//
// Of candidates with equal entropy: the lowest tau (`first`); or the least squared error, then the lowest tau (`mse`).
#include <limits>

#include "kernels/common.h"
#include "kernels/icq_boundaries.h"
#include "kernels/icq_breakpoints.h"

namespace irq {

double icq_squared_error(const float* w, int n, const Codebook& book, float tau) {
  float u[kBlock];
  for (int i = 0; i < n; ++i) u[i] = w[i] - tau;
  const float a = block_absmax(u, n), rcp = 1.0f / a;
  double error = 0;
  for (int i = 0; i < n; ++i) {
    const float product = book.level[nfk_code(book, u[i], a, rcp)] * a;
    const double d = static_cast<double>(product + tau) - static_cast<double>(w[i]);
    error += d * d;
  }
  return error;
}

float icq_unit(IcqWidth width, const float* sorted, int n, float scale0) {
  if (width == IcqWidth::raw) return 1.0f;
  if (width != IcqWidth::block_std) return scale0;
  double sum = 0, squares = 0;
  for (int i = 0; i < n; ++i) sum += static_cast<double>(sorted[i]);
  const double mean = sum / n;
  for (int i = 0; i < n; ++i) {
    const double d = static_cast<double>(sorted[i]) - mean;
    squares += d * d;
  }
  return static_cast<float>(std::sqrt(squares / n));
}

namespace {

// The entropy terms of many candidates of one block.
template <int kBits>
class CandidateSums {
 public:
  CandidateSums(const float* sorted, int n, const Codebook& book, float reach)
      : sorted_(sorted),
        n_(n),
        book_(book),
        ordinary_(is_ordinary(sorted[0], sorted[n - 1], reach)),
        bounds_(book, sorted, n, reach * kMarginOfReach) {}

  int64_t operator()(float tau) {
    uint8_t counts[16] = {};
    if (!ordinary_) {
      count_codes(counts, sorted_, n_, tau, book_);
      return entropy_sum(counts, 1 << kBits);
    }
    const float a = shifted_absmax(sorted_[0], sorted_[n_ - 1], tau);
    if (!started_) bounds_.start(tau, 1.0f / a);
    else if (!bounds_.advance(tau, a)) return last_;
    started_ = true;
    bounds_.counts(counts);
    return last_ = entropy_sum(counts, 1 << kBits);
  }

 private:
  const float* sorted_;
  int n_;
  const Codebook& book_;
  bool ordinary_, started_ = false;
  Boundaries<kBits> bounds_;
  int64_t last_ = 0;
};

// The best of the candidates `taus`, ascending; none: sum at its maximum.
template <int kBits>
IcqChoice best_of(const std::vector<float>& taus, CandidateSums<kBits>& sums, const float* sorted, int n,
                  const Codebook& book, IcqTies ties) {
  IcqChoice best{0, 0, std::numeric_limits<int64_t>::max()};
  std::vector<size_t> tied;
  for (size_t i = 0; i < taus.size(); ++i) {
    const int64_t sum = sums(taus[i]);
    if (sum < best.sum) {
      best = {static_cast<int>(i), taus[i], sum};
      tied.clear();
    }
    if (sum == best.sum) tied.push_back(i);
  }
  if (ties == IcqTies::first || tied.size() < 2) return best;
  double least = std::numeric_limits<double>::infinity();
  for (const size_t i : tied) {
    const double error = icq_squared_error(sorted, n, book, taus[i]);
    if (error < least) least = error, best.index = static_cast<int>(i), best.tau = taus[i];
  }
  return best;
}

// The middles of the pieces between `first` and `last`.
std::vector<float> piece_middles(const float* sorted, int n, const Codebook& book, float first, float last) {
  const IcqBreakpoints solve(book);
  const double low = static_cast<double>(first), high = static_cast<double>(last);
  std::vector<double> ends{low, high};
  for (int j = 0; j < (1 << book.bits) - 1; ++j)
    for (int i = 0; i < n; ++i) {
      const double at = solve(j, sorted[i], sorted[0], sorted[n - 1]);
      if (at > low && at < high) ends.push_back(at);
    }
  std::sort(ends.begin(), ends.end());
  std::vector<float> middles;
  for (size_t k = 0; k + 1 < ends.size(); ++k)
    if (ends[k] < ends[k + 1]) middles.push_back(static_cast<float>(0.5 * (ends[k] + ends[k + 1])));
  return middles;
}

template <int kBits>
IcqChoice search_block(const float* sorted, int n, float tau0, float unit, float absmax, const Codebook& book,
                       const IcqSpec& spec, const std::vector<float>& factors) {
  std::vector<float> taus;
  for (const float f : factors) {
    const float shift = f * unit;
    taus.push_back(shift + tau0);
  }
  float reach = absmax;  // largest at one of the ends
  for (const float tau : {taus.front(), taus.back()})
    reach = std::max(reach, shifted_absmax(sorted[0], sorted[n - 1], tau) + std::abs(tau));
  CandidateSums<kBits> sums(sorted, n, book, reach);
  if (spec.search == IcqSearch::grid) return best_of(taus, sums, sorted, n, book, spec.ties);
  const std::vector<float> middles = piece_middles(sorted, n, book, taus.front(), taus.back());
  IcqChoice exact = best_of(middles, sums, sorted, n, book, spec.ties);
  exact.index = 0;
  if (best_of(taus, sums, sorted, n, book, IcqTies::first).sum >= exact.sum) return exact;
  return best_of(taus, sums, sorted, n, book, spec.ties);
}

}  // namespace

IcqChoice icq_search_block_general(const float* w, int n, const Codebook& book, const IcqSpec& spec,
                                   const std::vector<float>& factors, int64_t* sum_plain) {
  const float absmax = block_absmax(w, n);
  if (sum_plain) *sum_plain = 0;
  if (!std::isfinite(absmax)) return {-1, NAN, 0};
  if (sum_plain) {
    uint8_t counts[16] = {};
    count_codes(counts, w, n, 0.0f, book);
    *sum_plain = entropy_sum(counts, 1 << book.bits);
  }
  float sorted[kBlock];
  sort_block(sorted, w, n);
  const float tau0 = sorted[(n - 1) / 2] + 0.0f;
  const float scale0 = shifted_absmax(sorted[0], sorted[n - 1], tau0);
  if (scale0 == 0.0f) return {0, tau0, entropy_terms()[static_cast<size_t>(n)]};
  const float unit = icq_unit(spec.width, sorted, n, scale0);
  const auto search = book.bits == 4 ? search_block<4> : book.bits == 3 ? search_block<3> : search_block<2>;
  return search(sorted, n, tau0, unit, absmax, book, spec, factors);
}

}  // namespace irq
