// GGUF files made byte by byte, right and wrong ones.
#pragma once
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

namespace irq {

// The little-endian bytes of a number.
template <class T>
std::string raw(T x) {
  return {reinterpret_cast<const char*>(&x), sizeof(T)};
}
template <class T>
std::string raw(const std::vector<T>& v) {
  return {reinterpret_cast<const char*>(v.data()), v.size() * sizeof(T)};
}

inline uint64_t fnv(const std::vector<float>& v) {  // FNV-1a, 64 bits, over the floats' bytes
  uint64_t h = 0xcbf29ce484222325ull;
  for (const unsigned char c : raw(v)) h = (h ^ c) * 0x100000001b3ull;
  return h;
}

struct GgufBytes {
  uint32_t version = 3;
  uint64_t alignment = 32;
  uint64_t pair_count = 0, tensor_count = 0;
  std::string pairs, infos, data;

  static std::string text(const std::string& s) { return raw<uint64_t>(s.size()) + s; }
  void pair(const std::string& key, uint32_t type, const std::string& value) {
    pairs += text(key) + raw(type) + value;
    ++pair_count;
  }
  void u32(const std::string& key, uint32_t x) { pair(key, 4, raw(x)); }
  void f32(const std::string& key, float x) { pair(key, 6, raw(x)); }
  void flag(const std::string& key, bool x) { pair(key, 7, std::string(1, x ? '\1' : '\0')); }
  void string(const std::string& key, const std::string& x) { pair(key, 8, text(x)); }
  void array(const std::string& key, uint32_t type, uint64_t count, const std::string& elements) {
    pair(key, 9, raw(type) + raw(count) + elements);
  }
  void strings(const std::string& key, const std::vector<std::string>& v) {
    std::string all;
    for (const std::string& s : v) all += text(s);
    array(key, 8, v.size(), all);
  }
  // The shape as in the file: the fastest dimension first.
  void info(const std::string& name, const std::vector<uint64_t>& shape, uint32_t type, uint64_t offset) {
    infos += text(name) + raw(static_cast<uint32_t>(shape.size())) + raw(shape) + raw(type) + raw(offset);
    ++tensor_count;
  }
  void tensor(const std::string& name, const std::vector<uint64_t>& shape, uint32_t type, const std::string& bytes) {
    info(name, shape, type, data.size());
    data += bytes;
    data.resize((data.size() + alignment - 1) / alignment * alignment, '\0');
  }
  // A key's or a tensor's name replaced by one of the same length.
  void rename(const std::string& from, const std::string& to) {
    std::string& where = pairs.find(text(from)) != std::string::npos ? pairs : infos;
    where.replace(where.find(text(from)), text(from).size(), text(to));
  }
  std::string bytes() const {
    std::string all = "GGUF" + raw(version) + raw(tensor_count) + raw(pair_count) + pairs + infos;
    if (!data.empty()) all.resize((all.size() + alignment - 1) / alignment * alignment, '\0');
    return all + data;
  }
};

// While it lives, this process cannot take more than `more_bytes` of address space beyond what it has: a reader that believes
// a hostile file's claim fails with bad_alloc, which is no Error.
class MemoryLimit {
 public:
  explicit MemoryLimit(uint64_t more_bytes) {
    uint64_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    getrlimit(RLIMIT_AS, &before_);
    struct rlimit limit = before_;
    limit.rlim_cur = std::min<uint64_t>(before_.rlim_max, pages * static_cast<uint64_t>(getpagesize()) + more_bytes);
    setrlimit(RLIMIT_AS, &limit);
  }
  MemoryLimit(const MemoryLimit&) = delete;
  ~MemoryLimit() { setrlimit(RLIMIT_AS, &before_); }

 private:
  struct rlimit before_;
};

}  // namespace irq
