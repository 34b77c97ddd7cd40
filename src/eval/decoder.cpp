#include "src/eval/decoder.h"

namespace irq {
namespace {

constexpr int64_t kNumbersPerRow = 4 + 6;  // token, position, cache row, label row, and a SeqRange

}  // namespace

Decoder::Decoder(Backend& backend, Arena& arena, Llama& model, KvCache cache, int64_t rows, bool recorded)
    : backend_(backend), arena_(arena), model_(model), cache_(std::move(cache)), recorded_(recorded) {
  IRQ_CHECK(rows > 0 && !cache_.keys.empty(), "decoding %ld sequences with %zu layers cached", rows,
            cache_.keys.size());
  numbers_ = arena.push("decoding step", DType::I32, 1, rows * kNumbersPerRow);
  logits_ = arena.push("logits", backend.precision().master, rows, model.config().vocab);
  choice_ = arena.push("likeliest tokens", DType::I32, 1, rows);
  const auto part = [&](int64_t which) { return numbers_.slice_cols(which * rows, rows); };
  batch_.tokens = part(0), batch_.positions = part(1), batch_.label_rows = part(3);
  batch_.samples = batch_.row_label = batch_.targets = batch_.tokens;                // nothing trains: never read
  batch_.label_positions = batch_.positions, batch_.label_samples = batch_.samples;  // every row is a label row
  batch_.seqs = numbers_.slice_cols(4 * rows, 6 * rows).reshape(rows, 6);
  batch_.rows = batch_.labels = rows;
  cache_.rows = part(2), cache_.writes.clear();
}

void Decoder::enqueue() {
  Tape tape(backend_, arena_, &model_.params(), false);
  model_.logits(tape, batch_, logits_, &cache_, choice_);
}

void Decoder::upload(const std::vector<DecodeRow>& next) {
  const size_t n = static_cast<size_t>(rows());
  IRQ_CHECK(next.size() == n, "%zu rows for %zu sequences", next.size(), n);
  std::vector<int32_t> numbers(n * kNumbersPerRow, 0);
  for (size_t i = 0; i < n; ++i) {
    const DecodeRow& r = next[i];
    const bool live = r.token >= 0;
    const int32_t row = static_cast<int32_t>(i), to = r.begin + r.position;
    IRQ_CHECK(
        !live || (r.position >= 0 && r.begin >= 0 && to < cache_.capacity && r.position < model_.plan().positions),
        "position %d behind row %d of a cache of %ld", r.position, r.begin, cache_.capacity);
    numbers[i] = live ? r.token : -1;
    numbers[n + i] = live ? r.position : -1;
    numbers[2 * n + i] = live ? to : -1;
    numbers[3 * n + i] = row;
    const SeqRange range = live ? SeqRange{row, row + 1, r.begin, to + 1, 0, 0} : SeqRange{row, row, 0, 0, 0, 0};
    std::copy_n(&range.q_begin, 6, &numbers[4 * n + 6 * i]);
  }
  backend_.upload(numbers_, numbers.data());
}

// The first step chooses algorithms and is not recorded; the second is.
void Decoder::repeat() {
  if (!recorded_ || steps_ == 0) enqueue();
  else {
    if (!recording_) recording_ = backend_.capture([this] { enqueue(); });
    recording_->launch();
  }
  ++steps_;
}

std::vector<int32_t> Decoder::choose(const std::vector<DecodeRow>& next) {
  upload(next);
  repeat();
  std::vector<int32_t> out(static_cast<size_t>(rows()));
  backend_.download(out.data(), choice_);
  return out;
}

std::vector<float> Decoder::step(const std::vector<DecodeRow>& next) {
  upload(next);
  repeat();
  std::vector<float> out(static_cast<size_t>(logits_.numel()));
  if (logits_.dtype == DType::F64) {
    std::vector<double> wide(out.size());
    backend_.download(wide.data(), logits_);
    out.assign(wide.begin(), wide.end());
  } else {
    backend_.download(out.data(), logits_);
  }
  return out;
}

}  // namespace irq
