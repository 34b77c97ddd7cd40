// A base's tensors from front to back, each in pieces, read ahead of the work that takes them.
//
// Of a file: several threads read its chunks (flat_file.h) into a ring of host memory that the device copies from at full
// speed, and verify each while it is in the core's cache. The pieces of a tensor are its parts of these chunks: nothing is
// copied again on the host, and no page of the file is mapped.
//
//   threads          read chunk 5   read chunk 6   read chunk 7          (whichever slot is free)
//   ring             | 3 | 4 |      verified, waiting for their turn
//   the caller       read(wq): takes its parts of 2 and 3, in order
//
// A slot is free again when the last holder of one of its pieces lets go; so a piece may be kept until it is written, and a
// caller that keeps too many makes the threads wait, not the memory grow.
#pragma once
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "kernels/host_memory.h"
#include "src/io/flat_file.h"

namespace irq {

// Part of a tensor, in host memory for as long as `data` or a copy of it lives; at most until the stream's end.
struct Piece {
  std::shared_ptr<const void> data;
  int64_t offset = 0, bytes = 0;  // within the tensor; multiples of 256 but for its end
  DType dtype = DType::F32;       // as BaseSource::tensor() has it, which may be wider than the layout says
};
using TakePiece = std::function<void(const Piece&)>;

class TensorStream {
 public:
  virtual ~TensorStream() = default;
  // Calls take() for every piece of the tensor in order. To be called for every tensor of the layout, in its order. Throws what
  // BaseSource::tensor() would.
  virtual void read(const TensorSpec& tensor, const TakePiece& take) = 0;
};

// 16 chunks of 16 MiB: 268 MB of host memory, whatever the size of the file.
class ChunkStream final : public TensorStream {
 public:
  static constexpr int64_t kSlots = 16;
  static constexpr int kMostThreads = 8;
  ChunkStream(FlatReader& file, Device device, int threads = default_threads(), int64_t slots = kSlots);
  ~ChunkStream() override;
  void read(const TensorSpec& tensor, const TakePiece& take) override;

 private:
  using Slot = std::optional<HostMemory>;  // its memory comes with its first chunk: pinning runs beside reading
  struct Arrival {
    Slot* slot = nullptr;  // null: not there yet
    bool good = false;
    std::exception_ptr problem;
  };
  static int default_threads();
  void work();  // of one reading thread
  void fill(int64_t chunk, Arrival& arrival);
  void let_go(Slot* slot);
  const std::shared_ptr<const unsigned char>& chunk(int64_t chunk, const std::string& tensor_name);

  FlatReader& file_;
  Device device_;
  std::vector<Slot> slots_;
  int64_t current_ = -1;  // the chunk that the caller is at
  std::shared_ptr<const unsigned char> current_memory_;

  std::mutex mutex_;  // guards what follows
  std::condition_variable arrived_, freed_;
  std::vector<Slot*> free_;
  std::vector<Arrival> arrivals_;  // by chunk
  int64_t next_ = 0;               // the chunk that is read next
  bool ending_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace irq
