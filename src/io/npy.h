// NumPy's .npy, format 1.0, C order: writes f32, u8, i32, i64; reads these and f64 and f16.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace irq {

enum class NpyType { f32, u8, i32, i64, f64, f16 };

struct Npy {
  NpyType type = NpyType::f32;
  std::vector<int64_t> shape;
  std::vector<unsigned char> bytes;
  int64_t count() const;
  // The values converted (integers beyond 2^53 lose bits).
  std::vector<double> as_f64() const;
  // The values as they are; T must be the file's type.
  template <class T>
  const T* as() const {
    check_type(sizeof(T));
    return reinterpret_cast<const T*>(bytes.data());
  }

 private:
  void check_type(size_t element_bytes) const;
};

Npy read_npy(const std::string& path);
void write_npy(const std::string& path, NpyType type, const std::vector<int64_t>& shape, const void* data);
inline void write_npy(const std::string& path, const std::vector<int64_t>& shape, const std::vector<float>& data) {
  write_npy(path, NpyType::f32, shape, data.data());
}

}  // namespace irq
