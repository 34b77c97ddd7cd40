#include "src/ops/device_batch.h"

#include <algorithm>

namespace irq {
namespace {

// Several integer arrays in one piece of memory, so that one transfer moves them all.
class Parcel {
 public:
  Parcel(Arena& arena, int64_t ints) : memory_(arena.push("batch", DType::I32, 1, ints)) { host_.reserve(size(ints)); }
  static int64_t room(int64_t n) { return (n + kAlign - 1) / kAlign * kAlign; }

  Tensor add(const int32_t* values, int64_t n) {
    const auto begin = static_cast<int64_t>(host_.size());
    host_.insert(host_.end(), values, values + n);
    host_.resize(size(begin + room(n)), -1);
    return memory_.slice_cols(begin, n);
  }
  Tensor add(const std::vector<int32_t>& v) { return add(v.data(), static_cast<int64_t>(v.size())); }
  void send(Backend& backend) const {
    IRQ_CHECK(static_cast<int64_t>(host_.size()) == memory_.cols, "a batch of %zu numbers in the place of %ld",
              host_.size(), memory_.cols);
    backend.upload(memory_, host_.data());
  }

 private:
  static constexpr int64_t kAlign = Arena::kAlign / static_cast<int64_t>(sizeof(int32_t));
  static size_t size(int64_t n) { return static_cast<size_t>(n); }

  Tensor memory_;
  std::vector<int32_t> host_;
};

// values[rows[i]], -1 for a dead row.
std::vector<int32_t> pick(const std::vector<int32_t>& values, const std::vector<int32_t>& rows) {
  std::vector<int32_t> out;
  for (const int32_t row : rows) out.push_back(row < 0 ? -1 : values[static_cast<size_t>(row)]);
  return out;
}

}  // namespace

DeviceBatch upload_batch(Backend& backend, Arena& arena, const Batch& b, const Tensor& params) {
  static_assert(sizeof(SeqRange) == 6 * sizeof(int32_t));
  DeviceBatch d;
  d.rows = b.rows();
  d.labels = static_cast<int64_t>(b.label_rows.size());
  d.params = params;
  const auto seqs = static_cast<int64_t>(b.seqs.size());
  Parcel parcel(arena, 4 * Parcel::room(d.rows) + 4 * Parcel::room(d.labels) + Parcel::room(seqs * 6));
  d.tokens = parcel.add(b.tokens);
  d.positions = parcel.add(b.positions);
  d.samples = parcel.add(b.samples);
  d.row_label = parcel.add(b.row_label);
  d.label_rows = parcel.add(b.label_rows);
  d.targets = parcel.add(b.targets);
  d.label_positions = parcel.add(pick(b.positions, b.label_rows));
  d.label_samples = parcel.add(pick(b.samples, b.label_rows));
  d.seqs = parcel.add(reinterpret_cast<const int32_t*>(b.seqs.data()), seqs * 6).reshape(seqs, 6);
  parcel.send(backend);
  return d;
}

}  // namespace irq
