#include "src/ops/device_batch.h"

namespace irq {
namespace {

Tensor put(Backend& backend, Arena& arena, const char* name, const std::vector<int32_t>& values) {
  const Tensor t = arena.push(name, DType::I32, 1, static_cast<int64_t>(values.size()));
  backend.upload(t, values.data());
  return t;
}

}  // namespace

DeviceBatch upload_batch(Backend& backend, Arena& arena, const Batch& b, const Tensor& params) {
  DeviceBatch d;
  const char* name = "batch";
  d.tokens = put(backend, arena, name, b.tokens);
  d.positions = put(backend, arena, name, b.positions);
  d.samples = put(backend, arena, name, b.samples);
  d.row_label = put(backend, arena, name, b.row_label);
  d.label_rows = put(backend, arena, name, b.label_rows);
  d.targets = put(backend, arena, name, b.targets);
  d.seqs = arena.push(name, DType::I32, static_cast<int64_t>(b.seqs.size()), 6);
  backend.upload(d.seqs, b.seqs.data());
  d.rows = b.rows();
  d.labels = static_cast<int64_t>(b.label_rows.size());
  d.params = params;
  return d;
}

}  // namespace irq
