#include "src/io/tensor_stream.h"

#include <omp.h>

#include <algorithm>

#include "src/core/check.h"

namespace irq {

// Half of the threads that the work may use: reading and verifying run beside it.
int ChunkStream::default_threads() { return std::clamp(omp_get_max_threads() / 2, 1, kMostThreads); }

ChunkStream::ChunkStream(FlatReader& file, Device device, int threads, int64_t slots)
    : file_(file),
      device_(device),
      slots_(static_cast<size_t>(std::clamp<int64_t>(slots, 1, std::max<int64_t>(file.chunks(), 1)))),
      arrivals_(static_cast<size_t>(file.chunks())) {
  for (Slot& slot : slots_) free_.push_back(&slot);
  const auto count = std::min(static_cast<size_t>(threads), slots_.size());
  try {
    while (threads_.size() < count) threads_.emplace_back([this] { work(); });
  } catch (const std::system_error&) {  // no more threads to be had: one does
    if (threads_.empty()) throw;
  }
}

ChunkStream::~ChunkStream() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  freed_.notify_all();
  for (std::thread& t : threads_) t.join();
  current_memory_.reset();
}

void ChunkStream::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    freed_.wait(lock, [this] { return ending_ || next_ == file_.chunks() || !free_.empty(); });
    if (ending_ || next_ == file_.chunks()) return;
    // Slot and number in one step: whatever chunk the caller waits for, each earlier one has or had its slot.
    const int64_t chunk = next_++;
    Arrival arrival{free_.back(), false, nullptr};
    free_.pop_back();
    lock.unlock();
    fill(chunk, arrival);
    lock.lock();
    arrivals_[static_cast<size_t>(chunk)] = arrival;
    arrived_.notify_one();  // there is one caller
  }
}

void ChunkStream::fill(int64_t chunk, Arrival& arrival) {
  try {
    if (!*arrival.slot) arrival.slot->emplace(device_, std::min(kChunkBytes, file_.payload_bytes()));
    arrival.good = file_.read_chunk(chunk, (*arrival.slot)->data());
  } catch (...) {
    arrival.problem = std::current_exception();  // the caller's, when it comes to this chunk
  }
}

void ChunkStream::let_go(Slot* slot) {
  const std::lock_guard lock(mutex_);
  free_.push_back(slot);
  freed_.notify_one();
}

const std::shared_ptr<const unsigned char>& ChunkStream::chunk(int64_t chunk, const std::string& tensor_name) {
  if (chunk == current_) return current_memory_;
  IRQ_CHECK(chunk == current_ + 1, "%s read out of its turn", tensor_name.c_str());
  current_memory_.reset();
  Arrival arrival;
  {
    std::unique_lock lock(mutex_);
    arrived_.wait(lock, [&] { return arrivals_[static_cast<size_t>(chunk)].slot != nullptr; });
    arrival = arrivals_[static_cast<size_t>(chunk)];
  }
  if (arrival.problem) std::rethrow_exception(arrival.problem);
  if (!arrival.good) file_.reject_chunk(chunk, tensor_name);
  current_ = chunk;
  current_memory_ = std::shared_ptr<const unsigned char>(
      (*arrival.slot)->data(), [this, arrival](const unsigned char*) { let_go(arrival.slot); });
  return current_memory_;
}

void ChunkStream::read(const TensorSpec& tensor, const TakePiece& take) {
  for (int64_t at = 0; at < tensor.bytes();) {
    const int64_t from = tensor.offset + at, end = (from / kChunkBytes + 1) * kChunkBytes;
    const int64_t bytes = std::min(tensor.bytes() - at, end - from);
    const auto& memory = chunk(from / kChunkBytes, tensor.name);
    take({std::shared_ptr<const void>(memory, memory.get() + from % kChunkBytes), at, bytes, tensor.dtype});
    at += bytes;
  }
}

}  // namespace irq
