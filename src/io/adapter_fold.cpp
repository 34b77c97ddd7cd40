#include "src/io/adapter_fold.h"

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

FoldedAdapter fold_adapter(AdapterReader& adapter, const std::string& linear, const LinearShape& shape) {
  FoldedAdapter f;
  f.rank = adapter.info().rank;
  const Tensor a = part(adapter, linear + ".A", f.rank, shape.in, false);
  const Tensor b = part(adapter, linear + ".B", shape.out, f.rank, false);
  const Tensor beta1 = part(adapter, linear + ".beta1", 1, 1, true);
  const Tensor beta2 = part(adapter, linear + ".beta2", 1, 1, true);
  if (beta1) f.beta1 = *beta1.row<float>(0);
  if (beta2) f.beta2 = *beta2.row<float>(0);
  f.a = folded(a, f.beta1, adapter.info().tile);
  f.b = folded(b, f.beta2, adapter.info().tile);
  return f;
}

}  // namespace irq
