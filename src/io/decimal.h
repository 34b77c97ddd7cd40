// The shortest decimal number that an f32 stands for: 0x1.4f8b58p-17f, the f32 nearest to 1e-5, was 1e-5 where it came from.
#pragma once
#include <charconv>

namespace irq {

inline double decimal_of(float x) {
  char text[64];
  const auto written = std::to_chars(text, text + sizeof(text), x);
  double value = x;
  std::from_chars(text, written.ptr, value);
  return value;
}

}  // namespace irq
