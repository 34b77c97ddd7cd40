#include "src/io/adapter_fold.h"

#include <algorithm>

#include "kernels/iec.h"

namespace irq {
namespace {

// The adapter's tensor, or an empty one where `optional` and it has none.
Tensor part(AdapterReader& adapter, const std::string& name, int64_t rows, int64_t cols, bool optional) {
  const TensorSpec* spec = adapter.layout().find(name);
  if (spec == nullptr && optional) return {};
  if (spec == nullptr || spec->rows != rows || spec->cols != cols)
    throw Error(adapter.file().path() + ": this adapter does not fit the model")
        .line("expected", strf("%s (%ld, %ld)", name.c_str(), rows, cols))
        .line("found", spec ? strf("(%ld, %ld)", spec->rows, spec->cols) : "no tensor of that name")
        .line("try", "./irq_inspect " + adapter.file().path() + " --tensors");
  return adapter.tensor(name);
}

// The parts of one linear's adapter.
struct Parts {
  int64_t rank = 0;
  GroupPool pool;
  Tensor a, b;
  float beta1 = 0, beta2 = 0;
};
Parts parts_of(AdapterReader& adapter, const std::string& linear, const LinearShape& shape) {
  const AdapterFile& info = adapter.info();
  if (info.trains_scales()) throw Error(adapter.file().path() + ": holds scales, and no A and B that could be folded");
  Parts p;
  p.rank = info.rank, p.pool = group_pool_of(info.pool, shape.in);
  p.a = part(adapter, linear + ".A", p.rank, info.pool.on() ? p.pool.groups() : shape.in, false);
  p.b = part(adapter, linear + ".B", shape.out, p.rank, false);
  const Tensor beta1 = part(adapter, linear + ".beta1", 1, 1, true);
  const Tensor beta2 = part(adapter, linear + ".beta2", 1, 1, true);
  if (beta1) p.beta1 = *beta1.row<float>(0);
  if (beta2) p.beta2 = *beta2.row<float>(0);
  return p;
}

// Calls f(column, value) for row j of A~ on a pooled input, in F64.
template <class F>
void pooled_row(const Parts& p, const InputPool& pool, bool tile, int64_t j, F&& f) {
  const int64_t groups = p.pool.groups();
  const IecMap map(pool.aligned ? groups : p.pool.cols, p.rank, tile);
  const double share = static_cast<double>(p.beta1) / map.slice;
  const int64_t begin = int64_t{map.group(static_cast<int>(j))} * map.slice, end = begin + map.slice;
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t i = p.pool.begin(g); i < p.pool.end(g); ++i) {
      const int64_t at = pool.aligned ? g : i;
      const double mean = pool.aligned ? share / static_cast<double>(p.pool.length(g)) : share;
      f(i, p.pool.coefficient(g) * static_cast<double>(p.a.row<float>(j)[g]) + (at >= begin && at < end ? mean : 0.0));
    }
}

// w + beta * map as a matrix (rows, cols): map averages `cols` inputs and expands the means to `rows` (IecMap).
std::vector<float> folded(const Tensor& w, float beta, bool tile) {
  const IecMap map(w.cols, w.rows, tile);
  const double share = static_cast<double>(beta) / map.slice;
  std::vector<float> out(static_cast<size_t>(w.numel()));
#pragma omp parallel for schedule(static)
  for (int64_t j = 0; j < w.rows; ++j) {
    const float* in = w.row<float>(j);
    float* to = out.data() + j * w.cols;
    const int64_t begin = int64_t{map.group(static_cast<int>(j))} * map.slice, end = begin + map.slice;
    for (int64_t i = 0; i < w.cols; ++i)
      to[i] = i >= begin && i < end ? static_cast<float>(static_cast<double>(in[i]) + share) : in[i];
  }
  return out;
}

}  // namespace

void product_row(const FoldedAdapter& f, int64_t row, int64_t in, float scale, float* out) {
  constexpr int64_t kTile = 256;  // columns of A~ that stay in the cache while all rows of B~ pass
  const float* b = f.b.data() + row * f.rank;
  for (int64_t begin = 0; begin < in; begin += kTile) {
    const int64_t count = std::min(kTile, in - begin);
    float* to = out + begin;
    std::fill(to, to + count, 0.0f);
    for (int64_t k = 0; k < f.rank; ++k) {
      const float w = b[k];
      const float* a = f.a.data() + k * in + begin;
      for (int64_t i = 0; i < count; ++i) to[i] += w * a[i];
    }
    for (int64_t i = 0; i < count; ++i) to[i] *= scale;
  }
}

FoldedAdapter fold_adapter(AdapterReader& adapter, const std::string& linear, const LinearShape& shape) {
  const AdapterFile& info = adapter.info();
  const Parts p = parts_of(adapter, linear, shape);
  FoldedAdapter f;
  f.rank = p.rank, f.beta1 = p.beta1, f.beta2 = p.beta2;
  f.b = folded(p.b, f.beta2, info.tile);
  if (!info.pool.on()) {
    f.a = folded(p.a, f.beta1, info.tile);
    return f;
  }
  f.a.resize(static_cast<size_t>(p.rank * shape.in));
  for (int64_t j = 0; j < p.rank; ++j)
    pooled_row(p, info.pool, info.tile, j,
               [&](int64_t i, double x) { f.a[static_cast<size_t>(j * shape.in + i)] = static_cast<float>(x); });
  return f;
}

GroupedAdapter fold_into_groups(AdapterReader& adapter, const std::string& linear, const LinearShape& shape,
                                bool nearest) {
  const AdapterFile& info = adapter.info();
  IRQ_CHECK(info.pool.on(), "%s is no adapter on a pooled input", adapter.file().path().c_str());
  const Parts p = parts_of(adapter, linear, shape);
  GroupedAdapter f;
  f.rank = p.rank, f.groups = p.pool.groups();
  f.a.assign(static_cast<size_t>(f.rank * f.groups), 0);
  const IecMap slices(shape.in, p.rank, info.tile);
  f.exact = info.pool.aligned || p.beta1 == 0 || slices.groups == 1 || slices.slice % p.pool.group == 0;
  if (!f.exact && !nearest)
    throw Error(adapter.file().path() + ": cannot be merged exactly into zero points")
        .line("found", strf("%s: beta1 averages slices of %d features, which cut the base's groups of %ld",
                            linear.c_str(), slices.slice, p.pool.group))
        .line("why", "a group has one zero point, so all of its features must be multiplied by the same number")
        .line("try", "train with --iec-align group, whose merge is exact for every model")
        .line("or", "--nearest: the nearest zero points, with the error reported");
  for (int64_t j = 0; j < f.rank; ++j)
    pooled_row(p, info.pool, info.tile, j, [&](int64_t i, double x) {
      const int64_t g = i / p.pool.group;
      f.a[static_cast<size_t>(j * f.groups + g)] += x / static_cast<double>(p.pool.length(g));
    });
  const IecMap expand(p.rank, shape.out, info.tile);
  f.b.resize(static_cast<size_t>(shape.out * f.rank));
  for (int64_t o = 0; o < shape.out; ++o)
    for (int64_t k = 0; k < f.rank; ++k) {
      const bool inside = k / expand.slice == expand.group(static_cast<int>(o));
      f.b[static_cast<size_t>(o * f.rank + k)] =
          static_cast<double>(p.b.row<float>(o)[k]) + (inside ? static_cast<double>(p.beta2) / expand.slice : 0.0);
    }
  return f;
}

Tensor trained_scales(AdapterReader& adapter, const std::string& linear, const QuantizedMatrix& q) {
  return part(adapter, linear + ".scales", q.rows, q.groups_per_row(), false);
}

}  // namespace irq
