// Information Elastic Connection (fidelity 4): parameter-free paths that average and repeat, folded into the adapter.
//   u = (A + beta1 P) x,  v = (B + beta2 E) u.   P and E are index maps (IecMap), never matrices.
#include "kernels/iec.h"

#include "kernels/common.h"

namespace irq {
namespace {

// folded = scale * (w + beta * map), w absent: 0
template <class T>
void fold(const IecEntry& e) {
  const IecMap& map = e.map;
  const int64_t rows = map.rows(), cols = map.cols();
  const T scale = static_cast<T>(e.scale);
  const T share =
      e.beta ? *static_cast<const T*>(e.beta) / static_cast<T>(map.slice) : T(0);  // groups / pooled = 1 / slice
#pragma omp parallel for schedule(static)
  for (int64_t j = 0; j < rows; ++j) {
    const T* in = e.w ? static_cast<const T*>(e.w) + j * cols : nullptr;
    T* out = static_cast<T*>(e.folded) + j * e.folded_stride;
    const int64_t begin = int64_t{map.group(static_cast<int>(j))} * map.slice, end = begin + map.slice;
    for (int64_t i = 0; i < cols; ++i) out[i] = scale * ((in ? in[i] : T(0)) + (i >= begin && i < end ? share : T(0)));
  }
}

// Of one adapter's A on a pooled input: c(g) w[j, g] in every column of group g.
template <class T>
void fold_pooled(const IecEntry& e) {
  const IecMap& map = e.map;
  const GroupPool& pool = e.pool;
  const int64_t groups = pool.groups();
  const T scale = static_cast<T>(e.scale);
  const T share = e.beta ? *static_cast<const T*>(e.beta) / static_cast<T>(map.slice) : T(0);
#pragma omp parallel for schedule(static)
  for (int64_t j = 0; j < map.rows(); ++j) {
    const T* in = e.w ? static_cast<const T*>(e.w) + j * groups : nullptr;
    T* out = static_cast<T*>(e.folded) + j * e.folded_stride;
    const int64_t begin = int64_t{map.group(static_cast<int>(j))} * map.slice, end = begin + map.slice;
    for (int64_t g = 0; g < groups; ++g) {
      const T value = in ? static_cast<T>(pool.coefficient(g)) * in[g] : T(0);
      const T mean = share / static_cast<T>(pool.length(g));
      for (int64_t i = pool.begin(g); i < pool.end(g); ++i) {
        const int64_t at = e.aligned ? g : i;
        const T pooled = at >= begin && at < end ? (e.aligned ? mean : share) : T(0);
        out[i] = scale * (value + pooled);
      }
    }
  }
}

// dbeta = <dw, map>; one thread, ascending rows and columns
template <class T>
void fold_bwd(const IecEntry& e) {
  const IecMap& map = e.map;
  double sum = 0;
  for (int64_t j = 0; j < map.rows(); ++j) {
    const T* slice = static_cast<const T*>(e.dw) + j * map.cols() + int64_t{map.group(static_cast<int>(j))} * map.slice;
    for (int64_t i = 0; i < map.slice; ++i) sum += static_cast<double>(slice[i]);
  }
  *static_cast<T*>(e.dbeta) = static_cast<T>(sum / map.slice);
}

}  // namespace

void IecTableBuilder::add(Tensor folded, Tensor w, Tensor beta, double scale, Tensor dw, Tensor dbeta, bool tile,
                          const IecPooling& pooling) {
  IRQ_CHECK(!folded == !(w || beta) && !dw == !dbeta && (folded || dw),
            "IEC entry of '%s' and '%s': half of it is missing", w.name, dw.name);
  const GroupPool& pool = pooling.pool;
  const bool pools = pool.cols > 0;
  IRQ_CHECK(!pools || (folded && !dw && folded.cols == pool.cols), "IEC entry: '%s' is not pooled from %ld columns",
            folded.name, pool.cols);
  const Tensor& shape = w && !pools ? w : folded ? folded : dw;
  const auto sized = [&](const Tensor& t, int64_t cols, DType type) {
    IRQ_CHECK(!t || (t.rows == shape.rows && t.cols == cols && t.dtype == type && t.device == shape.device),
              "IEC entry: '%s' is (%ld, %ld) %s, expected (%ld, %ld) %s", t.name, t.rows, t.cols, name_of(t.dtype),
              shape.rows, cols, name_of(type));
  };
  const auto matrix = [&](const Tensor& t, DType type, bool contiguous) {
    sized(t, pools && contiguous ? pool.groups() : shape.cols, type);
    IRQ_CHECK(!contiguous || t.contiguous(), "IEC entry: '%s' has gaps between its rows", t.name);
  };
  const auto scalar = [&](const Tensor& t) {
    IRQ_CHECK(!t || (t.numel() == 1 && t.dtype == table_.master && t.device == shape.device),
              "IEC entry: '%s' is (%ld, %ld) %s, expected (1, 1) %s", t.name, t.rows, t.cols, name_of(t.dtype),
              name_of(table_.master));
  };
  matrix(folded, table_.storage, false), matrix(w, table_.master, true), matrix(dw, table_.master, true);
  scalar(beta), scalar(dbeta);
  const IecMap map(pooling.aligned ? pool.groups() : shape.cols, shape.rows, tile);
  entries_.push_back({.folded = folded.data,
                      .w = w.data,
                      .beta = beta.data,
                      .dw = dw.data,
                      .dbeta = dbeta.data,
                      .folded_stride = folded.stride,
                      .fold_begin = table_.fold_chunks,
                      .dbeta_begin = table_.dbeta_chunks,
                      .scale = scale,
                      .map = map,
                      .pool = pool,
                      .aligned = pooling.aligned});
  if (folded) table_.fold_chunks += ceil_div(shape.numel(), IecTable::kFoldChunk);
  if (dbeta) table_.dbeta_chunks += ceil_div(map.terms(), IecTable::kDbetaChunk);
}

IecTable IecTableBuilder::in(Tensor memory) const {
  IRQ_CHECK(memory.dtype == DType::U8 && memory.contiguous() && memory.numel() == bytes(),
            "%ld bytes for an IEC table of %ld", memory.bytes(), bytes());
  IecTable table = table_;
  table.entries = memory;
  return table;
}

void CpuBackend::iec_fold_all(IecTable table) {
  const IecEntry* entries = reinterpret_cast<const IecEntry*>(table.entries.as<uint8_t>());
  dispatch_float(table.master, [&](auto zero) {
    for (int64_t i = 0; i < table.count(); ++i)
      if (entries[i].folded && entries[i].pool.cols > 0) fold_pooled<decltype(zero)>(entries[i]);
      else if (entries[i].folded) fold<decltype(zero)>(entries[i]);
  });
}

void CpuBackend::iec_dbeta_all(IecTable table) {
  const IecEntry* entries = reinterpret_cast<const IecEntry*>(table.entries.as<uint8_t>());
  dispatch_float(table.master, [&](auto zero) {
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < table.count(); ++i)
      if (entries[i].dbeta) fold_bwd<decltype(zero)>(entries[i]);
  });
}

}  // namespace irq
