// A name from a foreign file as it may stand in a message: no control characters, at most 120 bytes.
#pragma once
#include <string>

namespace irq {

inline std::string printable(const std::string& text) {
  constexpr size_t kLongest = 120;
  std::string shown = text.substr(0, kLongest);
  for (char& c : shown)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  return text.size() > kLongest ? shown + "..." : shown;
}

}  // namespace irq
