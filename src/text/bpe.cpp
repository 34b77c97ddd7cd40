#include "src/text/bpe.h"

#include <algorithm>
#include <queue>

#include "src/text/tokenizer.h"

namespace irq {
namespace {

uint64_t key_of(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}
size_t hash_of_key(uint64_t key) {
  key *= 0x9E3779B97F4A7C15ull;
  return static_cast<size_t>(key ^ (key >> 29));
}

struct Candidate {
  int32_t rank, left, result;                     // left: the place of the pair's first symbol
  bool operator<(const Candidate& other) const {  // std::priority_queue puts the greatest on top: the lowest rank
    return rank != other.rank ? rank > other.rank : left > other.left;
  }
};

// The code point of each byte: 33..126, 161..172 and 174..255 are themselves.
const std::array<uint16_t, 256>& byte_points() {
  static const std::array<uint16_t, 256> points = [] {
    std::array<uint16_t, 256> p{};
    uint16_t next = 256;
    for (uint16_t b = 0; b < 256; ++b) {
      const bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
      p[b] = printable ? b : next++;
    }
    return p;
  }();
  return points;
}

}  // namespace

Merges::Merges(const std::vector<Merge>& merges) {
  size_t size = 16;
  while (size < 2 * merges.size()) size *= 2;
  slots_.resize(size);
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const Merge& m = merges[rank];
    const uint64_t key = key_of(m.left, m.right);
    size_t at = hash_of_key(key) & (size - 1);
    while (slots_[at].rank >= 0 && slots_[at].pair != key) at = (at + 1) & (size - 1);
    slots_[at] = {key, static_cast<int32_t>(rank), m.result};
  }
}

const Merges::Slot* Merges::find(int32_t left, int32_t right) const {
  if (slots_.empty()) return nullptr;
  const uint64_t key = key_of(left, right);
  const size_t mask = slots_.size() - 1;
  for (size_t at = hash_of_key(key) & mask; slots_[at].rank >= 0; at = (at + 1) & mask)
    if (slots_[at].pair == key) return &slots_[at];
  return nullptr;
}

void Merges::apply(std::vector<int32_t>& symbols) const {
  const auto count = static_cast<int32_t>(symbols.size());
  if (count < 2) return;
  // A list over the places 0..count-1: where the symbol before and behind stands; a merged symbol's place is -1 in `symbols`.
  std::vector<int32_t> before(symbols.size()), behind(symbols.size());
  for (int32_t i = 0; i < count; ++i) before[i] = i - 1, behind[i] = i + 1 < count ? i + 1 : -1;
  std::vector<Candidate> found;
  for (int32_t i = 0; i + 1 < count; ++i)
    if (const Slot* s = find(symbols[i], symbols[i + 1])) found.push_back({s->rank, i, s->result});
  std::priority_queue<Candidate> queue(std::less<Candidate>(), std::move(found));
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    const int32_t left = top.left, right = symbols[left] < 0 ? -1 : behind[left];
    if (right < 0) continue;
    // The pair has changed since it was found, unless it still gives the same token.
    const Slot* now = find(symbols[left], symbols[right]);
    if (now == nullptr || now->result != top.result) continue;
    symbols[left] = top.result;
    symbols[right] = -1;
    behind[left] = behind[right];
    if (behind[left] >= 0) before[behind[left]] = left;
    const auto offer = [&](int32_t a, int32_t b) {
      if (a < 0 || b < 0) return;
      if (const Slot* s = find(symbols[a], symbols[b])) queue.push({s->rank, a, s->result});
    };
    offer(before[left], left);
    offer(left, behind[left]);
  }
  std::erase(symbols, -1);
}

bool PieceCache::find(std::string_view piece, std::vector<int32_t>& ids) const {
  if (piece.size() > kLongestPiece) return false;
  Shard& shard = shard_of(piece);
  const std::lock_guard lock(shard.mutex);
  const auto it = shard.entries.find(std::string(piece));
  if (it == shard.entries.end()) return false;
  ids.insert(ids.end(), it->second.begin(), it->second.end());
  return true;
}

void PieceCache::insert(std::string_view piece, const int32_t* ids, size_t count) const {
  if (piece.size() > kLongestPiece) return;
  Shard& shard = shard_of(piece);
  const std::lock_guard lock(shard.mutex);
  if (shard.entries.size() >= kMostEntries) shard.entries.clear();  // texts change; a fresh start is good enough
  shard.entries.emplace(piece, std::vector<int32_t>(ids, ids + count));
}

std::string byte_level_char(uint8_t byte) {
  const uint16_t point = byte_points()[byte];
  if (point < 0x80) return std::string(1, static_cast<char>(point));
  return {static_cast<char>(0xC0 | point >> 6), static_cast<char>(0x80 | (point & 0x3F))};
}

std::string byte_level_encode(std::string_view bytes) {
  std::string text;
  for (const char c : bytes) text += byte_level_char(static_cast<uint8_t>(c));
  return text;
}

std::string byte_level_decode(std::string_view token) {
  static const auto byte_of = [] {
    std::array<int16_t, 512> table;
    table.fill(-1);
    for (int b = 0; b < 256; ++b) table[byte_points()[b]] = static_cast<int16_t>(b);
    return table;
  }();
  std::string bytes;
  for (size_t at = 0; at < token.size();) {
    const auto n = static_cast<size_t>(std::max(utf8_length(token.substr(at)), 1));
    const auto first = static_cast<uint8_t>(token[at]);
    const int point = n == 1   ? first
                      : n == 2 ? (first & 0x1F) << 6 | (static_cast<uint8_t>(token[at + 1]) & 0x3F)
                               : 512;
    if (point < 512 && byte_of[point] >= 0) bytes += static_cast<char>(byte_of[point]);
    else return std::string(token);
    at += n;
  }
  return bytes;
}

}  // namespace irq
