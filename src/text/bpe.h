// Byte pair encoding: neighbouring symbols are merged, the pair of the lowest rank first, until no pair has a rank.
#pragma once
#include <array>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace irq {

class Merges {
 public:
  struct Merge {
    int32_t left, right, result;  // token ids
  };
  Merges() = default;
  // In the order of their ranks. Of a pair that is listed twice the last rank counts.
  explicit Merges(const std::vector<Merge>& merges);
  // Merges `symbols` in place: n log n in their number. Ties are settled leftmost first.
  void apply(std::vector<int32_t>& symbols) const;

 private:
  struct Slot {
    uint64_t pair = ~uint64_t{0};  // left, right
    int32_t rank = -1, result = -1;
  };
  const Slot* find(int32_t left, int32_t right) const;
  std::vector<Slot> slots_;  // open addressing, a power of two of them, at most half full
};

// The ids of pieces that were seen lately. Thread-safe; its size is bounded.
class PieceCache {
 public:
  static constexpr size_t kLongestPiece = 64;
  bool find(std::string_view piece, std::vector<int32_t>& ids) const;  // appends to ids
  void insert(std::string_view piece, const int32_t* ids, size_t count) const;

 private:
  static constexpr size_t kShards = 16, kMostEntries = 8192;  // per shard: some 20 MB in all at the most
  struct Shard {
    std::mutex mutex;
    std::unordered_map<std::string, std::vector<int32_t>> entries;
  };
  Shard& shard_of(std::string_view piece) const { return shards_[std::hash<std::string_view>()(piece) / 64 % kShards]; }
  mutable std::array<Shard, kShards> shards_;
};

// Byte-level BPE spells every byte as one printable character: printable ones as themselves, the others as U+0100 and up.
std::string byte_level_char(uint8_t byte);  // in UTF-8
// The bytes that a token spells; a token with a character that stands for no byte (an added one) is its own text.
std::string byte_level_decode(std::string_view token);
std::string byte_level_encode(std::string_view bytes);

}  // namespace irq
