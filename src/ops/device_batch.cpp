#include "src/ops/device_batch.h"

#include <algorithm>

namespace irq {
namespace {

// Several integer arrays in one piece of memory, so that one transfer moves them all.
class Parcel {
 public:
  // dry: places are given, nothing is copied; the arrays may be empty.
  Parcel(Arena& arena, int64_t ints, bool dry) : memory_(arena.push("batch", DType::I32, 1, ints)), dry_(dry) {
    if (!dry) host_.reserve(size(ints));
  }
  static int64_t room(int64_t n) { return (n + kAlign - 1) / kAlign * kAlign; }

  // n values; `values` is read unless the run is dry.
  Tensor add(const int32_t* values, int64_t n) {
    const int64_t begin = used_;
    used_ += room(n);
    if (!dry_) {
      host_.insert(host_.end(), values, values + n);
      host_.resize(size(used_), -1);
    }
    return memory_.slice_cols(begin, n);
  }
  Tensor add(const std::vector<int32_t>& v, int64_t n) {
    IRQ_CHECK(dry_ || static_cast<int64_t>(v.size()) == n, "%zu numbers of a batch, %ld are due", v.size(), n);
    return add(v.data(), n);
  }
  void send(Backend& backend) const {
    if (dry_) return;
    IRQ_CHECK(static_cast<int64_t>(host_.size()) == memory_.cols, "a batch of %zu numbers in the place of %ld",
              host_.size(), memory_.cols);
    backend.upload(memory_, host_.data());
  }

 private:
  static constexpr int64_t kAlign = Arena::kAlign / static_cast<int64_t>(sizeof(int32_t));
  static size_t size(int64_t n) { return static_cast<size_t>(n); }

  Tensor memory_;
  bool dry_;
  int64_t used_ = 0;
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
  const bool dry = backend.dry();
  Parcel parcel(arena, 4 * Parcel::room(d.rows) + 4 * Parcel::room(d.labels) + Parcel::room(seqs * 6), dry);
  const auto of_labels = [&](const std::vector<int32_t>& v) {
    return dry ? std::vector<int32_t>() : pick(v, b.label_rows);
  };
  d.tokens = parcel.add(b.tokens, d.rows);
  d.positions = parcel.add(b.positions, d.rows);
  d.samples = parcel.add(b.samples, d.rows);
  d.row_label = parcel.add(b.row_label, d.rows);
  d.label_rows = parcel.add(b.label_rows, d.labels);
  d.targets = parcel.add(b.targets, d.labels);
  d.label_positions = parcel.add(of_labels(b.positions), d.labels);
  d.label_samples = parcel.add(of_labels(b.samples), d.labels);
  d.seqs = parcel.add(reinterpret_cast<const int32_t*>(b.seqs.data()), seqs * 6).reshape(seqs, 6);
  parcel.send(backend);
  return d;
}

}  // namespace irq
