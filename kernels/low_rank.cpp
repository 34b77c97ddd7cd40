// left right = the nearest matrix of rank r, by a one-sided Jacobi singular value decomposition in F64. CPU reference.
//
// The short side's vectors (the rows of w if o <= h, else its columns) are turned in pairs until all are orthogonal
// (Hestenes, 1958): their lengths are then the singular values, and the vectors over their lengths the singular vectors of
// the long side. Those of the short side follow by one product with w, so that no rotations are accumulated and
// left right is w projected onto the kept vectors.
//
// A sweep meets every pair once in n - 1 rounds of n / 2 pairs without a common vector (the schedule of a tournament): the
// pairs of a round are independent, so threads share them and the bits do not depend on their number.
#include "kernels/low_rank.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/common.h"

namespace irq {
namespace {

constexpr int kMaxSweeps = 60;      // convergence is quadratic: random matrices of a thousand rows take about ten
constexpr double kNoise = 0x1p-44;  // times the longest vector: what dependent vectors leave of each other by rounding
constexpr int64_t kWorthThreads = 128 * 1024;  // elements of a round's pairs; below, waiting for threads costs more
constexpr int kLanes = 8;                      // partial sums of a dot product, in a fixed order that vectorizes

double dot(const double* x, const double* y, int64_t n) {
  double sum[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) sum[lane] += x[i + lane] * y[i + lane];
  for (int lane = 0; i < n; ++i, ++lane) sum[lane] += x[i] * y[i];
  return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
}

// The vectors of one side of a matrix, one after the other.
struct Vectors {
  int64_t count = 0, length = 0;
  std::vector<double> data;
  double* at(int64_t i) { return &data[static_cast<size_t>(i * length)]; }
  const double* at(int64_t i) const { return &data[static_cast<size_t>(i * length)]; }
};

Vectors short_side(Tensor w) {
  const bool rows = w.rows <= w.cols;
  Vectors v{rows ? w.rows : w.cols, rows ? w.cols : w.rows, {}};
  v.data.resize(static_cast<size_t>(w.numel()));
  for (int64_t r = 0; r < w.rows; ++r)
    for (int64_t c = 0; c < w.cols; ++c) (rows ? v.at(r)[c] : v.at(c)[r]) = static_cast<double>(w.row<float>(r)[c]);
  return v;
}

// Turns x and y so that they become orthogonal; false if they are, up to the rounding of their dot product, or if one is
// nothing but rounding (a square of at most `noise`): it has no direction, so it would be turned for ever.
bool make_orthogonal(double* x, double* y, double& xx, double& yy, int64_t n, double tolerance, double noise) {
  if (std::min(xx, yy) <= noise) return false;
  const double xy = dot(x, y, n);
  if (xy == 0 || std::abs(xy) <= tolerance * std::sqrt(xx) * std::sqrt(yy)) return false;
  const double zeta = (yy - xx) / (2 * xy);
  const double t = (zeta < 0 ? -1 : 1) / (std::abs(zeta) + std::sqrt(1 + zeta * zeta));
  const double c = 1 / std::sqrt(1 + t * t), s = c * t;
  for (int64_t i = 0; i < n; ++i) {
    const double a = x[i], b = y[i];
    x[i] = c * a - s * b;
    y[i] = s * a + c * b;
  }
  xx = std::max(0.0, xx - t * xy);
  yy += t * xy;
  return true;
}

// Until a whole sweep finds every pair orthogonal. Player 0 stays, the others move on by one place each round; an odd
// number of vectors gets a bye.
void orthogonalize(Vectors& v, const char* name) {
  const int64_t n = v.count, even = n + n % 2;
  if (n == 0) return;
  // Two unit vectors' computed dot product is wrong by about sqrt(length) roundings.
  const double tolerance = 0x1p-52 * std::sqrt(static_cast<double>(std::max<int64_t>(v.length, 16)));
  std::vector<double> squares(static_cast<size_t>(n));
  for (int sweep = 0; sweep < kMaxSweeps; ++sweep) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; ++i) squares[static_cast<size_t>(i)] = dot(v.at(i), v.at(i), v.length);
    const double noise = kNoise * kNoise * *std::max_element(squares.begin(), squares.end());
    int64_t turned = 0;
    for (int64_t round = 0; round + 1 < even; ++round) {
#pragma omp parallel for schedule(static) reduction(+ : turned) if (even / 2 * v.length > kWorthThreads)
      for (int64_t pair = 0; pair < even / 2; ++pair) {
        const auto player = [&](int64_t place) { return place == 0 ? 0 : 1 + (place - 1 + round) % (even - 1); };
        const int64_t i = std::min(player(pair), player(even - 1 - pair));
        const int64_t j = std::max(player(pair), player(even - 1 - pair));
        if (j >= n) continue;
        turned += make_orthogonal(v.at(i), v.at(j), squares[static_cast<size_t>(i)], squares[static_cast<size_t>(j)],
                                  v.length, tolerance, noise);
      }
    }
    if (turned == 0) return;
  }
  throw Error(strf("%s: its singular value decomposition did not converge in %d sweeps", name, kMaxSweeps));
}

// Of x's first element of largest magnitude.
double sign_of_largest(const std::vector<double>& x) {
  double best = 0;
  for (const double a : x)
    if (std::abs(a) > std::abs(best)) best = a;
  return best < 0 ? -1 : 1;
}

}  // namespace

void CpuBackend::low_rank(Tensor left, Tensor right, Tensor w) {
  for (int64_t r = 0; r < w.rows; ++r)
    if (!std::all_of(w.row<float>(r), w.row<float>(r) + w.cols, [](float x) { return std::isfinite(x); }))
      throw_not_finite(w.name);
  const Vectors original = short_side(w);
  Vectors v = original;
  orthogonalize(v, w.name);
  std::vector<double> length(static_cast<size_t>(v.count));
  for (int64_t i = 0; i < v.count; ++i) length[static_cast<size_t>(i)] = std::sqrt(dot(v.at(i), v.at(i), v.length));
  std::vector<int64_t> order(length.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t i, int64_t j) {
    return length[static_cast<size_t>(i)] > length[static_cast<size_t>(j)];
  });
  const bool rows = w.rows <= w.cols;
#pragma omp parallel for schedule(static)
  for (int64_t k = 0; k < left.cols; ++k) {
    std::vector<double> of_long(static_cast<size_t>(original.length)), of_short(static_cast<size_t>(original.count));
    const double s = k < v.count ? length[static_cast<size_t>(order[static_cast<size_t>(k)])] : 0;
    if (s > 0 && s > kLowRankFloor * length[static_cast<size_t>(order[0])]) {
      const double* found = v.at(order[static_cast<size_t>(k)]);
      for (int64_t i = 0; i < v.length; ++i) of_long[static_cast<size_t>(i)] = found[i] / std::sqrt(s);
      for (int64_t i = 0; i < v.count; ++i)
        of_short[static_cast<size_t>(i)] = dot(original.at(i), of_long.data(), v.length) / s;
    }
    const double sign = sign_of_largest(rows ? of_short : of_long);
    const std::vector<double>&l = rows ? of_short : of_long, &r = rows ? of_long : of_short;
    for (int64_t i = 0; i < w.rows; ++i) left.row<float>(i)[k] = static_cast<float>(sign * l[static_cast<size_t>(i)]);
    for (int64_t i = 0; i < w.cols; ++i) right.row<float>(k)[i] = static_cast<float>(sign * r[static_cast<size_t>(i)]);
  }
}

}  // namespace irq
