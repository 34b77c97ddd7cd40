// A base read in pieces, ahead and by several threads: the same bytes and the same errors as tensor by tensor, in bounded memory.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "tests/io_files.h"

namespace irq {
namespace {

// 41 MB: three chunks. One tensor spans a chunk's end, many share a chunk.
ModelConfig three_chunks() {
  ModelConfig c = small_config();
  c.dim = 512, c.heads = 8, c.head_dim = 64, c.kv_heads = 2, c.ffn = 1024, c.vocab = 15000;
  return c;
}

class TensorStreamTest : public ::testing::Test {
 protected:
  void SetUp() override { contents_ = write_base(path_, three_chunks(), DType::BF16); }

  // Reads everything and compares. `keep`: this many of the last pieces are still held, as a writer would.
  void expect_contents(TensorStream& stream, const Layout& layout, size_t keep) {
    std::vector<Piece> kept;
    for (const TensorSpec& t : layout.tensors()) {
      int64_t end = 0;
      stream.read(t, [&](const Piece& p) {
        EXPECT_EQ(p.offset, end) << t.name;
        EXPECT_EQ(p.dtype, t.dtype);
        EXPECT_EQ(reinterpret_cast<uintptr_t>(p.data.get()) % kTensorAlign, 0u) << t.name;
        EXPECT_EQ(std::memcmp(p.data.get(), contents_[t.name].data() + p.offset, static_cast<size_t>(p.bytes)), 0)
            << t.name << " from " << p.offset;
        end += p.bytes;
        kept.push_back(p);
        if (kept.size() > keep) kept.erase(kept.begin());
      });
      EXPECT_EQ(end, t.bytes()) << t.name;
    }
  }

  const ScratchDir dir_;
  const std::string path_ = dir_ / "m.bin";
  Contents contents_;
};

TEST_F(TensorStreamTest, EveryByteInOrder) {
  BaseReader base(path_);
  ASSERT_EQ(base.file().chunks(), 3);
  for (const int threads : {1, 3})
    for (const int64_t slots : {1, 2, 16}) {
      ChunkStream stream(base.file(), Device::CPU, threads, slots);
      expect_contents(stream, base.layout(), slots == 1 ? 0 : 1);
    }
  expect_contents(*base.stream(Device::CPU), base.layout(), 1);
}

TEST_F(TensorStreamTest, SourcesWithoutAFileGiveWholeTensors) {
  struct Source final : BaseSource {
    explicit Source(const std::string& path) : base(path) { config_ = base.config(), dtype_ = base.dtype(); }
    uint64_t hash() const override { return base.hash(); }
    const std::string& path() const override { return base.path(); }
    const Layout& layout() const override { return base.layout(); }
    Tensor tensor(const std::string& name) override { return ++out, base.tensor(name); }
    void dont_need(const std::string&) override { --out; }
    BaseReader base;
    int out = 0;
  } source(path_);
  expect_contents(*source.stream(Device::CPU), source.layout(), 1);
  EXPECT_EQ(source.out, 0) << "each tensor is let go once";
}

// Two slots, both held: the third chunk comes when one of them is let go, and not before.
TEST_F(TensorStreamTest, WhatIsHeldMakesTheReadersWait) {
  BaseReader base(path_);
  ChunkStream stream(base.file(), Device::CPU, 2, 2);
  std::vector<Piece> held;
  std::atomic<bool> let_go{false};
  std::thread other;
  for (const TensorSpec& t : base.layout().tensors())
    stream.read(t, [&](const Piece& p) {
      const int64_t chunk = (t.offset + p.offset) / kChunkBytes;
      EXPECT_TRUE(chunk < 2 || let_go) << t.name;
      if (chunk == 0) held.push_back(p);
      if (chunk == 1 && !other.joinable()) {
        held.push_back(p);
        other = std::thread([&held, &let_go] {
          std::this_thread::sleep_for(std::chrono::milliseconds(50));
          let_go = true;
          held.clear();
        });
      }
    });
  other.join();
}

TEST_F(TensorStreamTest, ADamagedByteGivesTheErrorOfTheTensor) {
  std::string bytes = read_bytes(path_);
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 4);
  write_bytes(path_, bytes);
  BaseReader base(path_);
  const auto first_error = [&](const std::function<void(const TensorSpec&)>& read) {
    return error_of([&] {
      for (const TensorSpec& t : base.layout().tensors()) read(t);
    });
  };
  const auto stream = base.stream(Device::CPU);
  const std::string by_piece = first_error([&](const TensorSpec& t) { stream->read(t, [](const Piece&) {}); });
  const std::string whole = first_error([&](const TensorSpec& t) { base.tensor(t.name); });
  EXPECT_NE(whole.find("the data is damaged"), std::string::npos) << whole;
  EXPECT_EQ(by_piece, whole);
}

TEST_F(TensorStreamTest, AFileCutWhileItIsRead) {
  BaseReader base(path_);
  ChunkStream stream(base.file(), Device::CPU, 1, 1);  // it cannot be ahead by more than a chunk
  const std::string text = error_of([&] {
    for (const TensorSpec& t : base.layout().tensors()) {
      stream.read(t, [](const Piece&) {});
      if (t.name == "embed") std::filesystem::resize_file(path_, 20 << 20);
    }
  });
  EXPECT_NE(text.find(path_ + ": cannot be read any further: it has become shorter\n"), std::string::npos) << text;
  EXPECT_NE(text.find(" bytes when it was opened, nothing to read at byte 20,971,520\n"), std::string::npos) << text;
}

// Whoever stops half-way, for an error of his own, waits for nobody.
TEST_F(TensorStreamTest, EndsBeforeTheEnd) {
  BaseReader base(path_);
  const auto stream = base.stream(Device::CPU);
  stream->read(base.layout().tensors()[0], [](const Piece&) {});
}

}  // namespace
}  // namespace irq
